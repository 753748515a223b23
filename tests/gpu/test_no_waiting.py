"""On a GPU: a healthy step of a fused optimizer waits for nothing, and trains as the one that waits."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.scaling.clean_steps import EXACT_STEPS
from tests.helpers.training import Regression, assert_bitwise_equal, fit, overflowing_at, regression_data, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="counts how often the host waits for a GPU")

LENGTH = EXACT_STEPS + 24


class Quiet(Regression):
    """Does not look at its own loss."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        inputs, targets = batch
        return self.fault(torch.nn.functional.mse_loss(self.net(inputs).float(), targets), batch_idx)


class NoWaiting(Callback):
    """From a batch on, whatever makes the host wait for the device is an error."""

    def __init__(self, first: int) -> None:
        self.first = first

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("error" if batch_idx >= self.first else "default")

    def on_train_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counted_waits() -> Iterator[list[str]]:
    import warnings

    seen: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # Not what torch says of the mode itself.
    seen += [str(each.message) for each in caught if "called a synchronizing CUDA operation" in str(each.message)]


def data() -> DataLoader[Any]:
    on_device = [[part.cuda() for part in batch] for batch in regression_data(batches=LENGTH)]
    return DataLoader(on_device, batch_size=None)  # type: ignore[arg-type]


def plugin_of(precision: str, exact: bool | None = None) -> AdaptivePrecision:
    scaling = LossScaling(init_scale=2.0**10) if precision == "fp16" else None
    return AdaptivePrecision(precision, scaling=scaling, exact=exact)


@pytest.mark.parametrize("clipping", [{}, {"gradient_clip_val": 0.05}], ids=str)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_calm_run_does_not_wait(precision: str, clipping: dict[str, float]) -> None:
    model = Quiet(optimizer=torch.optim.AdamW, fused=True)
    plugin = plugin_of(precision)
    fit(plugin, model, data(), accelerator="cuda", callbacks=[NoWaiting(EXACT_STEPS + 2)], **clipping)
    assert (plugin.effective_step, plugin.incidents) == (LENGTH, [])


@pytest.mark.parametrize("clipping", [{}, {"gradient_clip_val": 0.05}], ids=str)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_waiting_changes_no_weight(precision: str, clipping: dict[str, float]) -> None:
    late, exact = (
        fit(
            plugin_of(precision, exact),
            Quiet(optimizer=torch.optim.AdamW, fused=True),
            data(),
            accelerator="cuda",
            **clipping,
        )
        for exact in (False, True)
    )
    assert_bitwise_equal(weights(late), weights(exact))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_an_optimizer_that_is_not_fused_waits_once(precision: str) -> None:
    class OneStep(Callback):
        waits: list[str]

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == LENGTH - 2:
                self.counting = counted_waits()
                self.waits = self.counting.__enter__()
            elif batch_idx == LENGTH - 1:
                self.counting.__exit__(None, None, None)

    counter = OneStep()
    fit(plugin_of(precision), Quiet(optimizer=torch.optim.AdamW), data(), accelerator="cuda", callbacks=[counter])
    assert len(counter.waits) == 1


def test_an_overflow_is_skipped_on_the_device_and_known_a_step_later() -> None:
    plugin = plugin_of("fp16", exact=False)
    fault = overflowing_at(LENGTH - 4)
    fit(plugin, Quiet(optimizer=torch.optim.AdamW, fused=True, fault=fault), data(), accelerator="cuda")
    assert (plugin.effective_step, plugin.skipped_steps) == (LENGTH - 1, 1)
    assert plugin.incidents[-1].step == LENGTH - 4
    assert plugin.incidents[-1].parameters[0] == "net.0.weight"
