"""A re-run leaves no trace whatever the trainer, the batches, the module's hooks and the optimizer are like."""

from collections import Counter, UserDict, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

from mp_plugin import LossScaling
from tests.helpers.training import Regression, regression_data
from tests.helpers.twins import Twin, equal, same, train, twins

POISONED = 3


class Net(Regression):
    """With BatchNorm and dropout; one batch overflows in the forward pass, in fp16 the first ones in the backward."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"optimizer": torch.optim.AdamW, "lr": 0.01, **options})
        first, tanh, last = self.net
        self.net = nn.Sequential(first, nn.BatchNorm1d(16), tanh, nn.Dropout(0.3), last)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = self.unpack(batch)
        if batch_idx == POISONED:
            inputs = inputs / (inputs - inputs)
        return self.answer(nn.functional.mse_loss(self.compute(inputs).float(), targets))

    def unpack(self, batch: Any) -> Any:
        return batch

    def compute(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)  # type: ignore[no-any-return]

    def answer(self, loss: Tensor) -> Any:
        return loss


# The trainer.


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", nn.functional.mse_loss(self.net(batch[0]).float(), batch[1]))

    def val_dataloader(self) -> Any:
        return regression_data(batches=2)


BAREBONES = ("logger", "enable_checkpointing", "log_every_n_steps", "enable_progress_bar", "enable_model_summary")

TRAINERS: dict[str, tuple[type[Net], dict[str, Any]]] = {
    "windows": (Net, {"accumulate_grad_batches": 3, "max_epochs": 2}),
    "validation within the epoch": (Validated, {"val_check_interval": 2, "num_sanity_val_steps": 2}),
    "no inference mode": (Validated, {"val_check_interval": 2, "inference_mode": False}),
    "barebones": (Net, {"barebones": True, **dict.fromkeys(BAREBONES)}),
    "profiler": (Net, {"profiler": "simple"}),
    "fast_dev_run": (Net, {"fast_dev_run": 5}),
    "overfit_batches": (Net, {"overfit_batches": 5, "max_epochs": 2}),
    "clipping": (Net, {"gradient_clip_val": 0.1}),
}


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", TRAINERS)
def test_trainers(name: str, precision: str) -> None:
    model, options = TRAINERS[name]
    same(*twins(model, precision=precision, **options))


class _ToInf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 1e38 * 1e3


class OverflowsInBackward(Regression):
    """Its gradients become Inf, of which anomaly mode says nothing; a NaN stops every run."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        products = (1 + batch[0].abs()) * self.net[0].weight[0]  # type: ignore[index, operator]
        return (_ToInf.apply(products) if batch_idx == POISONED else products).mean()  # type: ignore[no-untyped-call]


def test_anomaly_mode() -> None:
    same(*twins(OverflowsInBackward, precision="fp32", detect_anomaly=True))


# Batches.


@dataclass
class Pair:
    inputs: Tensor
    targets: Tensor


Named = namedtuple("Named", ["inputs", "targets"])


class Popping(Net):
    def unpack(self, batch: Any) -> Any:
        targets = batch.pop("targets")
        return batch.pop("inputs"), targets


class ByName(Net):
    def unpack(self, batch: Any) -> Any:
        return (batch["inputs"], batch["targets"]) if isinstance(batch, UserDict) else (batch.inputs, batch.targets)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from regression_data()


def batches(kind: Callable[..., Any]) -> Any:
    return DataLoader([kind(inputs=inputs, targets=targets) for inputs, targets in regression_data()], batch_size=None)  # type: ignore[arg-type]


BATCHES: dict[str, tuple[type[Net], Callable[[], Any]]] = {
    "dict that is popped": (Popping, lambda: batches(dict)),
    "mapping that is popped": (Popping, lambda: batches(UserDict)),
    "dataclass": (ByName, lambda: batches(Pair)),
    "named tuple": (ByName, lambda: batches(Named)),
    "stream": (Net, lambda: DataLoader(Endless(), batch_size=None)),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batches(name: str) -> None:
    model, data = BATCHES[name]
    traced, plain = train(model, max_traced=20, data=data()), train(model, max_traced=0, data=data())
    assert traced.traced
    same(traced, plain)


# What a module overrides.


class Overriding(Net):
    """Everything between the loss and the step, counted."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        self.calls["backward"] += 1
        (loss * 2).backward(*args, **kwargs)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        self.calls["optimizer_step"] += 1
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.calls["optimizer_zero_grad"] += 1
        optimizer.zero_grad(set_to_none=False)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.calls["configure_gradient_clipping"] += 1
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="value")

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.calls["on_before_zero_grad"] += 1

    def on_before_backward(self, loss: Tensor) -> None:
        self.calls["on_before_backward"] += 1

    def on_after_backward(self) -> None:
        self.calls["on_after_backward"] += 1

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.calls["on_before_optimizer_step"] += 1


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_overridden_methods(precision: str) -> None:
    traced, plain = twins(Overriding, precision=precision)
    same(traced, plain)
    assert traced.model.calls == plain.model.calls


HOOKS_OF_A_STEP = ["on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]


def test_hooks_are_called_once_for_a_step_that_was_run_again() -> None:
    class Healthy(Overriding):
        def unpack(self, batch: Any) -> Any:
            self.calls["training_step"] += 1
            return batch[0] + self.trainer.fit_loop.batch_idx * (self.trainer.fit_loop.batch_idx == POISONED), batch[1]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            inputs, targets = self.unpack(batch)
            return nn.functional.mse_loss(self.net(inputs).float(), targets)

    retried = train(Healthy, max_traced=20)
    assert retried.traced
    assert (retried.plugin.skipped_steps, retried.plugin.effective_step) == (0, 8)
    assert retried.model.calls["training_step"] > 8
    right_at_once = train(Healthy, max_traced=20, scaling=LossScaling(init_scale=retried.plugin.loss_scale, retries=20))
    assert not right_at_once.plugin.incidents
    for name in HOOKS_OF_A_STEP:
        assert retried.model.calls[name] == 8, name
    assert [hook for hook, _ in retried.events] == [hook for hook, _ in right_at_once.events]
    equal(retried.model.state_dict(), right_at_once.model.state_dict())


class Doubling(Callback):
    """Edits gradients in place."""

    def __init__(self, edit: Callable[[Any], Any]) -> None:
        self.edit = edit

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        for parameter in pl_module.parameters():
            self.edit(parameter)


EDITS: dict[str, Callable[[Any], Any]] = {
    "in place": lambda parameter: parameter.grad.mul_(2),
    "through data": lambda parameter: parameter.grad.data.mul_(2),
    "new data": lambda parameter: setattr(parameter.grad, "data", parameter.grad * 2),
    "new": lambda parameter: setattr(parameter, "grad", parameter.grad * 2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_hook_that_edits_gradients_edits_those_of_the_last_run(edit: str) -> None:
    retried = train(Regression, max_traced=20, callbacks=[Doubling(EDITS[edit])])
    assert retried.plugin.retried_steps
    assert retried.traced
    scaling = LossScaling(init_scale=retried.plugin.loss_scale)
    right_at_once = train(Regression, max_traced=20, scaling=scaling, callbacks=[Doubling(EDITS[edit])])
    equal(retried.model.state_dict(), right_at_once.model.state_dict())


# Hooks of torch.


class Hooked(Net):
    """Hooks on parameters and tensors, which change gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.net[0].weight.register_hook(lambda gradient: gradient * 0.5)
        self.net[0].bias.register_post_accumulate_grad_hook(self._clamp)
        self.net[1].register_forward_hook(lambda module, inputs, output: output * 0.9)
        self.net[-1].register_full_backward_hook(self._see)

    def _clamp(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        parameter.grad.clamp_(-1e-3, 1e-3)

    def _see(self, *_: Any) -> None:
        self.seen["backward"] += 1

    def compute(self, inputs: Tensor) -> Tensor:
        hidden = self.net[:2](inputs)
        hidden.register_hook(lambda gradient: gradient * 0.3)
        return self.net[2:](hidden)  # type: ignore[no-any-return]


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_hooks_of_torch(precision: str) -> None:
    traced, plain = twins(Hooked, precision=precision)
    same(traced, plain)
    assert traced.model.seen == plain.model.seen
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    for one, other in zip(traced.model.modules(), plain.model.modules(), strict=True):
        assert [len(getattr(one, name)) for name in hooks] == [len(getattr(other, name)) for name in hooks]
        assert vars(one).keys() == vars(other).keys()
    assert len(traced.model.net[0].weight._backward_hooks) == 1


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_activation_checkpointing(precision: str, use_reentrant: bool) -> None:
    class Checkpointed(Net):
        def compute(self, inputs: Tensor) -> Tensor:
            hidden = self.net[0](inputs)
            return checkpoint(self.net[1:], hidden, use_reentrant=use_reentrant)  # type: ignore[no-any-return]

    same(*twins(Checkpointed, precision=precision))


# What a training step returns, and optimizers that ask for it more than once.


class ReturnsMore(Net):
    def answer(self, loss: Tensor) -> Any:
        return {"loss": loss, "more": loss.detach() * 2}


class ReturnsNothing(Net):
    def answer(self, loss: Tensor) -> Any:
        return loss if loss.isfinite() else None


class SharpnessAware(torch.optim.SGD):
    """Calls its closure twice."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        closure()
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        moves = [0.05 * parameter.grad for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
            result = closure()
            torch._foreach_sub_(parameters, moves)
        super().step()
        return result


class WithoutGrad(SharpnessAware):
    @torch.no_grad()
    def step(self, closure: Any) -> Any:
        return super().step(closure)


class OverflowsAtLast(Net):
    """In the backward pass of the second closure call of a step only."""

    def __init__(self) -> None:
        super().__init__(optimizer=WithoutGrad, lr=0.01)
        self.passes: Counter[int] = Counter()

    def compute(self, inputs: Tensor) -> Tensor:
        place = self.trainer.fit_loop.batch_idx
        self.passes[place] += 1
        outputs = super().compute(inputs)
        is_spoiled = place == POISONED - 1 and self.passes[place] > 1
        return _ToInf.apply(outputs) if is_spoiled else outputs  # type: ignore[no-any-return, no-untyped-call]


STEPS: dict[str, tuple[Callable[[], Net], str]] = {
    "dict": (ReturnsMore, "fp16"),
    "dict, fp32": (ReturnsMore, "fp32"),
    "sometimes nothing": (ReturnsNothing, "fp16"),
    "LBFGS": (lambda: Net(optimizer=torch.optim.LBFGS, max_iter=3, lr=0.01), "fp32"),
    "LBFGS, bf16": (lambda: Net(optimizer=torch.optim.LBFGS, max_iter=3, lr=0.01), "bf16"),
    "SAM": (lambda: Net(optimizer=SharpnessAware), "bf16"),
    "SAM, second call": (OverflowsAtLast, "bf16"),
    "fused": (lambda: Net(fused=True), "fp16"),
}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`:UserWarning")
@pytest.mark.parametrize("name", STEPS)
def test_steps(name: str) -> None:
    make, precision = STEPS[name]
    traced, plain = twins(make, precision=precision)
    same(traced, plain)
    assert len(traced.traced) == len({incident.signature for incident in traced.plugin.incidents})


# More than one fit.


def fit_twice(make: Callable[[], Any], *, max_traced: int, fail: bool) -> Twin:
    class Failing(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.fit_loop.batch_idx == POISONED + 1:
                raise ZeroDivisionError

    plugin = None
    if fail:
        with pytest.raises(ZeroDivisionError):
            train(make, max_traced=max_traced, callbacks=[Failing()])
    first = train(make, max_traced=max_traced)
    return train(lambda: first.model, max_traced=max_traced, plugin=first.plugin) if plugin is None else first


@pytest.mark.parametrize("fail", [False, True])
def test_a_plugin_may_be_used_again(fail: bool) -> None:
    traced, plain = (fit_twice(Net, max_traced=count, fail=fail) for count in (20, 0))
    assert traced.traced
    same(traced, plain)
