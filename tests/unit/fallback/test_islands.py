import abc
import copy
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleList, Sequential
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.islands import Islands, is_island, why_no_island

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def net() -> Sequential:
    return Sequential(Linear(4, 4), Linear(4, 4), Linear(4, 2))


def islands_of(root: Module, **options: Any) -> Islands:
    return Islands(root, device_type="cpu", **options)


def run(module: Module, *args: Any, dtype: torch.dtype = BF16, **kwargs: Any) -> Any:
    with torch.autocast("cpu", dtype):
        return module(*args, **kwargs)


class Noting(Module):
    """Remembers what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Linear(4, 4)
        self.seen: list[Any] = []

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Tell."""
        self.seen.append((args, kwargs, torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))
        return {"y": (self.layer(x), 1), "ids": torch.arange(2), "given": args}


# What an island computes.


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_an_island_computes_in_fp32_between_halves(dtype: torch.dtype) -> None:
    model, x = net(), torch.randn(3, 4)
    islands_of(model).set(["1"])
    first, second, third = [(layer.weight, layer.bias) for layer in model]
    before = linear(x.to(dtype), *[part.to(dtype) for part in first])
    inside = linear(before.float(), *second)
    expected = linear(inside.to(dtype), *[part.to(dtype) for part in third])
    output = run(model, x, dtype=dtype)
    assert output.dtype is dtype
    torch.testing.assert_close(output, expected, rtol=0, atol=0)


def test_a_layer_that_overflows_in_fp16_does_not_as_an_island() -> None:
    model, x = net(), torch.ones(1, 4)
    with torch.no_grad():
        model[1].weight.fill_(3e4)
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(1e-6)
    assert not run(model, x, dtype=FP16).isfinite().all()
    islands = islands_of(model)
    islands.set(["1", "2"])
    output = run(model, x, dtype=FP16)
    assert output.isfinite().all()
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_all_that_is_below_an_island_runs_in_fp32() -> None:
    model, x = Sequential(Linear(4, 4), Sequential(Linear(4, 4), Sequential(Linear(4, 4)))), torch.randn(3, 4)
    islands_of(model).set(["1"])
    (_, inner) = model
    expected = inner(linear(x.to(BF16), model[0].weight.to(BF16), model[0].bias.to(BF16)).float())
    torch.testing.assert_close(run(model, x), expected, rtol=0, atol=0)


def test_halves_are_cast_up_by_position_and_by_keyword_and_nothing_else_is() -> None:
    model = Sequential(Noting())
    islands_of(model).set(["0"])
    half, double, ids = torch.ones(4, dtype=FP16), torch.ones(4, dtype=torch.float64), torch.arange(4)
    complex_, box = torch.ones(4, dtype=torch.complex64), object()
    with torch.autocast("cpu", BF16):
        model[0](half, half, [double, {"x": half}], ids=ids, complex_=complex_, box=box, mask=ids > 1, more=(half,))
    ((args, kwargs, autocast, _),) = model[0].seen
    assert args[0].dtype is FP32
    assert args[1][0] is double
    assert args[1][1]["x"].dtype is FP32
    assert kwargs["ids"] is ids
    assert kwargs["complex_"] is complex_
    assert kwargs["box"] is box
    assert kwargs["mask"].dtype is torch.bool
    assert kwargs["more"][0].dtype is FP32
    assert not autocast


@pytest.mark.parametrize(("output_dtype", "expected"), [(None, FP32), (BF16, BF16), (FP16, FP16)])
def test_the_output_is_fp32_or_what_was_asked_for(output_dtype: torch.dtype | None, expected: torch.dtype) -> None:
    model = Sequential(Noting())
    islands_of(model, output_dtype=output_dtype).set(["0"])
    output = model[0](torch.ones(4, dtype=BF16), torch.ones(1, dtype=torch.float64))
    assert output["y"][0].dtype is expected
    assert output["y"][1] == 1
    assert output["ids"].dtype is torch.int64
    assert output["given"][0].dtype is torch.float64


def test_what_a_layer_notes_in_a_list_that_it_was_given_is_there() -> None:
    class Auxiliary(Linear):
        def forward(self, x: Tensor, losses: list[Tensor]) -> Tensor:  # type: ignore[override]
            y = super().forward(x)
            losses.append(y.mean())
            return y

    model = Sequential(Auxiliary(4, 4))
    islands_of(model).set(["0"])
    first = torch.ones(1, dtype=BF16)
    losses = [first]
    run(model[0], torch.ones(1, 4), losses)
    assert losses[0] is first
    assert [each.dtype for each in losses] == [BF16, FP32]


# Half weights around it.


def test_tensors_are_made_in_fp32_within_an_island_of_a_half_model() -> None:
    model = Sequential(Noting())
    islands_of(model, output_dtype=BF16).set(["0"])
    torch.set_default_dtype(BF16)
    try:
        model[0](torch.ones(4, dtype=BF16))
        assert torch.get_default_dtype() is BF16
    finally:
        torch.set_default_dtype(FP32)
    assert model[0].seen[0][-1] is FP32


def test_islands_within_islands_hand_on_fp32() -> None:
    """Among half weights the inner one would cast down what the outer one needs in FP32."""
    model = Sequential(Linear(4, 4), Sequential(Linear(4, 4), Linear(4, 4)))
    model[0].bfloat16()
    islands_of(model, output_dtype=BF16).set(["1", "1.0"])
    x = torch.randn(3, 4).to(BF16)
    hidden = linear(x, model[0].weight, model[0].bias).float()
    expected = linear(linear(hidden, model[1][0].weight, model[1][0].bias), model[1][1].weight, model[1][1].bias)
    torch.testing.assert_close(model(x), expected.to(BF16), rtol=0, atol=0)


def test_a_module_called_inside_and_outside_of_an_island_is_right_in_both() -> None:
    """An embedding gets integers, which do not tell where it was called from."""

    class Tied(Module):
        def __init__(self) -> None:
            super().__init__()
            embed = torch.nn.Embedding(5, 4)
            self.encoder = Sequential(embed, Linear(4, 4))
            self.embed, self.head = embed, Linear(4, 4).bfloat16()

        def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
            return self.encoder(ids), self.head(self.embed(ids))

    model, ids = Tied(), torch.tensor([1, 3])
    islands_of(model, output_dtype=BF16).set(["encoder", "encoder.0"])
    inside, outside = model(ids)
    rows = model.embed.weight[ids]
    torch.testing.assert_close(inside, linear(rows, *model.encoder[1].parameters()).to(BF16), rtol=0, atol=0)
    torch.testing.assert_close(outside, linear(rows.to(BF16), *model.head.parameters()), rtol=0, atol=0)


# Nothing leaks.


def autocast_state() -> tuple[Any, ...]:
    kind = "cpu"
    return (
        torch.is_autocast_enabled(kind),
        torch.get_autocast_dtype(kind),
        torch.is_autocast_cache_enabled(),
        torch.get_default_dtype(),
    )


@pytest.mark.parametrize("output_dtype", [None, BF16])
def test_an_exception_leaves_no_context_behind(output_dtype: torch.dtype | None) -> None:
    class Failing(Module):
        def forward(self, x: Tensor) -> Tensor:
            raise LookupError("planted")

    model = Sequential(Failing())
    islands_of(model, output_dtype=output_dtype).set(["0"])
    with torch.autocast("cpu", BF16):
        before = autocast_state()
        for _ in range(3):
            with pytest.raises(LookupError, match="planted"):
                model(torch.ones(1, dtype=BF16))
        assert autocast_state() == before


def test_a_module_that_calls_itself() -> None:
    class Recursive(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear(4, 4)

        def forward(self, x: Tensor, depth: int) -> Tensor:
            y: Tensor = self.layer(x)
            return self(y, depth - 1) if depth else y

    model, x = Sequential(Recursive()), torch.randn(2, 4)
    islands_of(model, output_dtype=BF16).set(["0"])
    weight, bias = model[0].layer.parameters()
    expected = linear(linear(linear(x, weight, bias), weight, bias), weight, bias)
    with torch.autocast("cpu", BF16):
        before = autocast_state()
        torch.testing.assert_close(model[0](x, 2), expected.to(BF16), rtol=0, atol=0)
        assert autocast_state() == before


@pytest.mark.parametrize("cache", [True, False])
def test_a_weight_that_autocast_has_cached_in_half_is_fp32_in_an_island(cache: bool) -> None:
    """Weight of a layer outside, and of an island that is called before and after it."""
    outside, island, x = Linear(4, 4), Linear(4, 4), torch.randn(3, 4)
    island.weight = outside.weight
    islands_of(Sequential(island)).set(["0"])
    expected = linear(x, island.weight, island.bias)
    half = linear(x.to(BF16), outside.weight.to(BF16), outside.bias.to(BF16))
    with torch.autocast("cpu", BF16, cache_enabled=cache):
        for _ in range(2):
            torch.testing.assert_close(island(x), expected, rtol=0, atol=0)
            torch.testing.assert_close(outside(x), half, rtol=0, atol=0)
        assert torch.is_autocast_cache_enabled() is cache


def test_gradients_of_a_shared_weight_add_up_though_it_is_cached() -> None:
    outside, island, x = Linear(4, 4, bias=False), Linear(4, 4, bias=False), torch.randn(3, 4)
    island.weight = outside.weight
    islands_of(Sequential(island)).set(["0"])
    with torch.autocast("cpu", BF16, cache_enabled=True):
        loss = outside(x).float().sum() + island(x).sum() + outside(x).float().sum()
    loss.backward()
    weight = outside.weight.detach().clone().requires_grad_()
    cast = weight.to(BF16)
    reference = 2 * linear(x.to(BF16), cast).float().sum() + linear(x, weight).sum()
    reference.backward()
    torch.testing.assert_close(outside.weight.grad, weight.grad, rtol=1e-2, atol=1e-2)


# Undo, copies and files.


def test_undone_a_module_is_exactly_what_it_was() -> None:
    model = net()
    before = [(type(layer), dict(vars(layer))) for layer in model]
    parameters, shown = list(model.parameters()), repr(model)
    islands = islands_of(model)
    islands.set(["0", "2"])
    assert [is_island(layer) for layer in model] == [True, False, True]
    run(model, torch.ones(1, 4)).sum().backward()
    islands.set([])
    assert [(type(layer), dict(vars(layer))) for layer in model] == before
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert repr(model) == shown
    assert islands.names == ()


def test_an_island_is_still_of_its_class() -> None:
    model = Sequential(Noting())
    islands_of(model).set(["0"])
    cls = type(model[0])
    assert isinstance(model[0], Noting)
    assert (cls.__name__, cls.__qualname__, cls.__module__, cls.__doc__) == (
        Noting.__name__,
        Noting.__qualname__,
        Noting.__module__,
        Noting.__doc__,
    )
    assert cls.forward.__doc__ == Noting.forward.__doc__


def test_hooks_state_and_parameters_stay() -> None:
    model, seen = net(), []
    model[1].register_forward_hook(lambda module, args, output: seen.append((args[0].dtype, output.dtype)))
    keys = list(model.state_dict())
    islands_of(model).set(["1"])
    run(model, torch.ones(1, 4))
    assert seen == [(BF16, FP32)], "hooks see what goes in, and what comes out"
    assert list(model.state_dict()) == keys


def test_print_shows_which_modules_are_islands() -> None:
    class Own(Module):
        def __repr__(self) -> str:
            return "Own"

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Sequential(Linear(4, 2), Sequential(torch.nn.Tanh()), Own())
    islands_of(model).set(["0", "1", "2"])
    assert repr(model).splitlines() == [
        "Sequential(",
        "  (0): Linear(in_features=4, out_features=2, bias=True, fp32 island)",
        "  (1): Sequential(",
        "    fp32 island",
        "    (0): Tanh()",
        "  )",
        "  (2): Own (fp32 island)",
        ")",
    ]


def saved_and_loaded(module: Module) -> Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: Module = torch.load(file, weights_only=False)
    return loaded


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": saved_and_loaded,
}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_of_an_island_is_an_island_of_its_own(kind: str) -> None:
    model, x = net(), torch.randn(2, 4)
    islands = islands_of(model, output_dtype=FP16)
    islands.set(["1"])
    copied = COPIES[kind](model[1])
    assert type(copied) is type(model[1])
    if kind != "copy":
        with torch.no_grad():
            copied.weight.zero_()
            copied.bias.fill_(3.0)
    islands.set([])
    with torch.autocast("cpu", BF16):
        output = copied(x.to(BF16))
    expected = torch.full((2, 4), 3.0) if kind != "copy" else linear(x.to(BF16).float(), *model[1].parameters())
    torch.testing.assert_close(output, expected.to(FP16), rtol=0, atol=0)


def test_a_whole_model_with_islands_can_be_saved_and_copied() -> None:
    model, x = net(), torch.randn(2, 4)
    islands_of(model).set(["1"])
    for make in COPIES.values():
        torch.testing.assert_close(run(make(model), x), run(model, x), rtol=0, atol=0)


def test_a_slice_of_an_island_is_no_trouble() -> None:
    model = Sequential(net())
    islands_of(model).set(["0"])
    part = model[0][:2]
    assert [type(layer) for layer in part] == [Linear, Linear]


# The set.


def test_the_set_is_exchanged_as_a_whole() -> None:
    model = net()
    islands = islands_of(model)
    islands.set(["2", "0"])
    assert islands.names == ("0", "2"), "in the order of the model"
    islands.set(["1", "2"])
    assert islands.names == ("1", "2")
    assert [is_island(layer) for layer in model] == [False, True, True]


def test_a_layer_that_stays_is_not_touched() -> None:
    model = net()
    islands = islands_of(model)
    islands.set(["1"])
    cls = type(model[1])
    islands.set(["1", "2"])
    assert type(model[1]) is cls
    islands.set([])
    islands.set(["1"])
    assert type(model[1]) is cls, "else compiled code would not be found again"


@pytest.mark.parametrize("bad", ["missing", "list"])
def test_nothing_is_changed_if_one_cannot_be(bad: str) -> None:
    model = Sequential(*net(), ModuleList([Linear(4, 4)]))
    islands = islands_of(model)
    islands.set(["0"])
    with pytest.raises(UnsupportedError, match="cannot run in FP32"):
        islands.set(["1", {"missing": "7", "list": "3"}[bad]])
    assert islands.names == ("0",)
    assert [is_island(layer) for layer in model] == [True, False, False, False]


def test_nothing_is_changed_if_a_class_turns_out_not_to_swap() -> None:
    model = Sequential(Linear(4, 4), _Unique())
    islands = islands_of(model)
    with pytest.raises(UnsupportedError, match=r"Layer '1' \(_Unique\) .*its class cannot be exchanged \(no more\)"):
        islands.set(["0", "1"])
    assert islands.names == ()
    assert type(model[0]) is Linear


def test_it_can_be_asked_beforehand_what_can_be_an_island() -> None:
    model = Sequential(Linear(4, 4), _Unique(), ModuleList([Linear(4, 4)]), Linear(4, 4))
    islands = islands_of(model)
    islands.set(["3"])
    assert [islands.accepts(str(place), layer) for place, layer in enumerate(model)] == [True, False, False, True]
    assert islands.names == ("3",)
    assert [is_island(layer) for layer in model] == [False, False, False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_a_set_is_tried_for_a_block(fails: bool) -> None:
    model = net()
    islands = islands_of(model)
    islands.set(["0"])
    try:
        with islands.tried(["1"]):
            assert [is_island(layer) for layer in model] == [False, True, False]
            if fails:
                raise LookupError
    except LookupError:
        pass
    assert islands.names == ("0",)
    assert [is_island(layer) for layer in model] == [True, False, False]


def test_a_module_that_was_replaced_is_given_back() -> None:
    model = net()
    islands = islands_of(model)
    islands.set(["1", "2"])
    old, model[1] = model[1], Linear(4, 4)
    islands.set(["1"])
    assert type(old) is Linear
    assert [is_island(layer) for layer in model] == [False, True, False]
    del model[1:]
    islands.set([])
    assert type(old) is Linear


def test_a_module_that_was_removed_in_a_trial_is_given_back() -> None:
    model = net()
    islands = islands_of(model)
    islands.set(["2"])
    with islands.tried(["1", "2"]):
        last = model[2]
        del model[2]
    islands.set([])
    assert type(last) is Linear


def test_a_class_that_somebody_exchanged_meanwhile_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    class Doubled(Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = net()
    islands = islands_of(model)
    islands.set(["1"])
    parametrize.register_parametrization(model[1], "weight", Doubled())
    with caplog.at_level(logging.WARNING):
        islands.set([])
    assert "Layer '1' stays in FP32: its class was exchanged while it was an island." in caplog.text


def test_a_shared_module_is_one_island_under_its_first_name() -> None:
    shared = Linear(4, 4)
    model = Sequential(shared, shared)
    islands = islands_of(model)
    islands.set(["0"])
    assert islands.names == ("0",)
    x = torch.randn(2, 4)
    expected = linear(linear(x, *shared.parameters()), *shared.parameters())
    torch.testing.assert_close(run(model, x), expected, rtol=0, atol=0)
    with pytest.raises(UnsupportedError, match="'1' cannot run in FP32: the model has no such layer"):
        islands.set(["1"])


# Classes of all kinds.


class _Refusing(type):
    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if any(isinstance(base, _Refusing) for base in bases):
            raise TypeError("no more")
        return super().__new__(cls, name, bases, namespace)


class _Unique(Module, metaclass=_Refusing):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_a_class_that_lists_its_subclasses_does_not_learn_of_islands() -> None:
    known: dict[str, type] = {}

    class Registered(Linear):
        def __init_subclass__(cls, *, key: str) -> None:
            known[key] = cls

    class Mine(Registered, key="mine"):
        pass

    model = Sequential(Mine(4, 4))
    islands = islands_of(model)
    islands.set(["0"])
    assert is_island(model[0])
    assert known == {"mine": Mine}


def test_classes_with_slots_properties_and_an_abstract_base() -> None:
    class Abstract(Module, abc.ABC):
        __slots__ = ("note",)

        @abc.abstractmethod
        def scale(self) -> float: ...

        @property
        def twice(self) -> float:
            return 2 * self.scale()

    class Concrete(Abstract):
        def scale(self) -> float:
            return 3.0

        def forward(self, x: Tensor) -> Tensor:
            return x * self.twice

    model = Sequential(Concrete())
    model[0].note = "kept"
    islands = islands_of(model)
    islands.set(["0"])
    assert model[0](torch.ones(1, dtype=BF16)).tolist() == [6.0]
    islands.set([])
    assert type(model[0]) is Concrete
    assert model[0].note == "kept"


def test_a_parametrized_module_and_one_with_packed_input() -> None:
    weighted = torch.nn.utils.parametrizations.weight_norm(Linear(4, 4))
    model = Sequential(weighted, torch.nn.LSTM(4, 4))
    islands = islands_of(model)
    classes = [type(layer) for layer in model]
    islands.set(["0", "1"])
    x = torch.randn(3, 4)
    torch.testing.assert_close(run(model[0], x), linear(x, weighted.weight, weighted.bias), rtol=0, atol=0)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, 4, dtype=BF16), torch.ones(2, 4, dtype=BF16)])  # type: ignore[no-untyped-call]
    output, _ = model[1](packed)
    assert output.data.dtype is FP32
    islands.set([])
    assert [type(layer) for layer in model] == classes


def test_a_forward_that_is_patched_later_is_the_one_that_runs() -> None:
    class Patched(Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Sequential(Patched())
    islands_of(model).set(["0"])
    Patched.forward = lambda self, x: x + 1  # type: ignore[method-assign]
    assert model[0](torch.zeros(1)).item() == 1


# What cannot be one.


def with_own_forward() -> Module:
    layer = Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


def with_half_bias() -> Module:
    layer = Linear(4, 4)
    layer.bias = torch.nn.Parameter(layer.bias.detach().bfloat16())
    return layer


REFUSED = {
    "TorchScript has compiled it": lambda: torch.jit.trace(Linear(4, 4), torch.ones(1, 4)),
    "torch.fx has written its class": lambda: torch.fx.symbolic_trace(Linear(4, 4)),
    "has no weights before its first batch": lambda: torch.nn.LazyLinear(4),
    "is never called itself": lambda: ModuleList([Linear(4, 4)]),
    "given a forward of its own": with_own_forward,
    "its 'weight' is torch.float16, which FP32 inputs do not go with": lambda: Linear(4, 4).half(),
    "its '0.bias' is torch.bfloat16": lambda: Sequential(with_half_bias()),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_an_island_is_refused_with_the_reason(reason: str) -> None:
    model = Sequential(Linear(4, 4), REFUSED[reason]())
    with pytest.raises(UnsupportedError, match=rf"Layer '1' \(\w+\) cannot run in FP32: .*{reason}"):
        islands_of(model).set(["1"])
    assert not is_island(model[1])


def test_half_weights_are_in_order_where_the_output_is_half() -> None:
    """They are cast to FP32 before an optimizer holds them."""
    assert why_no_island(Linear(4, 4).half(), output_dtype=FP16) is None


def test_an_island_that_was_copied_or_loaded_is_taken_over() -> None:
    model = net()
    islands_of(model, output_dtype=FP16).set(["1"])
    loaded = saved_and_loaded(model)
    islands = islands_of(loaded)
    islands.set(["1"])
    assert run(loaded[1], torch.ones(1, 4)).dtype is FP32  # type: ignore[index]
    islands.set([])
    assert type(loaded[1]) is Linear  # type: ignore[index]
    assert is_island(model[1])


def test_an_island_whose_class_somebody_exchanged_is_refused() -> None:
    model = net()
    islands_of(model).set(["1"])
    model[1].__class__ = type("Mine", (type(model[1]),), {})
    with pytest.raises(UnsupportedError, match="its class was exchanged while it was an island"):
        islands_of(model).set(["1"])


def test_a_module_around_one_without_weights_yet_can_be_one() -> None:
    model = Sequential(Sequential(torch.nn.LazyLinear(2)))
    islands = islands_of(model)
    islands.set(["0"])
    assert run(model, torch.ones(1, 3)).dtype is FP32
    islands.set([])
    assert type(model[0]) is Sequential


def test_the_last_projection_of_attention_is_refused_as_it_is_never_called() -> None:
    model = Sequential(torch.nn.MultiheadAttention(4, 2))
    islands = islands_of(model)
    with pytest.raises(UnsupportedError, match="'0.out_proj' .* is never called itself"):
        islands.set(["0.out_proj"])
    islands.set(["0"])
    x = torch.randn(3, 1, 4)
    output, _ = run(model[0], x, x, x)
    islands.set([])
    torch.testing.assert_close(output, model[0](x, x, x)[0], rtol=0, atol=0)
