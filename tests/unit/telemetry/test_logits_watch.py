"""Which call of a step makes the logits."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss, Linear, Module, ModuleDict, Sequential
from torchmetrics.classification import MulticlassAccuracy

from mp_plugin.telemetry.logits_watch import LogitsWatch

INPUTS, CLASSES = torch.ones(3, 2), torch.tensor([0, 1, 2])


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = ModuleDict({"body": Sequential(Linear(2, 4), Linear(4, 4)), "head": Linear(4, 5)})
        self.loss = CrossEntropyLoss(reduction="none")
        self.accuracy = MulticlassAccuracy(5, average=None)
        self.made: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.made.append(self.parts["head"](self.parts["body"](inputs)))
        return self.made[-1]

    def by_itself(self) -> Any:
        return self.loss(self(INPUTS), CLASSES).mean()

    def by_its_parts(self) -> Any:
        logits = self.forward(INPUTS)
        self.accuracy(logits, CLASSES)
        return self.loss(logits, CLASSES).mean()

    def by_itself_first(self) -> Any:
        logits = self(INPUTS)
        self.parts["body"](INPUTS)
        return logits

    def twice(self) -> Any:
        self(torch.zeros(3, 2))
        return self(INPUTS)

    def without_calls(self) -> Any:
        self.made.append(INPUTS)


@pytest.mark.parametrize("step", ["by_itself", "by_its_parts", "by_itself_first", "twice"])
def test_the_logits_are_found(step: str) -> None:
    net = Net()
    watch = LogitsWatch(net)
    with watch:
        getattr(net, step)()
    assert watch.logits is net.made[-1]


def test_there_may_be_none() -> None:
    net = Net()
    watch = LogitsWatch(net)
    with watch:
        net.without_calls()
    assert watch.logits is None


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_hooks(fails: bool) -> None:
    net = Net()
    with pytest.raises(RuntimeError, match="shape") if fails else LogitsWatch(net), LogitsWatch(net):
        net(torch.ones(3, 9) if fails else INPUTS)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())


def test_a_call_that_failed_does_not_count_as_around_the_next() -> None:
    net = Net()
    watch = LogitsWatch(net)
    with watch:
        with pytest.raises(RuntimeError, match="shape"):
            net(torch.ones(3, 9))
        logits = net.parts["head"](torch.ones(3, 4))
    assert watch.logits is logits
