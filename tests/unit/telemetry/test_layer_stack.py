from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from mp_plugin.telemetry.layer_stack import LayerStack


class Spy(nn.Module):
    """Writes down the layer that runs, as the stack has it."""

    stack: LayerStack
    seen: list[str]

    def forward(self, x: Tensor) -> Tensor:
        Spy.seen.append(Spy.stack.current)
        return x.sigmoid()  # saved for backward, so that a checkpoint runs it again


class Calls(nn.Module):
    """Runs a function of itself."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def layers_of(model: nn.Module, run: Callable[[Tensor], Any] | None = None) -> list[str]:
    """The layers that spies in a model saw, with all hooks gone afterwards."""
    Spy.stack, Spy.seen = LayerStack(model), []
    before = hooks_of(model)
    x = torch.ones(1, requires_grad=True)
    with Spy.stack:
        (run or model)(x)
        assert Spy.stack.current == ""
    assert hooks_of(model) == before
    return Spy.seen


def hooks_of(model: nn.Module) -> list[Any]:
    return [
        (list(module._forward_hooks), list(module._forward_pre_hooks), list(module._forward_hooks_always_called))
        for module in model.modules()
    ]


def test_every_module_goes_by_its_qualified_name() -> None:
    model = nn.Sequential(Spy(), nn.ModuleDict({"head": Spy()}), nn.Sequential(nn.Sequential(Spy())))
    seen = layers_of(model, lambda x: [model[0](x), model[1]["head"](x), model[2](x)])
    assert seen == ["0", "1.head", "2.0.0"]
    assert set(seen) <= dict(model.named_modules()).keys()


def test_what_runs_outside_of_a_submodule_belongs_to_the_one_that_called_it() -> None:
    def between(self: Calls, x: Tensor) -> Tensor:
        Spy.seen.append(Spy.stack.current)
        x = self.spy(x)
        Spy.seen.append(Spy.stack.current)
        return x

    model = nn.Sequential(Calls(between, spy=Spy()))
    assert layers_of(model) == ["0", "0.spy", "0"]


def test_a_shared_module_goes_by_the_name_below_its_caller() -> None:
    shared = Spy()
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(nn.Identity(), shared))
    assert layers_of(model) == ["0.0", "1.1"]


def test_a_module_twice_in_a_container_goes_by_both_names_in_turn_in_each_pass() -> None:
    shared = Spy()
    twice = Calls(lambda self, x: self.second(self.first(x)), first=shared, second=shared)
    once = Calls(lambda self, x: self.first(x), first=shared, second=shared)
    model = Calls(lambda self, x: self.twice(self.once(self.once(self.twice(x)))), once=once, twice=twice)
    assert layers_of(model) == [
        "twice.first",
        "twice.second",
        "once.first",
        "once.first",
        "twice.first",
        "twice.second",
    ]


def test_a_module_called_twice_has_one_name() -> None:
    assert layers_of(Calls(lambda self, x: self.spy(self.spy(x)), spy=Spy())) == ["spy", "spy"]


def test_who_calls_forward_by_itself_runs_on_behalf_of_its_caller() -> None:
    inner = nn.Sequential(Spy())
    assert layers_of(Calls(lambda self, x: self.inner.forward(x), inner=inner)) == ["inner.0"]
    assert layers_of(nn.Sequential(Calls(lambda self, x: self.spy.forward(x), spy=Spy()))) == ["0"]


def test_a_module_may_call_itself() -> None:
    def recurse(self: Calls, x: Tensor) -> Tensor:
        self.depth -= 1
        Spy.seen.append(Spy.stack.current)
        x = self(x) if self.depth else self.spy(x)
        Spy.seen.append(Spy.stack.current)
        return x

    model = Calls(lambda self, x: self.inner(x), inner=Calls(recurse, spy=Spy()))
    model.inner.depth = 3
    assert layers_of(model) == ["inner"] * 3 + ["inner.spy"] + ["inner"] * 3


def test_what_is_in_no_registry_runs_on_behalf_of_its_caller() -> None:
    hidden = {"a": Spy()}
    assert layers_of(nn.Sequential(Calls(lambda self, x: hidden["a"](x)))) == ["0"]


@pytest.mark.parametrize("wrap", [checkpoint_wrapper, lambda module: torch.compile(module, backend="eager")])
def test_wrappers_do_not_show_in_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(wrap(nn.Sequential(Spy())))
    with torch.compiler.set_stance("force_eager"):
        assert layers_of(model) == ["0.0"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
def test_a_scripted_module_is_left_alone() -> None:
    model = nn.Sequential(Spy(), torch.jit.script(nn.Sequential(nn.ReLU())))
    assert layers_of(model) == ["0"]


def test_the_stack_is_repaired_after_an_exception() -> None:
    def fail(self: Calls, x: Tensor) -> Tensor:
        raise KeyError("x")

    def forgive(self: Calls, x: Tensor) -> Tensor:
        try:
            self.inner(x)
        except KeyError:
            Spy.seen.append(Spy.stack.current)
        return self.spy(x)

    model = nn.Sequential(Calls(forgive, inner=nn.Sequential(Calls(fail)), spy=Spy()))
    assert layers_of(model) == ["0", "0.spy"]


def test_hooks_are_gone_after_an_exception_that_nobody_catches() -> None:
    def fail(self: Calls, x: Tensor) -> Tensor:
        raise KeyError("x")

    model = nn.Sequential(Calls(fail))
    stack = LayerStack(model)
    with pytest.raises(KeyError), stack:
        model(torch.ones(1))
    assert stack.current == ""
    assert hooks_of(model) == [([], [], [])] * 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_what_is_recomputed_has_its_name_again(use_reentrant: bool) -> None:
    def outer(self: Calls, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=use_reentrant)

    model = Calls(outer, inner=nn.Sequential(Spy(), nn.Sequential(Spy(), Spy())))
    seen = layers_of(model, lambda x: model(x).sum().backward())
    names = ["inner.0", "inner.1.0", "inner.1.1"]
    assert seen[:3] == names
    assert seen[3:] == names[: len(seen) - 3]
    assert len(seen) > 3


def test_hooks_of_the_user_keep_their_order_and_run_inside_their_layer() -> None:
    model = nn.Sequential(Spy())
    order: list[Any] = []
    model[0].register_forward_pre_hook(lambda *_: order.append(("before", Spy.stack.current)))
    model[0].register_forward_hook(lambda *_: order.append(("after", Spy.stack.current)))
    model[0].register_forward_hook(lambda *_: order.append(("after that", Spy.stack.current)))
    assert layers_of(model) == ["0"]
    assert order == [("before", "0"), ("after", "0"), ("after that", "0")]


def test_it_can_be_entered_again() -> None:
    model = nn.Sequential(Spy())
    stack = LayerStack(model)
    Spy.stack, Spy.seen = stack, []
    for _ in range(2):
        with stack:
            model(torch.ones(1))
    model(torch.ones(1))
    assert Spy.seen == ["0", "0", ""]


def test_the_owner_of_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(1, 1), checkpoint_wrapper(nn.Sequential(nn.Linear(1, 1))))
    weight = dict(model.named_parameters())["1._checkpoint_wrapped_module.0.weight"]
    stack = LayerStack(model)
    assert stack.owner(weight) == "1.0"
    assert stack.owner(torch.ones(1)) == ""
