"""Gradients of every kind: sparse, complex, of mixed number formats, missing, empty, in odd layouts."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.optim import SGD, Adagrad, AdamW, SparseAdam

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    infinite_at,
    overflowing_at,
    weights,
)

# torch's sparse optimizers build sparse tensors themselves.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning")

SCALE = 2.0**10
"""Nothing in these small models overflows at this loss scale."""


def fp16(**options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE, **options))


def stock() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=SCALE))


PLUGINS = {"fp16": fp16, "bf16": lambda: AdaptivePrecision("bf16"), "fp32": lambda: AdaptivePrecision("fp32")}
every_plugin = pytest.mark.parametrize("precision", PLUGINS)


class Words(Regression):
    """An embedding with sparse gradients; words repeat within a batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net = torch.nn.Embedding(6, 3, sparse=True)  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        words = (batch[0] * 10).long().remainder(6)
        return self.fault(self.net(words).square().mean(), batch_idx)


@pytest.mark.parametrize("optimizer", [SGD, Adagrad, SparseAdam])
def test_sparse_gradients_train_as_in_stock(optimizer: Any) -> None:
    """Bit by bit, but for SGD: it adds repeated rows to the weight one by one, where ours are summed already."""
    plugin = fp16()
    ours, theirs = fit(plugin, Words(optimizer=optimizer)), fit(stock(), Words(optimizer=optimizer))
    tolerance = 2.0**-18 if optimizer is SGD else 0
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=0, atol=tolerance)
    assert plugin.effective_step == 8


@every_plugin
@pytest.mark.parametrize("optimizer", [SGD, Adagrad, SparseAdam])
def test_an_overflow_among_sparse_gradients_is_skipped(optimizer: Any, precision: str) -> None:
    plugin = PLUGINS[precision]()
    last = fit(plugin, Words(optimizer=optimizer, fault=infinite_at(7)))
    assert (plugin.skipped_steps, dict(plugin.guard.record.by_parameter)) == (1, {"net.weight": 1})
    before = fit(PLUGINS[precision](), Words(optimizer=optimizer), limit_train_batches=7)
    assert_bitwise_equal(weights(last), weights(before))


class RepeatedRows(Words):
    """A gradient with the same row twice: finite one by one, infinite in their sum."""

    def on_after_backward(self) -> None:
        if self.trainer.fit_loop.batch_idx == 3:
            rows = torch.full((2, 3), 3e38)
            grad = torch.sparse_coo_tensor(torch.tensor([[2, 2]]), rows, (6, 3), check_invariants=True)
            self.net.weight.grad = grad  # type: ignore[assignment]


def test_repeated_rows_that_overflow_in_their_sum_are_noticed() -> None:
    """Stock looks at the rows of fp32 one by one, at a scale of 1 as in fp32 here: the sum makes a weight infinite."""
    theirs = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1.0))
    assert not fit(theirs, RepeatedRows(optimizer=SGD, lr=1.0)).net.weight.isfinite().all()
    for plugin in (AdaptivePrecision("fp32"), AdaptivePrecision("fp16", scaling=LossScaling(init_scale=1))):
        model = fit(plugin, RepeatedRows(optimizer=SGD, lr=1.0))
        assert model.net.weight.isfinite().all()
        assert plugin.skipped_steps == 1


class Extra(Regression):
    """One parameter more, of any kind, which the loss pulls towards zero."""

    def __init__(self, parameter: torch.Tensor, **options: Any) -> None:
        super().__init__(**options)
        self.extra = torch.nn.Parameter(parameter)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if loss is None else loss + (self.extra.abs() ** 2).sum().float()


EXTRAS = {
    "empty": torch.ones(0, 3),
    "0-d": torch.tensor(2.0),
    "bf16": torch.ones(3, dtype=torch.bfloat16),
    "fp64": torch.ones(3, dtype=torch.float64),
}


@pytest.mark.parametrize("implementation", ["for-loop", "foreach", "fused"])
@pytest.mark.parametrize("kind", EXTRAS)
@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_parameters_of_mixed_kinds_in_one_optimizer(kind: str, optimizer: Any, implementation: str) -> None:
    how: dict[str, Any] = {"optimizer": optimizer, "lr": 0.05, "foreach": implementation == "foreach"}
    how["fused"] = implementation == "fused"
    ours, theirs = (fit(plugin, Extra(EXTRAS[kind].clone(), **how)) for plugin in (fp16(), stock()))
    assert_bitwise_equal(weights(ours), weights(theirs))
    plugin = fp16(retries=0)
    spoiled = fit(plugin, Extra(EXTRAS[kind].clone(), fault=overflowing_at(7), **how), gradient_clip_val=0.5)
    assert plugin.skipped_steps == 1
    healthy = fit(fp16(), Extra(EXTRAS[kind].clone(), **how), gradient_clip_val=0.5, limit_train_batches=7)
    assert_bitwise_equal(weights(spoiled), weights(healthy))


@pytest.mark.parametrize("kind", ["bf16", "fp64", "0-d", "complex"])
def test_an_inf_in_the_odd_one_out_is_noticed(kind: str) -> None:
    class Spoiled(Extra):
        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == 3:
                self.extra.grad.flatten()[-1] = float("inf")  # type: ignore[union-attr]

    for make in PLUGINS.values():
        plugin = make()
        extra = {**EXTRAS, "complex": torch.ones(3, dtype=torch.complex64)}[kind].clone()
        model = fit(plugin, Spoiled(extra))
        assert plugin.skipped_steps == 1
        assert plugin.incidents[-1].parameters == ("extra",)
        assert model.extra.isfinite().all()


def test_complex_parameters_train_as_in_fp32() -> None:
    """Stock's scaler knows no complex numbers."""
    parameter = torch.tensor([1 + 2j, -1.0, 3j], dtype=torch.complex64)
    with pytest.raises(NotImplementedError, match="not implemented for 'ComplexFloat'"):
        fit(stock(), Extra(parameter.clone()))
    truth = fit(AdaptivePrecision("fp32"), Extra(parameter.clone()), gradient_clip_val=0.5)
    model = fit(fp16(), Extra(parameter.clone()), gradient_clip_val=0.5)
    torch.testing.assert_close(model.extra, truth.extra, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_without_gradients_is_no_step(fused: bool) -> None:
    """peers' fault 1.2.9, trap 12: stock stops with an AssertionError."""

    class Without(Regression):
        def on_after_backward(self) -> None:
            if self.trainer.fit_loop.batch_idx == 7:
                self.zero_grad(set_to_none=True)

    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        fit(stock(), Without(optimizer=AdamW, fused=fused))
    for make in PLUGINS.values():
        plugin = make()
        model = fit(plugin, Without(optimizer=AdamW, fused=fused))
        assert (plugin.effective_step, plugin.skipped_steps) == (7, 0)
        before = fit(make(), Regression(optimizer=AdamW, fused=fused), limit_train_batches=7)
        assert_bitwise_equal(weights(model), weights(before))


@every_plugin
def test_frozen_and_unused_parameters_stay_as_they_are(precision: str) -> None:
    class Partly(Regression):
        def configure_optimizers(self) -> Any:
            self.net[0].weight.requires_grad_(False)
            self.unused = torch.nn.Parameter(torch.ones(2))
            return AdamW(self.parameters(), lr=0.1, weight_decay=0.1)

    plugin = PLUGINS[precision]()
    model = fit(plugin, Partly(fault=infinite_at(3)))
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert set(plugin.incidents[0].parameters) == {"net.0.bias", "net.2.weight", "net.2.bias"}
    assert model.unused.tolist() == [1, 1]
    assert_bitwise_equal([model.net[0].weight.detach()], [Regression().net[0].weight.detach()])


def transposed(grad: torch.Tensor) -> torch.Tensor:
    return grad.t().contiguous().t()


def strided(grad: torch.Tensor) -> torch.Tensor:
    wide = grad.new_full((grad.shape[0], 2 * grad.shape[1]), float("nan"))
    wide[:, ::2] = grad
    return wide[:, ::2]


def in_a_bucket(grad: torch.Tensor) -> torch.Tensor:
    bucket = torch.cat([torch.full((5,), float("nan")), grad.flatten()])
    return bucket[5:].view_as(grad)


@pytest.mark.parametrize("layout", [transposed, strided, in_a_bucket])
def test_the_layout_of_a_gradient_does_not_matter(layout: Any) -> None:
    """What lies between the numbers of a gradient is not looked at."""

    class Laid(Regression):
        def on_after_backward(self) -> None:
            self.net[0].weight.grad = layout(self.net[0].weight.grad)

    for make in PLUGINS.values():
        plugin = make()
        assert_bitwise_equal(weights(fit(plugin, Laid())), weights(fit(make(), Regression())))
        assert plugin.skipped_steps == 0
