"""What a healthy step costs beyond stock, counted: waits for the device, and passes over the gradients."""

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from tests.helpers.training import Regression, infinite_at, quiet_trainer, regression_data

SYNCS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "_unique2", "masked_select"}
"""Operators that wait for the device, because the host has to know."""

COUNTED_BATCH = 4


class Watched(Regression):
    """A regression that does not look at its own loss; BatchNorm brings buffers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, torch.nn.BatchNorm1d(16))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        return self.fault(torch.nn.functional.mse_loss(self.net(batch[0]).float(), batch[1]), batch_idx)


class Operators(TorchDispatchMode):
    """Counts operators; those that touch a gradient once more by themselves."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.all: Counter[str] = Counter()
        self.on_gradients: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.all[name] += 1
        gradients = {p.grad.data_ptr() for p in self.module.parameters() if p.grad is not None}
        tensors = [value for value in torch.utils._pytree.tree_leaves((args, kwargs)) if torch.is_tensor(value)]
        if any(tensor.data_ptr() in gradients for tensor in tensors):
            self.on_gradients[name] += 1
        return function(*args, **(kwargs or {}))


class CountOneStep(Callback):
    """Counts the operators of one whole batch, all that Lightning does after it included."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == COUNTED_BATCH:
            self.operators = Operators(pl_module)
            self.operators.__enter__()
        if batch_idx == COUNTED_BATCH + 1:
            self.operators.__exit__(None, None, None)


def count(plugin: Any, optimizer: Any, trainer: dict[str, Any] | None = None, **options: Any) -> Operators:
    """Train for some batches and return what ran in one of them."""
    counter = CountOneStep()
    settings = {"callbacks": [], **(trainer or {})}
    settings["callbacks"] = [*settings["callbacks"], counter]
    model = Watched(optimizer=optimizer, **options)
    quiet_trainer(plugins=[plugin], **settings).fit(model, regression_data())
    return counter.operators


def stock() -> MixedPrecision:
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def waits(operators: Operators) -> int:
    return sum(operators.all[name] for name in SYNCS)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_healthy_step_does_not_wait_for_the_device(precision: str) -> None:
    """None with a fused optimizer, at most one otherwise; stock needs that one too in 16-mixed."""
    assert waits(count(AdaptivePrecision(precision), torch.optim.AdamW, fused=True)) == 0
    assert waits(count(AdaptivePrecision(precision), torch.optim.SGD)) <= 1
    assert waits(count(stock(), torch.optim.SGD)) == 1


READ = {"cat": 1}
"""One read of all gradients: on the CPU small ones are added up together."""
NORM = {"_foreach_norm": 1}
UNSCALE = {"_amp_foreach_non_finite_check_and_unscale_": 1}
MULTIPLY = {"_foreach_mul_": 1}
FUSED, PLAIN = {"_fused_sgd_": 1}, {"add_": 6}
CLIPPED = {"gradient_clip_val": 1e-3}
# Every pass over the gradients, by us and by stock; None where stock refuses.
PASSES: dict[tuple[str, str, str], tuple[Any, Any]] = {
    ("fp16", "fused", "unclipped"): (READ | FUSED, UNSCALE | FUSED),
    ("fp16", "fused", "clipped"): (NORM | FUSED, None),
    ("fp16", "foreach", "unclipped"): (UNSCALE | PLAIN, UNSCALE | PLAIN),
    ("fp16", "foreach", "clipped"): (NORM | MULTIPLY | PLAIN, UNSCALE | NORM | MULTIPLY | PLAIN),
    ("bf16", "fused", "unclipped"): (READ | FUSED, FUSED),
    ("bf16", "fused", "clipped"): (NORM | FUSED, None),
    ("bf16", "foreach", "unclipped"): (READ | PLAIN, PLAIN),
    ("bf16", "foreach", "clipped"): (NORM | MULTIPLY | PLAIN, NORM | MULTIPLY | PLAIN),
}


def passes(plugin: Any, implementation: str, clipping: str) -> dict[str, int]:
    options = {"fused": True} if implementation == "fused" else {}
    trainer = CLIPPED if clipping == "clipped" else {}
    found = count(plugin, torch.optim.SGD, trainer, **options).on_gradients
    return {name: number for name, number in found.items() if name != "view"}


@pytest.mark.parametrize(("precision", "implementation", "clipping"), PASSES)
def test_every_pass_over_the_gradients_is_known(precision: str, implementation: str, clipping: str) -> None:
    ours, theirs = PASSES[precision, implementation, clipping]
    assert passes(AdaptivePrecision(precision), implementation, clipping) == ours
    if theirs is not None:
        assert passes(STOCK[precision](), implementation, clipping) == theirs


@pytest.mark.parametrize("clipping", ["unclipped", "clipped"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_whether_somebody_waits_changes_no_pass(precision: str, clipping: str) -> None:
    expected, _ = PASSES[precision, "fused", clipping]
    assert passes(AdaptivePrecision(precision, exact=False), "fused", clipping) == expected


def test_gradients_that_need_no_clipping_are_not_written() -> None:
    trainer = {"gradient_clip_val": 1e3}
    for options, step in (({"fused": True}, FUSED), ({}, PLAIN)):
        operators = count(AdaptivePrecision("bf16"), torch.optim.SGD, trainer, **options)
        assert operators.on_gradients == Counter(NORM | step)


@pytest.mark.parametrize("options", [{"fused": True}, {}], ids=str)
def test_a_predictive_scale_reads_the_gradients_once_more(options: dict[str, Any]) -> None:
    predictive = AdaptivePrecision("fp16", scaling=LossScaling(policy="predictive"))  # type: ignore[arg-type]
    ours = count(predictive, torch.optim.SGD, **options)
    dynamic = count(AdaptivePrecision("fp16"), torch.optim.SGD, **options)
    assert ours.on_gradients - dynamic.on_gradients == Counter({"_foreach_norm": 1})
    assert waits(ours) == waits(dynamic)


def test_buffers_are_copied_in_one_launch_per_dtype() -> None:
    """BatchNorm holds two fp32 tensors and an integer counter."""
    assert count(AdaptivePrecision("fp16"), torch.optim.SGD).all["_foreach_copy_"] == 2


# What a whole batch runs beyond stock, by operator and reason.
BUFFERS = {"_foreach_copy_": 2}  # the last good ones, one launch per dtype
REMEMBERED_LOSS = {"detach": 1}  # for a step that has to be explained; a view, nothing is computed
BEYOND_STOCK = {
    # The scale is moved on the host, and the verdict read without a sync where it lies on the CPU.
    "fp16": BUFFERS | {"full_like": 1, "maximum": 1, "zeros": 2, "detach": 2},
    # Stock looks at nothing: one sum of all gradients, whether it is finite, and a number to read.
    "bf16": BUFFERS
    | {"view": 6, "cat": 1, "sum": 2, "promote_types": 1, "stack": 1, "zeros": 1}
    | {"detach": 2 + REMEMBERED_LOSS["detach"]},
}
BEYOND_STOCK["fp32"] = BEYOND_STOCK["bf16"]
STOCK: dict[str, Any] = {"fp16": stock, "bf16": lambda: MixedPrecision("bf16-mixed", "cpu"), "fp32": Precision}


@pytest.mark.parametrize("precision", BEYOND_STOCK)
def test_every_operator_beyond_stock_is_known(precision: str) -> None:
    ours = count(AdaptivePrecision(precision), torch.optim.AdamW).all
    assert dict(ours - count(STOCK[precision](), torch.optim.AdamW).all) == BEYOND_STOCK[precision]


@pytest.mark.parametrize("options", [{"fused": True}, {}], ids=str)
@pytest.mark.parametrize("precision", BEYOND_STOCK)
def test_nobody_pays_for_explanations_but_the_incident(precision: str, options: dict[str, Any]) -> None:
    """With and without them, and after an incident that was explained, a step runs the same operators."""
    without = AdaptivePrecision(precision, telemetry=Telemetry(max_traced=0))
    expected = count(without, torch.optim.AdamW, **options).all
    assert count(AdaptivePrecision(precision), torch.optim.AdamW, **options).all == expected
    plugin = AdaptivePrecision(precision)
    assert count(plugin, torch.optim.AdamW, fault=infinite_at(1), **options).all == expected
    assert [incident.traced for incident in plugin.incidents if incident.batch_idx <= COUNTED_BATCH] == [True]


class Unwatched(Watched):
    """Looks for whatever might watch it, in both passes of each batch but a spoiled one that is run again."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.own = {path: self.hooks_of(module) for path, module in self.named_modules()}
        self.looked = 0

    def hooks_of(self, module: torch.nn.Module) -> int:
        return sum(len(value) for name, value in vars(module).items() if name.endswith("_hooks"))

    def look(self) -> None:
        start: Any = self.trainer.precision_plugin.start
        # Where a batch may be run again, the first call of `on_after_backward` is watched: does it edit gradients?
        if not start.is_rehearsing and (not start.may_step_again or self.trainer.fit_loop.batch_idx > 0):
            self.looked += 1
            assert {path: self.hooks_of(module) for path, module in self.named_modules()} == self.own
            assert torch._C._len_torch_dispatch_stack() == 0
            assert torch._dynamo.eval_frame._stance.stance == "default"
            assert "log" not in vars(self)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> Any:
        self.look()
        return super().training_step(batch, batch_idx)

    def on_after_backward(self) -> None:
        self.look()


@pytest.mark.parametrize("precision", BEYOND_STOCK)
def test_no_hook_is_installed_in_a_healthy_step(precision: str) -> None:
    scaling = LossScaling(init_scale=2**8) if precision == "fp16" else None
    plugin, model = AdaptivePrecision(precision, scaling=scaling), Unwatched(fault=infinite_at(2, 5))
    quiet_trainer(plugins=[plugin]).fit(model, regression_data())
    assert [incident.traced for incident in plugin.incidents] == [True, False]
    assert model.looked == (16 if precision != "fp16" else 14)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_step_that_is_not_sampled_runs_nothing_for_samples(precision: str) -> None:
    full = Telemetry(activations=True, histograms=True, max_overhead=1)
    plugin = AdaptivePrecision(precision, telemetry=full)
    sampled = count(plugin, torch.optim.SGD)
    assert plugin.sampler.budget.taken == 1  # the first step, long before the one that is counted
    plain = count(AdaptivePrecision(precision, telemetry=Telemetry(every_n_steps=0)), torch.optim.SGD)
    assert sampled.all == plain.all
    assert sampled.on_gradients == plain.on_gradients


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_sampled_step_waits_no_more_than_another(precision: str) -> None:
    full = Telemetry(every_n_steps=1, activations=True, histograms=True, max_overhead=1)
    plugin = AdaptivePrecision(precision, telemetry=full)
    sampled = count(plugin, torch.optim.SGD)
    assert plugin.sampler.budget.taken == 8
    assert waits(sampled) == waits(count(AdaptivePrecision(precision), torch.optim.SGD))
