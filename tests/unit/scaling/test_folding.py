from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Adagrad, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, StepLR
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mp_plugin.scaling.folding import are_plain, can_skip, folding, is_foldable, may_fold


def parameters(number: int = 2) -> list[torch.nn.Parameter]:
    found = [torch.nn.Parameter(torch.ones(3)) for _ in range(number)]
    for parameter in found:
        parameter.grad = torch.full((3,), 2.0)
    return found


def sgd(**options: Any) -> SGD:
    return SGD(parameters(), lr=1.0, fused=True, **options)


class OwnStep(SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return super().step(closure)


class Named(AdamW):
    """Nothing of its own."""


@pytest.mark.parametrize("optimizer", [SGD, Adam, AdamW, Adagrad, Named])
def test_fused_ones_fold(optimizer: Any) -> None:
    assert is_foldable(optimizer(parameters(), fused=True))
    assert not is_foldable(optimizer(parameters(), foreach=True))


@pytest.mark.parametrize("optimizer", [RMSprop, ASGD])
def test_those_that_cannot_be_fused_do_not(optimizer: Any) -> None:
    assert not is_foldable(optimizer(parameters()))


def test_a_step_of_its_own_is_not_torch_s() -> None:
    assert not is_foldable(OwnStep(parameters(), fused=True))


def test_a_group_that_is_fused_no_longer_does_not_fold() -> None:
    """A state that is loaded brings settings of its own."""
    optimizer, saved = sgd(), SGD(parameters(), lr=1.0, fused=False).state_dict()
    optimizer.load_state_dict(saved)
    assert not is_foldable(optimizer)


def test_a_hook_before_the_step_looks_until_it_is_removed() -> None:
    optimizer = sgd()
    undo = optimizer.register_step_pre_hook(lambda *_: None)
    assert not is_foldable(optimizer)
    undo.remove()
    assert is_foldable(optimizer)
    everywhere = register_optimizer_step_pre_hook(lambda *_: None)
    assert not is_foldable(optimizer)
    everywhere.remove()
    assert is_foldable(optimizer)
    optimizer.register_step_post_hook(lambda *_: None)
    assert is_foldable(optimizer)


def test_torch_s_schedulers_only_notice_the_step() -> None:
    optimizer = sgd()
    ChainedScheduler([StepLR(optimizer, 1), LinearLR(optimizer)])
    assert is_foldable(optimizer)


@pytest.mark.parametrize("before", [True, False], ids=["scheduler outside", "scheduler inside"])
def test_whoever_wraps_the_step_may_look(before: bool) -> None:
    optimizer = sgd()
    if not before:
        StepLR(optimizer, 1)
    step = optimizer.step
    if before:
        optimizer.step = MethodType(lambda self, closure=None: step(closure), optimizer)  # type: ignore[method-assign]
        StepLR(optimizer, 1)
    else:
        optimizer.step = torch.compile(step, backend="eager")  # type: ignore[method-assign]
    assert hasattr(optimizer.step, "_wrapped_by_lr_sched")
    assert not is_foldable(optimizer)


PLAIN = {
    "fp32": torch.ones(2),
    "bf16": torch.ones(2, dtype=torch.bfloat16),
    "a view": torch.ones(3, 4).t(),
    "empty": torch.ones(0),
}
ODD = {
    "fp16": torch.ones(2, dtype=torch.float16),
    "fp64": torch.ones(2, dtype=torch.float64),
    "complex": torch.ones(2, dtype=torch.complex64),
    "sparse": torch.eye(2).to_sparse(),
    "a subclass": torch.ones(2).as_subclass(type("Odd", (Tensor,), {})),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_gradients(kind: str) -> None:
    assert are_plain([torch.ones(1), PLAIN[kind]])


@pytest.mark.parametrize("kind", ODD)
def test_odd_gradients(kind: str) -> None:
    assert not are_plain([torch.ones(1), ODD[kind]])


def test_what_a_fused_optimizer_divides_as_we_would() -> None:
    assert may_fold([])
    assert may_fold([torch.ones(1), torch.ones(2)])
    assert not may_fold([torch.ones(1), PLAIN["bf16"]])
    assert may_fold([torch.ones(1), PLAIN["bf16"]], divides=False)
    for divides in (True, False):
        assert not may_fold([torch.ones(1), torch.ones(2, device="meta")], divides=divides)


def test_momentum_buffers_must_be_there_before_a_step_may_be_skipped() -> None:
    assert can_skip(sgd())
    optimizer = sgd(momentum=0.9)
    assert not can_skip(optimizer)
    optimizer.step()
    assert can_skip(optimizer)
    later = parameters(1)
    optimizer.add_param_group({"params": later})
    assert not can_skip(optimizer)
    later[0].grad = None  # nothing is made for it in this step
    assert can_skip(optimizer)


@pytest.mark.parametrize("optimizer", [Adam, AdamW, Adagrad])
def test_others_may_skip_from_the_start(optimizer: Any) -> None:
    assert can_skip(optimizer(parameters(), fused=True))


OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {"weight_decay": 0.1}),
    "sgd with momentum": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, {"amsgrad": True, "weight_decay": 0.1}),
    "adamw": (AdamW, {}),
    "adagrad": (Adagrad, {"weight_decay": 0.1}),
}


def state_of(optimizer: Any) -> list[Tensor]:
    found = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    found += [value for each in optimizer.state.values() for value in each.values() if torch.is_tensor(value)]
    return [tensor.clone() for tensor in found]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skip_leaves_everything_as_it_is(name: str) -> None:
    make, options = OPTIMIZERS[name]
    optimizer = make(parameters(), fused=True, **options)
    optimizer.step()
    before = state_of(optimizer)
    assert can_skip(optimizer)
    with folding(optimizer, grad_scale=torch.tensor(2.0), found_inf=torch.tensor(1.0)):
        optimizer.step()
    torch.testing.assert_close(state_of(optimizer), before, rtol=0, atol=0)
    with folding(optimizer, grad_scale=torch.tensor(2.0), found_inf=torch.tensor(0.0)):
        optimizer.step()
    with pytest.raises(AssertionError):
        torch.testing.assert_close(state_of(optimizer), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_folded_step_is_that_of_true_gradients(name: str) -> None:
    make, options = OPTIMIZERS[name]
    folded, plain = (make(parameters(), fused=True, **options) for _ in range(2))
    for factor in (1.0, 3.0):
        for group in folded.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full((3,), 8.0 * factor)
        for group in plain.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full((3,), 2.0 * factor)
        with folding(folded, grad_scale=torch.tensor(4.0)):
            folded.step()
        plain.step()
    torch.testing.assert_close(state_of(folded), state_of(plain), rtol=0, atol=0)
    assert folded.param_groups[0]["params"][0].grad.tolist() == [6.0] * 3


def test_an_optimizer_is_left_as_it_was() -> None:
    optimizer = sgd()
    before = set(vars(optimizer))
    with folding(optimizer, grad_scale=torch.tensor(2.0)):
        assert optimizer.grad_scale == 2.0  # type: ignore[attr-defined]
    assert set(vars(optimizer)) == before
    with pytest.raises(ZeroDivisionError), folding(optimizer, grad_scale=None):
        raise ZeroDivisionError
    assert set(vars(optimizer)) == before
