"""Islands where models are checkpointed, compiled and shared, against FP32 and half arithmetic written out by hand."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Linear, Module, Sequential
from torch.nn.functional import linear, mse_loss
from torch.utils.checkpoint import checkpoint

from mp_plugin.fallback.fp32_weights import kept_in_fp32
from mp_plugin.fallback.islands import Islands

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32

CHECKPOINTING = {"none": None, "reentrant": True, "non-reentrant": False}


class Blocks(Module):
    """Three blocks of two layers; `block` may be called several times, and recomputed in the backward pass."""

    def __init__(self, *, shared: bool, reentrant: bool | None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = Linear(6, 6)
        self.block = Sequential(Linear(6, 6), torch.nn.Tanh(), Linear(6, 6))
        self.other = self.block if shared else Sequential(Linear(6, 6), torch.nn.Tanh(), Linear(6, 6))
        self.last = Linear(6, 1)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in (self.block, self.other, self.block):
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)  # type: ignore[no-untyped-call]
        out: Tensor = self.last(x)
        return out


def by_hand(model: Blocks, x: Tensor, dtype: torch.dtype, islands: set[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients, in plain operators with every cast written out."""
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def layer(name: str, x: Tensor, fp32: bool) -> Tensor:
        kind = FP32 if fp32 else dtype
        return linear(x.to(kind), weights[f"{name}.weight"].to(kind), weights[f"{name}.bias"].to(kind))

    def block(name: str, x: Tensor) -> Tensor:
        whole = name in islands
        x = layer(f"{name}.0", x, whole or f"{name}.0" in islands)
        return layer(f"{name}.2", x.tanh(), whole or f"{name}.2" in islands)

    x = layer("first", x, "first" in islands)
    for name in ("block", "block" if model.other is model.block else "other", "block"):
        x = block(name, x)
    output = layer("last", x, "last" in islands)
    mse_loss(output.float(), torch.ones_like(output, dtype=FP32)).backward()
    return output.detach(), {name: weight.grad for name, weight in weights.items() if weight.grad is not None}


def ours(model: Module, x: Tensor, dtype: torch.dtype, **options: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", dtype, **options):
        before = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled())
        output = model(x)
        loss = mse_loss(output.float(), torch.ones_like(output, dtype=FP32))
        assert before == (True, torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled())
        assert torch.get_autocast_dtype("cpu") is dtype
    loss.backward()
    assert not torch.is_autocast_enabled("cpu")
    gradients = {name.replace("_orig_mod.", ""): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), {name: gradient.clone() for name, gradient in gradients.items()}


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


SETS = [set(), {"block"}, {"block.2", "last"}]


# torch.compile does not trace reentrant checkpointing, and keeps no cache of weights.
CASES = {
    "eager": ("none", "reentrant", "non-reentrant"),
    "eager, cached": ("none", "reentrant", "non-reentrant"),
    "compiled": ("none", "non-reentrant"),
}


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize(("how", "checkpointing"), [(how, each) for how, kinds in CASES.items() for each in kinds])
def test_checkpointed_compiled_and_shared(how: str, checkpointing: str, shared: bool) -> None:
    """The set changes between steps, back and forth."""
    model = Blocks(shared=shared, reentrant=CHECKPOINTING[checkpointing])
    called: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if how == "compiled" else model
    islands, x = Islands(model, device_type="cpu"), torch.randn(5, 6)
    cached = how == "eager, cached"
    for names in [*SETS, *SETS]:
        islands.set(names)
        expected, expected_gradients = by_hand(model, x, BF16, names)
        output, gradients = ours(called, x, BF16, cache_enabled=cached)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        assert gradients.keys() == expected_gradients.keys()
        # From one cast of a weight that is used several times, gradients are added up in half; compiled, too.
        tolerance = {"rtol": 1e-6, "atol": 1e-7} if how == "eager" else {"rtol": 2e-2, "atol": 1e-3}
        for name, gradient in gradients.items():
            assert gradient.isfinite().all()
            torch.testing.assert_close(gradient, expected_gradients[name], **tolerance)
    islands.set([])
    assert all(type(layer) in (Blocks, Linear, Sequential, torch.nn.Tanh) for layer in model.modules())


def test_one_compilation_per_set_and_none_for_a_set_seen_before() -> None:
    model = Blocks(shared=False, reentrant=None)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    islands, x = Islands(model, device_type="cpu"), torch.randn(5, 6)
    graphs = []
    for names in [(), ("last",), ("last",), (), ("block", "last"), ("last",), (), ("block", "last"), ("first",)]:
        islands.set(names)
        for _ in range(2):
            with torch.autocast("cpu", BF16):
                compiled(x)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == [1, 2, 2, 2, 3, 3, 3, 3, 4]
    assert not counters["graph_break"]


def test_compiled_parts_of_a_model_are_compiled_once_more_only_where_the_set_changed() -> None:
    model = Sequential(
        torch.compile(Linear(4, 4), backend="eager"), torch.compile(Sequential(Linear(4, 4)), backend="eager")
    )  # type: ignore[arg-type]
    islands, x = Islands(model, device_type="cpu"), torch.randn(2, 4)
    graphs = []
    for names in [(), ("0",), ("1.0",), ("0", "1")]:
        islands.set(names)
        # Without gradients: torch warns of the one that the second part's input has not.
        with torch.autocast("cpu", BF16), torch.no_grad():
            assert model(x).dtype is (FP32 if {"1", "1.0"} & set(names) else BF16)
        graphs.append(counters["stats"]["unique_graphs"])
    # The second time a new input format comes along too: the first layer hands on FP32.
    assert graphs == [2, 4, 5, 6]


def test_nested_arguments_are_traced_in_one_graph() -> None:
    class Inner(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Linear(4, 4)

        def forward(self, data: dict[str, Any], *, extra: tuple[Tensor, ...]) -> dict[str, Any]:
            return {"y": [self.layer(data["x"][0]) + extra[0]], "n": data["n"]}

    class Outer(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner = Linear(4, 4), Inner()

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            output = self.inner({"x": [x], "n": 3}, extra=(x,))
            result: Tensor = output["y"][0] * output["n"]
            return result

    model, x = Outer(), torch.randn(2, 4)
    Islands(model, device_type="cpu").set(["inner"])
    with torch.autocast("cpu", BF16):
        output = torch.compile(model, backend="eager", fullgraph=True)(x)
    half = linear(x.to(BF16), model.first.weight.to(BF16), model.first.bias.to(BF16)).float()
    torch.testing.assert_close(output, (linear(half, *model.inner.layer.parameters()) + half) * 3, rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("checkpointing", ["none", "non-reentrant"])
def test_half_weights_around_islands(checkpointing: str, compiled: bool) -> None:
    """In a default dtype of bf16, as in `bf16-true`; outside of it the backward pass, which computes once more."""
    model, x = Blocks(shared=True, reentrant=CHECKPOINTING[checkpointing]), torch.randn(5, 6)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with kept_in_fp32(model, ["block"]):
        model.bfloat16()
    Islands(model, device_type="cpu", output_dtype=BF16).set(["block"])
    called: Any = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    torch.set_default_dtype(BF16)
    try:
        output = called(x.bfloat16())
    finally:
        torch.set_default_dtype(FP32)
    output.float().sum().backward()

    halves = {name: w if name.startswith("block") else w.to(BF16) for name, w in weights.items()}
    expected = linear(x.bfloat16(), halves["first.weight"], halves["first.bias"])
    for _ in range(3):
        inner = linear(expected.float(), halves["block.0.weight"], halves["block.0.bias"]).tanh()
        expected = linear(inner, halves["block.2.weight"], halves["block.2.bias"]).to(BF16)
    expected = linear(expected, halves["last.weight"], halves["last.bias"])
    torch.testing.assert_close(output.detach(), expected, rtol=0, atol=0)
    assert {p.grad.dtype for p in model.block.parameters() if p.grad is not None} == {FP32}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_backward_pass_that_computes_once_more_in_another_thread() -> None:
    model, x = Blocks(shared=False, reentrant=False), torch.randn(5, 6)
    Islands(model, device_type="cpu").set(["block"])
    expected, expected_gradients = by_hand(model, x, BF16, {"block"})
    with torch.autocast("cpu", BF16):
        loss = mse_loss(model(x).float(), torch.ones(5, 1))
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected_gradients[name], rtol=1e-6, atol=1e-7)


def test_an_exception_in_a_recomputation_leaves_nothing_behind() -> None:
    """Non-reentrant checkpointing stops a recomputation by an exception as soon as it has what it needs."""
    model, x = Sequential(Linear(4, 4), Linear(4, 4), torch.nn.Tanh(), torch.nn.Identity()), torch.randn(2, 4)
    Islands(model, device_type="cpu").set(["1", "2", "3"])
    for _ in range(3):
        with torch.autocast("cpu", BF16):
            output = checkpoint(model, x, use_reentrant=False)  # type: ignore[no-untyped-call]
            output.sum().backward()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_autocast_dtype("cpu") is BF16
            assert linear(x, model[0].weight).dtype is BF16
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_culprit_in_fp16_is_cured_under_checkpointing(use_reentrant: bool) -> None:
    """Its gradient would be NaN: the recomputation runs in FP32 too."""
    model = Sequential(Linear(4, 4), Linear(4, 4), torch.nn.Softmax(-1))
    with torch.no_grad():
        model[1].weight.fill_(4e4)
    x = torch.ones(2, 4, requires_grad=True)

    def finite() -> bool:
        model.zero_grad()
        with torch.autocast("cpu", FP16):
            output = checkpoint(model, x, use_reentrant=use_reentrant)  # type: ignore[no-untyped-call]
            output.float().square().sum().backward()
        return all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())

    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert not finite()
    islands = Islands(model, device_type="cpu")
    islands.set(["1"])
    assert finite()
    islands.set([])
    assert not finite()
