import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import Linear, Module, ModuleDict, ModuleList, ParameterList, ReLU, Sequential

from mp_plugin.fallback.layers import bears_parameters, has_forward, is_below, layers_by_name, names_of


def wrapped() -> Sequential:
    inner = Sequential(Linear(2, 2), ReLU())
    return Sequential(torch.compile(inner, backend="eager"), checkpoint_wrapper(Linear(2, 2)))  # type: ignore[arg-type, no-untyped-call]


def test_wrappers_are_seen_through() -> None:
    model = wrapped()
    layers = layers_by_name(model)
    assert list(layers) == ["0", "0.0", "0.1", "1"]
    assert layers["0"] is model[0]._orig_mod
    assert layers["1"] is model[1]._checkpoint_wrapped_module
    assert names_of(model) == {layer: [name] for name, layer in layers.items()}


def test_a_shared_module_goes_by_its_first_name_and_has_several() -> None:
    shared = Sequential(Linear(2, 2))
    model = ModuleDict({"a": shared, "b": Sequential(shared, ReLU())})
    assert list(layers_by_name(model)) == ["a", "a.0", "b", "b.1"]
    assert names_of(model)[shared] == ["a", "b.0"]
    assert names_of(model)[shared[0]] == ["a.0", "b.0.0"]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Linear(2, 2), True),
        (Sequential(), True),
        (ModuleList(), False),
        (ModuleDict(), False),
        (ParameterList(), False),
        (Module(), False),
        (torch.nn.MultiheadAttention(2, 1), True),
        (torch.nn.MultiheadAttention(2, 1).out_proj, False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_has_forward(module: Module, expected: bool) -> None:
    assert has_forward(module) is expected


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripts_and_objects_with_a_forward_of_their_own_have_one() -> None:
    own = Module()
    own.forward = lambda x: x  # type: ignore[method-assign]
    assert has_forward(own)
    assert has_forward(torch.jit.trace(ReLU(), torch.ones(1)))


def test_bears_parameters() -> None:
    assert bears_parameters(Linear(2, 2))
    assert not bears_parameters(Sequential(Linear(2, 2)))


def test_is_below() -> None:
    assert is_below("a.b", "a")
    assert is_below("a", "a")
    assert not is_below("ab", "a")
