"""What a trace is turned into; whole trainings with known culprits are in tests/integration/test_planted_faults.py."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_plugin.finding import Finding, _describe
from mp_plugin.step_start import MicroBatch
from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.trace import Trace


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
        self.elsewhere = [torch.zeros(2)]

    def forward(self, inputs: Tensor) -> Any:
        return self.layer(inputs - self.mean + self.elsewhere[0])


def find(net: Net, batch: Any) -> Finding | None:
    with LayerStack(net) as layers, Trace(layers) as trace:
        loss = net(batch["inputs"]).sum()
    return _describe(net, trace, MicroBatch(batch, 4), [loss])  # type: ignore[arg-type]


def batch_of(*numbers: float) -> dict[str, Tensor]:
    return {"inputs": torch.tensor([numbers])}


def test_an_operator_that_made_it() -> None:
    net = Net()
    nn.init.ones_(net.layer.weight)
    found = find(net, batch_of(3e38, 3e38))
    assert found is not None
    assert (found.batch_idx, found.there_before, found.is_vague) == (4, None, False)
    assert (found.origin["operator"], found.origin["layer"]) == ("aten.addmm.default", "layer")
    assert (found.origin["kind"], found.origin["direction"]) == ("inf", Direction.forward)
    assert "overflow" in found.origin["reason"]


@pytest.mark.parametrize(
    ("place", "there_before", "name", "reason"),
    [
        ("batch", "batch", "batch['inputs']", "batch['inputs'] holds nan"),
        ("weight", "weights", "layer.weight", "layer.weight was nan before the step"),
        ("buffer", "weights", "mean", "mean was nan before the step"),
        ("elsewhere", None, None, "a tensor that was not finite before the step"),
    ],
)
def test_a_number_that_was_there_before(place: str, there_before: str, name: str, reason: str) -> None:
    net, batch = Net(), batch_of(1.0, 1.0)
    places = {"batch": batch["inputs"], "weight": net.layer.weight, "buffer": net.mean, "elsewhere": net.elsewhere[0]}
    places[place].data.view(-1)[0] = torch.nan
    found = find(net, batch)
    assert found is not None
    assert (found.there_before, found.name, found.origin["reason"]) == (there_before, name, reason)
    assert found.origin["kind"] == "nan"
    assert found.is_vague == (there_before is None)


def test_a_finite_loss_has_no_origin() -> None:
    assert find(Net(), batch_of(1.0, 1.0)) is None


def test_what_was_made_here_comes_before_what_came_from_nowhere() -> None:
    """As with sharded gradients: the sum over the ranks comes back through memory that nobody was seen to write."""
    net = Net()
    received = torch.full((1,), torch.nan)
    with LayerStack(net) as layers, Trace(layers) as trace:
        sent = torch.full((1,), 1e38) * 1e38
        gradient = received * 1
    found = _describe(net, trace, MicroBatch(batch_of(1.0), 0), [gradient])  # type: ignore[arg-type]
    assert sent.isinf()
    assert found is not None
    assert (found.origin["operator"], found.origin["kind"], found.is_vague) == ("aten.mul.Tensor", "inf", False)
