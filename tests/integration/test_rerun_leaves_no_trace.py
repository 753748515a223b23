"""A step that is run again to explain it leaves no trace: the same training without any re-run ends the same."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.regression import MeanAbsoluteError

from tests.helpers.training import Regression
from tests.helpers.twins import Twin, equal, same, twins

POISONED = 3


class Average:
    """A meter as everybody writes one."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0
        self.values: list[float] = []

    def update(self, value: float) -> None:
        self.sum += value
        self.count += 1
        self.values.append(value)


@dataclass
class Progress:
    seen: int = 0
    best: dict[str, float] = field(default_factory=dict)


class Shadow:
    """A moving average of weights that is no module."""

    def __init__(self, net: nn.Module) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
        self.updates = 0

    def update(self, net: nn.Module) -> None:
        self.updates += 1
        for name, parameter in net.named_parameters():
            self.weights[name].lerp_(parameter.detach(), 0.1)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 1))


class Busy(Regression):
    """Does in its training step all that people do there."""

    def __init__(self) -> None:
        super().__init__(optimizer=torch.optim.AdamW, lr=0.01)
        self.net = network()
        self.frozen = nn.BatchNorm1d(8)
        self.teacher = network().requires_grad_(False)
        self.hidden = [network().requires_grad_(False)]  # not part of the checkpoint
        self.shadow = Shadow(self.net)
        self.mean, self.error = MeanMetric(), MeanSquaredError()
        self.collection = MetricCollection([MeanSquaredError(), MeanAbsoluteError()])
        self.unregistered = {"mean": MeanMetric()}
        self.register_buffer("queue", torch.zeros(2**23 + 64))  # 32 MiB
        self.register_buffer("numbers", torch.zeros(16, dtype=torch.long))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.register_buffer("replaced", torch.zeros(3, dtype=torch.long))
        self.register_buffer("unseen", torch.zeros(2))
        self.steps = torch.zeros(2, dtype=torch.long)
        self.history: dict[str, list[float]] = defaultdict(list)
        self.nested: dict[str, Any] = {"loss": [], "of": {"batch": deque(maxlen=3)}}
        self.kinds: Counter[str] = Counter()
        self.ordered: OrderedDict[int, float] = OrderedDict()
        self.met: set[int] = set()
        self.meter, self.progress = Average(), Progress()
        self.counts = np.zeros(4)
        self.ratio = 0.5
        self.torch_generator = torch.Generator().manual_seed(1)
        self.python_generator = random.Random(1)
        self.numpy_generator = np.random.default_rng(1)
        self.old_numpy_generator = np.random.RandomState(1)
        self.generators = [torch.Generator().manual_seed(2)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        self.frozen.eval()
        if batch_idx == POISONED:
            inputs = inputs / (inputs - inputs)
        noise = torch.rand(inputs.shape, generator=self.torch_generator)
        noise = noise + self.python_generator.random() + float(self.numpy_generator.random())
        noise = noise + float(self.old_numpy_generator.rand()) + torch.rand(1, generator=self.generators[0])
        noise = noise + random.random() + float(np.random.rand()) + torch.rand(1)
        outputs = self.net(self.frozen(inputs) + 0.01 * noise)
        loss = nn.functional.mse_loss(outputs.float(), targets)
        self._remember(loss.detach().nan_to_num(), batch_idx)
        self._measure(outputs.detach().float().nan_to_num(), targets)
        self.log("loss", loss.nan_to_num(), on_step=True, on_epoch=True, prog_bar=True)
        self.log_dict({"mean": self.mean, "error": self.error}, on_step=True, on_epoch=True)
        if self.logger is not None:
            self.logger.log_metrics({"by_hand": batch_idx}, step=self.global_step)
            self.logger.experiment.log_metrics({"directly": batch_idx}, self.global_step)
        return {"loss": loss, "outputs": outputs.detach()}

    def _remember(self, loss: Tensor, batch_idx: int) -> None:
        number = loss.item()
        self.history["loss"].append(number)
        self.nested["loss"].append(number)
        self.nested["of"]["batch"].append(batch_idx)
        self.kinds["batches"] += 1
        self.ordered[len(self.ordered)] = number
        self.met.add(batch_idx)
        self.meter.update(number)
        self.progress.seen += 1
        self.progress.best["loss"] = min(number, self.progress.best.get("loss", number))
        self.counts[batch_idx % 4] += 1
        self.ratio *= 0.9
        self.steps += 1
        self.unseen.numpy()[0] += 1  # no operator of torch
        place = int(self.pointer)
        self.queue[place * 1000 : place * 1000 + 1000] = loss
        self.numbers[place] = batch_idx + 1
        self.pointer[0] = (place + 1) % 16
        self.replaced = self.replaced + 1

    def _measure(self, outputs: Tensor, targets: Tensor) -> None:
        self.mean.update(outputs)
        self.error(outputs, targets)
        self.collection.update(outputs, targets)
        self.unregistered["mean"].update(outputs)
        with torch.no_grad():
            for copy in (self.teacher, self.hidden[0]):
                copy(targets.expand(-1, 8))
                for slow, fast in zip(copy.parameters(), self.net.parameters(), strict=True):
                    slow.lerp_(fast, 0.1)
        self.shadow.update(self.net)


@pytest.fixture(scope="module", params=["fp16", "bf16", "fp32"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Twin, Twin]:
    directory = tmp_path_factory.mktemp("csv")
    return twins(Busy, precision=request.param, directory=directory, max_epochs=2)


def test_the_training_ends_the_same(pair: tuple[Twin, Twin]) -> None:
    same(*pair)


def test_what_loggers_wrote_is_the_same(pair: tuple[Twin, Twin]) -> None:
    assert pair[0].csv == pair[1].csv
    assert "by_hand" in pair[0].csv


REMEMBERED = [
    "history nested kinds ordered met meter progress counts ratio steps",
    "torch_generator python_generator numpy_generator old_numpy_generator generators",
    "shadow hidden collection unregistered mean error",
]


@pytest.mark.parametrize("name", " ".join(REMEMBERED).split())
def test_an_attribute_of_the_module_is_the_same(pair: tuple[Twin, Twin], name: str) -> None:
    equal(*(contents(getattr(twin.model, name)) for twin in pair))


def contents(value: Any) -> Any:
    """What an object holds, in plain values and tensors."""
    if isinstance(value, torch.Generator):
        return torch.rand(3, generator=value)
    if isinstance(value, random.Random | np.random.Generator | np.random.RandomState):
        return [float(value.random()) for _ in range(3)]
    if isinstance(value, MetricCollection):
        return value.compute()
    if isinstance(value, MeanMetric | MeanSquaredError):
        return value.metric_state
    if isinstance(value, nn.Module):
        return dict(value.state_dict())
    if isinstance(value, Average | Progress | Shadow):
        return contents(vars(value))
    if isinstance(value, dict):
        return {str(key): contents(each) for key, each in value.items()}
    if isinstance(value, list | tuple | deque):
        return [contents(each) for each in value]
    return sorted(value) if isinstance(value, set) else value
