"""The faults that FP32 cures, with torch alone: what is said of them is so."""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.faults.batches import Batch
from tests.helpers.faults.fp32 import FP32_FAULTS, HOPELESS, FP32Fault, Layer, Trained


def run_in_fp32(layer: nn.Module) -> None:
    """An island in its simplest form; of the layers here each has one input."""
    forward = layer.forward

    def in_fp32(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return forward(x.float() if x.is_floating_point() else x)  # type: ignore[no-any-return]

    layer.forward = in_fp32  # type: ignore[method-assign]


def is_finite(fault: FP32Fault, batch: Batch, names: Iterable[str], scale: float = 1.0) -> bool:
    """Whether the gradients of a batch are finite with these layers in FP32."""
    model = fault.make()
    for name in names:
        run_in_fp32(model.get_submodule(name))
    return gradients_are_finite(model, batch, torch.autocast("cpu", torch.float16), scale)


def gradients_are_finite(model: Trained, batch: Batch, autocast: torch.autocast, scale: float) -> bool:
    with autocast:
        loss = model.training_step(batch, 0)
    assert loss is not None
    (loss.float() * scale).backward()
    return all(bool(each.grad.isfinite().all()) for each in model.parameters() if each.grad is not None)


def layers_of(fault: FP32Fault) -> list[str]:
    """Layers that hold no others."""
    return [name for name, module in fault.make().named_modules() if not any(True for _ in module.children())]


@pytest.mark.parametrize("fault", [*FP32_FAULTS, *HOPELESS], ids=lambda fault: fault.name)
def test_only_the_planted_batch_goes_wrong_and_fp32_tells_whether_it_is_hopeless(fault):
    batches = fault.batches()
    healthy = [is_finite(fault, batch, ()) for batch in batches]
    assert healthy == [True, True, False, True, True]
    assert is_finite(fault, batches[0], (), scale=2.0**8)
    off = torch.autocast("cpu", enabled=False)
    assert gradients_are_finite(fault.make(), batches[2], off, 1.0) == bool(fault.culprits)


@pytest.mark.parametrize("fault", FP32_FAULTS, ids=lambda fault: fault.name)
def test_the_culprits_are_the_only_smallest_set(fault):
    bad = fault.batches()[2]
    assert is_finite(fault, bad, fault.culprits)
    assert is_finite(fault, bad, fault.culprits, scale=2.0**8)
    for culprit in fault.culprits:
        # Nor does anything else, where one of them is missing.
        assert not is_finite(fault, bad, {*fault.culprits} - {culprit})
        assert not is_finite(fault, bad, {*layers_of(fault)} - {culprit})


@pytest.mark.parametrize("fault", FP32_FAULTS, ids=lambda fault: fault.name)
def test_in_fp32_the_gain_changes_nothing_but_rounding(fault):
    losses = []
    for gain in (1.0, fault.gain):
        model, batch = fault.make(), fault.batches()[0]
        losses.append(model.training_step(batch._replace(knob=torch.full_like(batch.knob, gain)), 0))
    torch.testing.assert_close(losses[0], losses[1])


def test_planted_layers_and_layers_that_run_twice_are_where_they_are_said_to_be():
    for fault in (*FP32_FAULTS, *HOPELESS):
        planted = [name for name, module in fault.make().named_modules() if isinstance(module, Layer)]
        assert planted == [f"net.{name}" for name in fault.planted]
        for first, second in fault.shared:
            net = fault.make().net
            assert net.get_submodule(first) is net.get_submodule(second)
