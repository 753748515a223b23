from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mp_plugin.telemetry import layer_probes
from mp_plugin.telemetry.layer_probes import LayerProbes, sampled_layers
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.stopwatch import Stopwatch
from tests.helpers.clock import Clock

ACTIVATION, BACK, _ = TensorKind


class Seen(list[tuple[str, TensorKind, Tensor]]):
    def take(self, layer: str, kind: TensorKind, values: Tensor) -> None:
        self.append((layer, kind, values.clone()))

    def keys(self) -> list[tuple[str, TensorKind]]:
        return [(layer, kind) for layer, kind, _ in self]


def probes_of(
    root: nn.Module, *, with_gradients: bool = True, stopwatch: Stopwatch | None = None
) -> tuple[LayerProbes, Seen]:
    seen = Seen()
    stopwatch = stopwatch or Stopwatch(torch.device("cpu"))
    probes = LayerProbes(root, sampled_layers(root), seen.take, with_gradients=with_gradients, stopwatch=stopwatch)
    return probes, seen


def test_layers_with_parameters_and_layers_that_call_none() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=-1))
            self.empty = nn.ModuleList()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * self.scale  # type: ignore[no-any-return]

    root = nn.Sequential(Block(), nn.MultiheadAttention(4, 1), nn.ModuleDict({"a": nn.Identity()}))
    assert list(sampled_layers(root)) == ["0", "0.inner.0", "0.inner.1", "1", "2.a"]


def test_outputs_and_the_gradients_that_come_back() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    probes, seen = probes_of(net)
    x = torch.randn(5, 3)
    with probes.forward():
        out = net(x)
    with probes.backward():
        out.square().sum().backward()
    assert seen.keys() == [(name, ACTIVATION) for name in "012"] + [(name, BACK) for name in "210"]
    found = {(layer, kind): values for layer, kind, values in seen}
    hidden = nn.functional.linear(x, net[0].weight, net[0].bias).detach()
    # What the first layer put out, before the next one wrote to it.
    torch.testing.assert_close(found["0", ACTIVATION], hidden)
    torch.testing.assert_close(found["2", BACK], 2 * out.detach())
    back = 2 * out.detach() @ net[2].weight.detach()
    torch.testing.assert_close(found["1", BACK], back)
    torch.testing.assert_close(found["0", BACK], back * (hidden > 0))


def test_hooks_are_there_while_it_watches_only_even_if_that_fails() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    probes, seen = probes_of(net)
    with pytest.raises(RuntimeError), probes.forward():
        net(torch.randn(5, 2))
    with probes.forward():
        assert net[0]._forward_hooks
    net(torch.randn(5, 3)).sum().backward()
    assert not net[0]._forward_hooks
    assert seen == []


def test_without_gradients_nothing_waits_for_the_backward_pass() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    probes, seen = probes_of(net, with_gradients=False)
    with probes.forward(), probes.backward():
        net(torch.randn(5, 3)).sum().backward()
    assert seen.keys() == [("0", ACTIVATION)]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_layer_counts_once(use_reentrant: bool) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    probes, seen = probes_of(net)
    x = torch.randn(5, 3, requires_grad=True)
    with probes.forward():
        out = checkpoint(net, x, use_reentrant=use_reentrant)
    with probes.backward():
        out.sum().backward()
    assert sorted(seen.keys()) == sorted((name, kind) for name in "01" for kind in (ACTIVATION, BACK))


class Pair(NamedTuple):
    first: Tensor
    rest: dict[str, Any]


def test_every_floating_point_tensor_of_an_output_is_seen() -> None:
    class Nested(nn.Module):
        def forward(self, x: Tensor) -> Pair:
            return Pair(x * 2, {"halves": [x.half()], "index": x.argmax(), "nothing": None, "mask": x > 0})

    net = nn.ModuleDict({"nested": Nested()})
    probes, seen = probes_of(net)
    with probes.forward():
        net["nested"](torch.ones(3, requires_grad=True))
    assert [values.dtype for _, _, values in seen] == [torch.float32, torch.float16]


def test_compiled_code_is_not_compiled_again_for_hooks() -> None:
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net = nn.Sequential(nn.Linear(3, 4))
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    compiled(torch.randn(5, 3))
    probes, seen = probes_of(net)
    for _ in range(2):
        with probes.forward():
            compiled(torch.randn(5, 3))
        compiled(torch.randn(5, 3))
    assert len(graphs) == 1
    assert seen == []


def test_the_time_of_hooks_counts_and_not_that_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock().instead_of_time(monkeypatch, "telemetry.stopwatch")

    class Slow(nn.Linear):
        def register_forward_hook(self, *arguments: Any, **options: Any) -> Any:
            clock.now += 1
            return super().register_forward_hook(*arguments, **options)

        def forward(self, x: Tensor) -> Tensor:
            clock.now += 100
            return super().forward(x)

    stopwatch = Stopwatch(torch.device("cpu"))
    net = nn.Sequential(Slow(3, 4), Slow(4, 2))
    probes, seen = probes_of(net, stopwatch=stopwatch)
    leaves = layer_probes.tree_leaves

    def slow_leaves(output: Any) -> list[Any]:
        clock.now += 10
        return leaves(output)

    monkeypatch.setattr(layer_probes, "tree_leaves", slow_leaves)
    with probes.forward():
        assert stopwatch.read() == 2 * 1
        net(torch.randn(5, 3))
    assert len(seen) == 2
    assert stopwatch.read() == 2 * 1 + 2 * 10
