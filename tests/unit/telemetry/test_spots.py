"""Backward operators against torch's anomaly mode, which records the line of each node's forward by itself."""

import re
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.spots import Ran, Spots

THIS = re.escape(__file__)


class Watch(TorchDispatchMode):
    """Asks for the spot of every operator; of a backward operator also anomaly mode for its line."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.layers = LayerStack(model)
        self.spots = Spots(self.layers)
        self.direction = Direction.forward
        self.ran: list[tuple[str, Ran]] = []
        self.recorded: list[int | None] = []

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = sys._getframe(1)
        self.spots.note(frame)
        self.ran.append((str(operator), self.spots.where(self.direction, frame)))
        self.recorded.append(recorded_line() if self.direction is Direction.backward else None)
        return operator(*args, **(kwargs or {}))


def recorded_line() -> int | None:
    """The innermost line of this file at which anomaly mode saw the current node being made."""
    node = torch._C._current_autograd_node()
    if node is None or hasattr(node, "variable"):  # what adds up gradients ran in no line of the forward pass
        return None
    text = "".join(node.metadata.get("traceback_", []))
    lines = re.findall(rf'File "{THIS}", line (\d+)', text)
    return int(lines[-1]) if lines else None


def line_of(ran: Ran) -> int | None:
    return None if ran.location is None else int(ran.location.partition(" in ")[0].rpartition(":")[2])


def watch(model: nn.Module, x: Tensor) -> Watch:
    mode = Watch(model)
    with torch.autograd.set_detect_anomaly(True, check_nan=False), mode.layers, mode:
        loss = model(x)
        mode.direction = Direction.backward
        loss.backward()
    return mode


class Net(nn.Module):
    def __init__(self, run: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.linear = nn.Linear(4, 4)
        self.norm = nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4))
        self.conv = nn.Conv1d(1, 2, 3, padding=1)
        self.rnn = nn.GRU(4, 4)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def plain(net: Net, x: Tensor) -> Tensor:
    x = net.linear(x)
    x = net.norm(x)
    y = torch.tanh(x) * x
    return (
        y.exp()
        .mean()
    )  # fmt: skip


def convolved(net: Net, x: Tensor) -> Tensor:
    x = net.conv(x.unsqueeze(1))
    x = F.max_pool1d(x, 2)
    return F.gelu(x).square().sum()


def recurrent(net: Net, x: Tensor) -> Tensor:
    y, _ = net.rnn(x)
    return y.std()


def attended(net: Net, x: Tensor) -> Tensor:
    y, weights = net.attention(x, x, x)
    z = F.scaled_dot_product_attention(y, y, y)
    return z.sum() + weights.var()


def in_place(net: Net, x: Tensor) -> Tensor:
    x = net.linear(x).clone()
    x[0].mul_(2)
    x[:, 1] = x[:, 2].exp()
    x.relu_()
    first, second = x.chunk(2)
    return (first * second.sigmoid()).sum()


def indexed(net: Net, x: Tensor) -> Tensor:
    x = net.linear(x)
    y = x[torch.tensor([0, 1, 1])]
    z = torch.where(y > 0, y, y.expm1())
    z = z.scatter_add(0, torch.zeros(1, 4, dtype=torch.long), x[:1])
    return torch.cat([z, x]).logsumexp(0).sum()


def mixed(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = net.linear(x)
        x = F.softmax(x, dim=-1)
        return F.cross_entropy(x, x.argmax(-1))


def without_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        factor = net.linear(x)
    x = net.linear(x)
    return (x * factor.detach()).sum()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize(
    "run",
    [plain, convolved, recurrent, attended, in_place, indexed, mixed, without_gradient],
    ids=lambda run: run.__name__,
)
def test_a_backward_operator_is_known_by_the_line_of_its_forward(run: Callable[[Net, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    mode = watch(Net(run), torch.randn(4, 4))
    first, last = run.__code__.co_firstlineno, max(line for _, _, line in run.__code__.co_lines() if line)
    told = 0
    for (operator, ran), expected in zip(mode.ran, mode.recorded, strict=True):
        if expected is not None and first <= expected <= last:
            assert (operator, line_of(ran), ran.direction) == (operator, expected, Direction.backward)
            told += 1
    assert told >= 4


def test_layers_of_both_passes_agree() -> None:
    torch.manual_seed(0)
    mode = watch(Net(plain), torch.randn(4, 4))
    layers = {direction: {ran.layer for _, ran in mode.ran if ran.direction is direction} for direction in Direction}
    assert layers[Direction.forward] == layers[Direction.backward] == {"", "linear", "norm.0", "norm.1"}


def test_what_adds_up_gradients_belongs_to_the_owner_of_the_parameter() -> None:
    net = Net(lambda net, x: net.linear(x).sum())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    mode = Watch(net)
    with mode.layers:
        loss = net(torch.ones(4, 4))
        with mode:
            mode.direction = Direction.backward
            loss.backward()
    adds = [ran for operator, ran in mode.ran if operator == "aten.add_.Tensor"]
    assert adds == [Ran("linear", None, Direction.backward)] * 2


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_operators_belong_to_the_forward_pass(use_reentrant: bool) -> None:
    def run(net: Net, x: Tensor) -> Tensor:
        return checkpoint(nn.Sequential(net.linear, nn.Sigmoid()), x, use_reentrant=use_reentrant).sum()

    mode = Watch(net := Net(run))
    with mode.layers, mode:
        loss = net(torch.ones(4, 4, requires_grad=True))
        mode.direction = Direction.backward
        loss.backward()
    products = [(ran.layer, ran.direction.value) for operator, ran in mode.ran if operator == "aten.addmm.default"]
    assert products == [("linear", "forward")] * 2
    products = [(ran.layer, ran.direction.value) for operator, ran in mode.ran if operator == "aten.mm.default"]
    assert products == [("linear", "backward")] * 2


def test_what_made_a_tensor() -> None:
    net = Net(lambda net, x: net.linear(x).view(-1)[0])
    mode = Watch(net)
    with mode.layers, mode:
        x = torch.ones(4, 4, requires_grad=True)
        y = (
            net.linear(x)
        )  # fmt: skip
        assert mode.spots.made_at(y)[0] == "linear"
        assert (mode.spots.made_at(y)[1] or "").endswith("in test_what_made_a_tensor")
        assert mode.spots.made_at(x) == ("", None)


def test_each_thread_counts_its_nodes_for_itself() -> None:
    """In the backward pass of a GPU, which has its own thread, numbers come again."""
    mode = Watch(nn.Identity())
    x = torch.ones(1, requires_grad=True)
    with mode:
        here = x.exp()
    found = []

    def elsewhere() -> None:
        other = torch.ones(1, requires_grad=True)
        while torch.autograd._get_sequence_nr() < here.grad_fn._sequence_nr():
            _ = other * 1  # a node of its own: a chain of as many would be too deep to take down
        mode.direction = Direction.backward
        with mode:
            other = other.log()
            line = sys._getframe().f_lineno - 1
            assert other.grad_fn._sequence_nr() == here.grad_fn._sequence_nr()
            other.backward()
        (ran,) = (ran for operator, ran in mode.ran if operator == "aten.div.Tensor")
        found.append((line_of(ran) == line, mode.spots.made_at(here)))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [(True, mode.spots.made_at(here))]
    assert "in test_each_thread" in str(found[0][1])
