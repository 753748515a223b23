"""A model that cannot be run again, or not under observation, trains as it would without; one warning says so."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.training import Regression
from tests.helpers.twins import Twin, same, train

POISONED = (2, 4, 6)


class Net(Regression):
    def __init__(self, *, layer: nn.Module, poisoned: tuple[int, ...] = POISONED) -> None:
        super().__init__(optimizer=torch.optim.AdamW, lr=0.01)
        self.layer, self.poisoned = layer, poisoned
        self.norm = nn.BatchNorm1d(8)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.net(self.norm(self.layer(batch[0])))
        outputs = outputs / 0 if batch_idx in self.poisoned else outputs
        return nn.functional.mse_loss(outputs.float(), batch[1])


class OnlyOnce(nn.Module):
    """Knows each batch that it has seen, by a way that nobody can take back."""

    def __init__(self) -> None:
        super().__init__()
        seen: list[torch.Tensor] = []
        self.check = lambda inputs: _refuse(inputs, seen)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.check(inputs)
        return inputs * 2


def _refuse(inputs: torch.Tensor, seen: list[torch.Tensor]) -> None:
    if any(torch.equal(inputs, earlier) for earlier in seen):
        raise RuntimeError("this batch was here before")
    seen.append(inputs)


class Unobserved(nn.Module):
    """Refuses to run under a mode that sees its operators."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise NotImplementedError("no rule for this mode")
        return inputs * 2


class RefusesBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * 2

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise NotImplementedError("no rule for this mode")
        return gradient * 2


class OutOfMemory(nn.Module):
    """There is no room for a trace beside the model."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if torch._C._len_torch_dispatch_stack():
            self.late = torch.ones(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return inputs * 2


LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "only once": (OnlyOnce, "RuntimeError: this batch was here before"),
    "unobserved": (Unobserved, "NotImplementedError: no rule for this mode"),
    "out of memory": (OutOfMemory, "OutOfMemoryError: CUDA out of memory"),
}


def goes_on(make: Callable[[], Any], error: str, caplog: pytest.LogCaptureFixture, **options: Any) -> Twin:
    with caplog.at_level(logging.WARNING, logger="mp_plugin"):
        tried = train(make, max_traced=20, **options)
    warnings = [each for each in caplog.records if "could not be traced" in each.message]
    assert len(warnings) == 1
    assert warnings[0].exc_info is not None
    assert error in f"{warnings[0].exc_info[0].__name__}: {warnings[0].exc_info[1]}"  # type: ignore[union-attr]
    assert tried.traced == []
    first = tried.plugin.incidents[0]
    assert any(error in each for each in first.evidence["missing"]), first.evidence
    same(tried, train(make, max_traced=0, **options))
    return tried


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", LAYERS)
def test_training_goes_on(name: str, precision: str, caplog: pytest.LogCaptureFixture) -> None:
    layer, error = LAYERS[name]
    tried = goes_on(lambda: Net(layer=layer()), error, caplog, precision=precision)
    assert tried.plugin.skipped_steps == len(POISONED)
    assert not hasattr(tried.model.layer, "late")


@pytest.mark.parametrize("name", ["unobserved", "out of memory"])
def test_a_batch_that_could_not_be_traced_is_still_run_again_at_a_lower_scale(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    layer, error = LAYERS[name]
    tried = goes_on(lambda: Net(layer=layer()), error, caplog, precision="fp16")
    assert tried.plugin.retried_steps


def test_a_backward_pass_that_cannot_be_watched(caplog: pytest.LogCaptureFixture) -> None:
    class Backward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(8))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return RefusesBackward.apply(inputs + 0 * self.weight)  # type: ignore[no-any-return, no-untyped-call]

    error = "NotImplementedError: no rule for this mode"
    goes_on(lambda: Net(layer=Backward(), poisoned=()), error, caplog, precision="fp16")
