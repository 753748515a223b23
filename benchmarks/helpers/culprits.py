"""Six models with planted culprits, on real data, trained in fp16 and in FP32.

Five are the test suite's own, whose smallest set of layers is proved there with torch alone; the sixth has layers that
are large inside and harmless beside its culprit. Images are scikit-learn's scanned digits. Tokens are eight characters
of the Python reference; what comes next is to be guessed: one of the nine most frequent characters, or another one.
"""

import contextlib
import io
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests are no installed package

from mp_plugin import AdaptivePrecision
from tests.helpers.faults.batches import CLASSES, LENGTH, TOKENS, Batch
from tests.helpers.faults.fp32 import LARGE, FP32Fault, Inner, Layer, fp32_fault
from tests.helpers.faults.networks import Transformer
from tests.helpers.faults.training import Planted
from tests.helpers.training import quiet_trainer

BATCH_SIZE = 16
FIRST, EVERY = 20, 50
"""The batches that go wrong: the first one, and how many steps from one to the next."""
HELD_OUT = 512


class Loud(Layer):
    """Has numbers in the thousands inside, all of which fp16 holds."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x * 2.0**10) / 2.0**10


AMONG_LARGE = FP32Fault(
    name="transformer: one among large",
    network=Transformer,
    planted={**{f"blocks.{index}.mlp.fc1": Loud for index in (1, 4, 8, 10)}, "blocks.7.attn.proj": Inner},
    gain=LARGE,
    culprits=("net.blocks.7.attn.proj",),
    origin="net.blocks.7.attn.proj",
)
MODELS = (
    fp32_fault("mlp: seen later"),
    fp32_fault("mlp: backward"),
    fp32_fault("cnn: two that interact"),
    fp32_fault("transformer: two"),
    fp32_fault("transformer: shared"),
    AMONG_LARGE,
)


class Outcome(NamedTuple):
    """What came of a training."""

    plugin: AdaptivePrecision
    loss: float
    """Of held-out samples, in FP32."""


def train(model: FP32Fault, plugin: AdaptivePrecision, *, seed: int, steps: int) -> Outcome:
    """Train from a seed, on the batches of that seed, some of which go wrong."""
    planted = model.make(seed)
    data = DataLoader(batches(model, seed=seed, steps=steps), batch_size=None)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()):  # the summary at the end of a fit
        quiet_trainer(plugins=[plugin]).fit(planted, data)
    return Outcome(plugin, held_out_loss(model, planted))


def num_wrong(steps: int) -> int:
    """Return how many batches of a training go wrong."""
    return len(range(FIRST, steps, EVERY))


def batches(model: FP32Fault, *, seed: int, steps: int) -> list[Batch]:
    """Return the batches of a training."""
    inputs, targets = samples(model.inputs)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(HELD_OUT, len(inputs), (steps, BATCH_SIZE), generator=generator)
    wrong = range(FIRST, steps, EVERY)
    return [
        Batch(inputs[each], targets[each], torch.full((BATCH_SIZE,), model.gain if step in wrong else 1.0))
        for step, each in enumerate(rows)
    ]


@torch.no_grad()
def held_out_loss(model: FP32Fault, planted: Planted) -> float:
    """Return the loss of samples that no training sees."""
    inputs, targets = (each[:HELD_OUT] for each in samples(model.inputs))
    knob = torch.ones(HELD_OUT)
    return planted.eval().loss(planted(inputs, knob), targets, knob).item()


def samples(kind: str) -> tuple[Tensor, Tensor]:
    """Return all inputs of a kind with their classes, in an order that does not matter."""
    inputs, classes = {"images": _digits, "tokens": _characters}[kind]()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    return inputs[order], one_hot(classes[order], CLASSES).float()


@cache
def _digits() -> tuple[Tensor, Tensor]:
    digits: Any = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)


@cache
def _characters() -> tuple[Tensor, Tensor]:
    text = "".join(topics[name] for name in sorted(topics)).lower()[:100_000]
    frequent = [character for character, _ in Counter(text).most_common(TOKENS - 2)]
    # 0 is padding, and all rare characters share the last token.
    tokens = torch.tensor([frequent.index(each) + 1 if each in frequent else TOKENS - 1 for each in text])
    windows = tokens.unfold(0, LENGTH + 1, 1)
    return windows[:, :-1], (windows[:, -1] - 1).clamp(max=CLASSES - 1)
