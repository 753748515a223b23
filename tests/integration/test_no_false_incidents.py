"""A thousand healthy steps full of -inf that is meant give no incident, and no planted fault is left unexplained."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision
from mp_plugin.telemetry.events import Cause
from tests.helpers.faults.batches import CLASSES, LENGTH, PADDING, TOKENS, Batch
from tests.helpers.faults.catalogue import FAULTS
from tests.helpers.faults.text import LogMask, TextBlock, TextNet
from tests.helpers.faults.training import Planted
from tests.helpers.training import quiet_trainer

STEPS = 1000


class Endless(torch.utils.data.IterableDataset[Batch]):
    """Random batches of changing size, padded."""

    def __iter__(self) -> Any:
        generator = torch.Generator().manual_seed(5)
        for index in range(STEPS):
            samples = 1 + index % 5
            tokens = torch.randint(1, TOKENS, (samples, LENGTH), generator=generator)
            lengths = torch.randint(1, LENGTH + 1, (samples, 1), generator=generator)
            tokens = torch.where(torch.arange(LENGTH) < lengths, tokens, PADDING)
            targets = torch.rand(samples, CLASSES, generator=generator)
            yield Batch(tokens, targets, torch.ones(samples))


class FullOfInfinities(Planted):
    """Masks with -inf in two ways, drops out, looks at empty tensors, and measures with log(0) where nobody learns."""

    def __init__(self) -> None:
        super().__init__(TextNet(TextBlock(attention=LogMask())))
        self.dropout = nn.Dropout(0.2)
        self.register_buffer("lowest", torch.full((CLASSES,), -torch.inf))
        self.met: set[str] = set()

    def loss(self, outputs: Tensor, targets: Tensor, knob: Tensor) -> Tensor:
        outputs = self.dropout(outputs)
        with torch.no_grad():
            zeros = (outputs == 0).to(outputs.dtype)
            entropy = torch.where(zeros > 0, zeros * zeros.log(), 0)
            if zeros.log().isinf().any():
                self.met.add("log of zero")
            assert entropy.isfinite().all()
        none = outputs[:0]
        self.met.add(f"{none.numel()} numbers")
        capped = torch.maximum(outputs.float(), self.lowest)  # type: ignore[arg-type]
        return super().loss(capped, targets, knob) + none.sum()


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_thousand_healthy_steps(precision: str) -> None:
    plugin, model = AdaptivePrecision(precision), FullOfInfinities()
    quiet_trainer(plugins=[plugin]).fit(model, DataLoader(Endless(), batch_size=None))
    assert plugin.incidents == []
    assert plugin.effective_step == STEPS
    assert model.met == {"log of zero", "0 numbers"}


def test_every_planted_fault_has_a_cause() -> None:
    """The catalogue asks for each cause there is, but for the one that says that it was not found."""
    causes = {origin.cause for fault in FAULTS for origin in fault.accepted}
    assert causes == set(Cause) - {Cause.unknown}
