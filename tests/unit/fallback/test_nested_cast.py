import copy
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field, fields
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from mp_plugin.fallback.nested_cast import NestedCast

FP16, BF16, FP32, FP64 = torch.float16, torch.bfloat16, torch.float32, torch.float64


def up(data: Any) -> Any:
    return NestedCast((FP16, BF16), FP32)(data)


def half() -> torch.Tensor:
    return torch.tensor([1.0, -2.5], dtype=FP16)


Pair = namedtuple("Pair", "x y")


class Typed(NamedTuple):
    x: Any
    y: Any = 1


@dataclass
class Batch:
    x: Any
    y: Any = None
    z: Any = field(init=False, default=3)


@dataclass(frozen=True)
class Frozen:
    x: Any
    y: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    x: Any
    y: Any = None


class Fancy(OrderedDict):  # type: ignore[type-arg]
    pass


class Entries(list):  # type: ignore[type-arg]
    pass


@dataclass
class ModelOutput(OrderedDict):  # type: ignore[type-arg]
    """In the manner of model libraries: a dataclass that is a dict too, without its empty fields."""

    x: Any = None
    y: Any = None

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) is not None:
                self[each.name] = getattr(self, each.name)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        super().__setattr__(key, value)

    def __reduce__(self) -> Any:
        function, _, *rest = super().__reduce__()
        return function, tuple(getattr(self, each.name) for each in fields(self)), *rest


CONTAINERS = {
    "tuple": lambda x: (1, x),
    "list": lambda x: [1, x],
    "dict": lambda x: {"x": x, "n": 1},
    "named tuple": lambda x: Pair(x, 1),
    "typed named tuple": lambda x: Typed(x),
    "ordered dict": lambda x: OrderedDict(x=x),
    "default dict": lambda x: defaultdict(list, x=x),
    "dict subclass": lambda x: Fancy(x=x),
    "user dict": lambda x: UserDict({"x": x}),
    "list subclass": lambda x: Entries([x]),
    "dataclass": lambda x: Batch(x),
    "frozen dataclass": lambda x: Frozen(x),
    "dataclass with slots": lambda x: Slotted(x),
    "model output": lambda x: ModelOutput(x=x),
    "nested": lambda x: ({"a": [Frozen((x,)), 1]},),
}


def the_tensor(data: Any) -> torch.Tensor:
    """The only tensor somewhere within, found without the code under test."""
    todo = [data]
    while todo:
        each = todo.pop()
        if isinstance(each, torch.Tensor):
            return each
        if isinstance(each, dict | UserDict):
            todo += each.values()
        elif isinstance(each, tuple | list):
            todo += each
        elif hasattr(each, "x"):
            todo.append(each.x)
    raise AssertionError(f"no tensor in {data}")


@pytest.mark.parametrize("kind", CONTAINERS)
def test_halves_are_cast_up_wherever_they_are(kind: str) -> None:
    given = CONTAINERS[kind](half())
    cast = up(given)
    assert type(cast) is type(given)
    assert the_tensor(cast).dtype is FP32
    assert the_tensor(cast).tolist() == [1.0, -2.5]
    assert the_tensor(given).dtype is FP16, "what was given is left alone"


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("dtype", [FP32, FP64, torch.complex64, torch.int64, torch.bool, torch.uint8])
def test_what_holds_no_halves_stays_the_same_object(kind: str, dtype: torch.dtype) -> None:
    given = CONTAINERS[kind](torch.ones(2, dtype=dtype))
    assert up(given) is given


@pytest.mark.parametrize("kind", CONTAINERS)
def test_torch_compile_traces_it_in_one_graph(kind: str) -> None:
    torch._dynamo.reset()  # of which it keeps eight forms of one function

    def function(data: Any) -> torch.Tensor:
        return the_tensor(up(data)) * 2

    given = CONTAINERS[kind](half())
    result = torch.compile(function, backend="eager", fullgraph=True)(given)
    assert (result.dtype, result.tolist()) == (FP32, [2.0, -5.0])


def test_a_model_output_keeps_attributes_and_keys_in_step() -> None:
    cast = up(ModelOutput(x=half()))
    assert cast["x"] is cast.x
    assert cast.x.dtype is FP32
    assert list(cast) == ["x"]
    assert cast.y is None


def test_a_packed_sequence_stays_one() -> None:
    given = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 2), torch.ones(2, 2)], enforce_sorted=False).half()  # type: ignore[no-untyped-call]
    cast = up(given)
    assert isinstance(cast, torch.nn.utils.rnn.PackedSequence)
    assert cast.data.dtype is FP32
    assert cast.batch_sizes is given.batch_sizes
    assert cast.sorted_indices is given.sorted_indices


def test_what_torch_returns_stays_what_it_is() -> None:
    cast = up(torch.max(torch.ones(2, 2, dtype=BF16), dim=0))
    assert type(cast) is torch.return_types.max
    assert cast.values.dtype is FP32
    assert cast.indices.dtype is torch.int64


@pytest.mark.parametrize(
    "value", [None, 3, 2.5, True, "x", b"x", torch.Size([2]), FP16, SimpleNamespace(x=half()), Batch, {1, 2}]
)
def test_everything_else_is_handed_on(value: Any) -> None:
    assert up(value) is value


def test_a_module_is_handed_on_though_it_is_a_dataclass() -> None:
    @dataclass(eq=False)
    class Layer(torch.nn.Module):
        x: Any = None

        def __post_init__(self) -> None:
            super().__init__()

    layer = Layer()
    layer.x = half()
    assert up(layer) is layer


def test_gradients_go_through_the_cast() -> None:
    x = half().requires_grad_()
    (up([x])[0] * 3).sum().backward()
    assert x.grad is not None
    assert (x.grad.dtype, x.grad.tolist()) == (FP16, [3.0, 3.0])


def test_a_container_that_holds_itself_is_cut() -> None:
    given: dict[str, Any] = {"x": half()}
    given["self"] = given
    cast = up(given)
    assert cast["x"].dtype is FP32
    assert cast["self"] is given


def test_a_tree_with_links_to_parents_is_walked_once_around() -> None:
    root = Batch(half())
    root.y = [Batch(half(), root) for _ in range(20)]
    assert up(root).y[7].x.dtype is FP32


class TestWhatIsPutIntoACopy:
    """A layer may note down something in a container that it was given."""

    def test_in_a_list(self) -> None:
        first, second, third = half(), half(), half()
        given = [first, second, third]
        cast = NestedCast((FP16,), FP32)
        copied = cast(given)
        copied.append("new")
        del copied[1]
        cast.write_back()
        assert given == [first, third, "new"]
        assert given[0] is first

    def test_in_a_dict(self) -> None:
        first, second = half(), half()
        given: dict[str, Any] = {"a": first, "b": second, "c": 1}
        cast = NestedCast((FP16,), FP32)
        copied = cast(given)
        copied["new"] = 5
        copied["c"] = 2
        del copied["b"]
        cast.write_back()
        assert given == {"a": first, "c": 2, "new": 5}
        assert given["a"] is first

    def test_in_a_dataclass(self) -> None:
        first = half()
        given = Batch(first)
        cast = NestedCast((FP16,), FP32)
        cast(given).y = 7
        cast.write_back()
        assert given.x is first
        assert given.y == 7

    def test_nothing_was(self) -> None:
        given = [half(), {"x": half()}]
        before = copy.copy(given)
        cast = NestedCast((FP16,), FP32)
        cast(given)
        cast.write_back()
        assert all(one is other for one, other in zip(given, before, strict=True))
        assert given[1]["x"].dtype is FP16  # type: ignore[index]

    def test_under_torch_compile(self) -> None:
        def function(losses: list[torch.Tensor]) -> torch.Tensor:
            cast = NestedCast((FP16,), FP32)
            copied = cast(losses)
            copied.append(copied[0] * 2)
            cast.write_back()
            return copied[0] * 1

        given = [half()]
        torch.compile(function, backend="eager", fullgraph=True)(given)
        assert [each.dtype for each in given] == [FP16, FP32]
