"""Faults of the loss, of the data and of the weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mp_plugin.telemetry.events import Cause
from tests.helpers.faults.batches import SPOILED_SAMPLE, Batch
from tests.helpers.faults.fault import Fault, Origin, overflow, turn
from tests.helpers.faults.image import DENSE, ImageNet
from tests.helpers.faults.training import Planted

ANY = frozenset({"nan", "inf"})


class SummedLoss(Planted):
    """Sums in fp16; the knob weighs the samples."""

    def loss(self, outputs: Tensor, targets: Tensor, knob: Tensor) -> Tensor:
        weighted = outputs.abs() * knob.to(outputs.dtype)[:, None]
        return weighted.sum()  # culprit: loss-sum


class LargeLoss(Planted):
    """Adds an exponential that fp32 can just hold; its gradient in itself is of no size."""

    def loss(self, outputs: Tensor, targets: Tensor, knob: Tensor) -> Tensor:
        loss = super().loss(outputs, targets, knob)
        return loss + torch.exp(knob.mean() + 1e-34 * loss)


class Frozen(Planted):
    """Its stem is normalised by the statistics of another training."""

    def forward(self, inputs: Tensor, knob: Tensor) -> Tensor:
        self.net.stem[1].eval()  # type: ignore[index, union-attr]
        return super().forward(inputs, knob)


def _put(value: float) -> Callable[[Batch], Batch]:
    def spoil(batch: Batch) -> Batch:
        inputs = batch.inputs.clone()
        inputs[SPOILED_SAMPLE, 0, 4, 4] = value
        return batch._replace(inputs=inputs)

    return spoil


def _unspoiled(batch: Batch) -> Batch:
    return batch


@torch.no_grad()
def _lose_weight(model: Planted) -> None:
    weight: nn.Parameter = model.get_parameter(f"{DENSE}.up.weight")
    weight[3, 5] = math.nan


@torch.no_grad()
def _lose_statistics(model: Planted) -> None:
    model.get_buffer("net.stem.1.running_mean")[2] = math.nan


FAULTS = (
    Fault(
        name="loss-sum",
        make=lambda: SummedLoss(ImageNet()),
        healthy_knob=2**-8,
        spoil=turn(5e3, all_samples=True),
        accepted=overflow("sum.default", "sum.dim_IntList", marker="loss-sum"),
    ),
    Fault(
        name="scaled-loss",
        make=lambda: LargeLoss(ImageNet()),
        healthy_knob=0.0,
        spoil=turn(85.0, all_samples=True),
        cured=True,
        # It is the plugin that multiplies: nobody else's line.
        accepted=(Origin(cause=Cause.loss, direction=None, kinds=ANY),),
    ),
    Fault(
        name="nan-sample",
        make=lambda: Planted(ImageNet()),
        spoil=_put(math.nan),
        accepted=(Origin(cause=Cause.data, direction=None, kinds=frozenset({"nan"}), evidence=(SPOILED_SAMPLE,)),),
    ),
    Fault(
        name="inf-sample",
        make=lambda: Planted(ImageNet()),
        spoil=_put(math.inf),
        precision="bf16",
        accepted=(Origin(cause=Cause.data, direction=None, kinds=ANY, evidence=(SPOILED_SAMPLE,)),),
    ),
    Fault(
        name="nan-weight",
        make=lambda: Planted(ImageNet()),
        spoil=_unspoiled,
        strike=_lose_weight,
        stops_the_run=True,
        accepted=(
            Origin(cause=Cause.weights, direction=None, kinds=frozenset({"nan"}), evidence=(f"{DENSE}.up.weight",)),
        ),
    ),
    Fault(
        name="nan-statistics",
        make=lambda: Frozen(ImageNet()),
        spoil=_unspoiled,
        strike=_lose_statistics,
        stops_the_run=True,
        accepted=(
            Origin(
                cause=Cause.weights,
                direction=None,
                kinds=frozenset({"nan"}),
                evidence=("net.stem.1.running_mean",),
            ),
        ),
    ),
)
