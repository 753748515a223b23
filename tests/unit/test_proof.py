"""What a proof tries, with real re-runs of a real step. Whole trainings: tests/integration/test_fallback_auto.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision
from mp_plugin.all_ranks import AllRanks
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.isolate import Isolation
from mp_plugin.proof import prove
from mp_plugin.step_start import StepStart
from tests.helpers.faults.fp32 import FP32Fault, Trained, fp32_fault
from tests.helpers.training import quiet_trainer, weights


class Proves(Trained):
    """Calls `check` at the faulty batch, between its backward pass and its step; no plugin of its own moves layers."""

    def __init__(self, fault: FP32Fault, check: Callable[["Proves", StepStart], None], net: nn.Module | None) -> None:
        super().__init__(fault.make().net if net is None else net)
        self.check, self.checked = check, 0

    def on_after_backward(self) -> None:
        if self.trainer.fit_loop.batch_idx == 1:
            self.checked += 1
            self.check(self, self.trainer.precision_plugin.start)  # type: ignore[union-attr]


def at_the_fault(
    fault: FP32Fault, check: Callable[[Proves, StepStart], None], net: nn.Module | None = None, **options: Any
) -> None:
    model = Proves(fault, check, net)
    trainer = quiet_trainer(plugins=[AdaptivePrecision("fp16")], **options)
    trainer.fit(model, DataLoader(fault.batches(faulty=(1,), count=2), batch_size=None))  # type: ignore[arg-type]
    assert model.checked == 1


def proved(
    module: nn.Module,
    start: StepStart,
    *,
    scale: float = 1.0,
    origin: str | None = None,
    given: Any = (),
    **evidence: Any,
) -> tuple[Isolation | None, dict[str, Any]]:
    islands = Islands(module, device_type="cpu")
    islands.set(given)
    before = weights(module), torch.get_rng_state(), [type(part) for part in module.modules()]
    explanation = {"layer": origin, "evidence": evidence}
    found = prove(start, explanation, islands, scale, AllRanks(), is_small=lambda _: True)
    # Nothing of it remains, islands least of all.
    assert [type(part) for part in module.modules()] == before[2]
    assert islands.names == tuple(given)
    assert torch.equal(torch.get_rng_state(), before[1])
    torch.testing.assert_close(weights(module), before[0], rtol=0, atol=0)
    islands.set(())
    return found, evidence


@pytest.mark.parametrize("name", ["mlp: inside a layer", "mlp: seen later", "cnn: two that interact"])
@pytest.mark.parametrize("knows_origin", [True, False])
def test_it_finds_the_smallest_set(name: str, knows_origin: bool) -> None:
    fault = fp32_fault(name)

    def check(module: Proves, start: StepStart) -> None:
        found, evidence = proved(module, start, origin=fault.origin if knows_origin else None)
        assert found is not None
        assert found.layers == fault.culprits
        assert found.is_minimal
        assert evidence["step_finite_in_fp32"] is True
        # The run of all of it in FP32 counts too.
        assert evidence["proof"]["reruns"] == found.reruns + 1
        assert evidence["proof"]["layers"] == fault.culprits

    at_the_fault(fault, check)


def test_what_is_known_of_fp32_already_is_not_tried_again() -> None:
    fault = fp32_fault("mlp: inside a layer")

    def check(module: Proves, start: StepStart) -> None:
        found, evidence = proved(module, start, origin=fault.origin, forward_finite_in_fp32=True)
        assert found is not None
        assert (found.layers, evidence["proof"]["reruns"]) == (fault.culprits, 1)
        assert proved(module, start, forward_finite_in_fp32=False) == (None, {"forward_finite_in_fp32": False})

    at_the_fault(fault, check)


@pytest.mark.parametrize("name", ["mlp: 0/0", "transformer: beyond FP32"])
def test_what_fp32_does_not_cure_costs_one_run(name: str) -> None:
    fault = fp32_fault(name)

    def check(module: Proves, start: StepStart) -> None:
        found, evidence = proved(module, start, origin=fault.origin)
        assert found is None
        assert evidence == {"step_finite_in_fp32": False}

    at_the_fault(fault, check)


def test_layers_that_are_in_fp32_already_stay_and_are_not_named_again() -> None:
    fault = fp32_fault("cnn: two that interact")
    first, second = fault.culprits

    def check(module: Proves, start: StepStart) -> None:
        found, _ = proved(module, start, given=(first,), origin=second)
        assert found is not None
        assert found.layers == (second,)

    at_the_fault(fault, check)


def test_a_backward_overflow_is_proved_at_the_scale_that_is_given() -> None:
    """In a healthy model a scale of 2**30 overflows in every layer, a scale of 1 in none."""
    fault = fp32_fault("mlp: backward")

    def check(module: Proves, start: StepStart) -> None:
        found, _ = proved(module, start, scale=1.0, origin=fault.origin)
        assert found is not None
        assert found.layers == fault.culprits
        found, _ = proved(module, start, scale=2.0**30, origin=fault.origin)
        assert found is None or len(found.layers) > 1

    at_the_fault(fault, check)


class Sealed(type):
    """A metaclass that lets nobody derive from its classes."""

    def __new__(mcs, name: str, bases: Any, members: Any) -> Any:
        if any(isinstance(base, Sealed) for base in bases):
            raise TypeError(f"{name} is sealed")
        return super().__new__(mcs, name, bases, members)


class SealedLayer(nn.LeakyReLU, metaclass=Sealed):
    pass


def test_a_layer_that_cannot_be_an_island_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    fault = fp32_fault("mlp: inside a layer")
    net: Any = fault.make().net
    net.act = SealedLayer()

    def check(module: Proves, start: StepStart) -> None:
        found, _ = proved(module, start, origin=fault.origin)
        assert found is not None
        assert found.layers == fault.culprits
        # Without the origin all layers are searched, this one left out.
        found, evidence = proved(module, start)
        assert found is not None
        assert found.layers == fault.culprits
        assert "missing" not in evidence

    at_the_fault(fault, check, net)
    assert caplog.text.count("could not be") == 0
