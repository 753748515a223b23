"""Faults that only the backward pass shows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mp_plugin.telemetry.events import Cause, Direction
from tests.helpers.faults.fault import Fault, Origin, one, overflow, turn
from tests.helpers.faults.image import CHANNELS, CONV, DENSE, MATMULS, WIDTH, ZERO, ConvBlock, Dense, ImageNet, column
from tests.helpers.faults.training import Planted, constant

BACKWARD: dict[str, Any] = {"cause": Cause.backward, "direction": Direction.backward}


class Weighted(Planted):
    """Weighs each sample's loss by its knob."""

    def loss(self, outputs: Tensor, targets: Tensor, knob: Tensor) -> Tensor:
        outputs = outputs.float()  # culprit: gradient-cast
        return ((outputs - targets).square().mean(dim=-1) * knob).mean()


class Heavy(Dense):
    """Small numbers times large weights; backward, scaled gradients times large weights."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy = constant(nn.Linear(WIDTH, WIDTH), 1000)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x) * 1e-3
        return self.heavy(x)  # culprit: heavy


class HeavyConv(ConvBlock):
    def __init__(self) -> None:
        super().__init__()
        self.heavy = constant(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), 1000)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = torch.sigmoid(self.conv(self.norm(x))) * 1e-3
        return self.heavy(x)  # culprit: heavy-conv


class Amplify(torch.autograd.Function):
    """The identity, whose backward multiplies the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (factor,) = ctx.saved_tensors
        return gradient * factor, None


class Amplified(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        return Amplify.apply(x, column(knob, x))  # type: ignore  # culprit: custom-function


class RootOfVariance(Dense):
    """A norm with an epsilon that comes too late: the root has no slope at zero."""

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        x = x - x.mean(dim=-1, keepdim=True)
        variance = x.square().mean(dim=-1, keepdim=True)
        return x / (variance.sqrt() + 1e-3)  # culprit: root-of-variance


class MaskedLog(Dense):
    """The logarithm of zero is masked; in backward its gradient of zero is divided by zero."""

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        log = torch.log(x)  # culprit: masked-log
        return torch.where(x > 0, log, x)


class MaskedExp(Dense):
    """The overflow is masked; in backward it multiplies a gradient of zero."""

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        exp = torch.exp(x)  # culprit: masked-exp
        return torch.where(x < 8, exp, x)


def _dense(block: type[Dense], model: type[Planted] = Planted) -> Callable[[], Planted]:
    return lambda: model(ImageNet(dense=block()))


FAULTS = (
    Fault(
        name="large-weight",
        make=_dense(Heavy, Weighted),
        healthy_knob=1e-3,
        spoil=turn(1.0, all_samples=True),
        cured=True,
        accepted=overflow(*MATMULS, layer=f"{DENSE}.heavy", marker="heavy", **BACKWARD),
    ),
    Fault(
        name="large-conv-weight",
        make=lambda: Weighted(ImageNet(conv=HeavyConv())),
        healthy_knob=1e-3,
        spoil=turn(1.0, all_samples=True),
        cured=True,
        accepted=overflow("convolution_backward.default", layer=f"{CONV}.heavy", marker="heavy-conv", **BACKWARD),
    ),
    Fault(
        name="gradient-cast",
        make=lambda: Weighted(ImageNet()),
        spoil=turn(1e4, all_samples=True),
        cured=True,
        accepted=overflow("_to_copy.default", "to.dtype", marker="gradient-cast", **BACKWARD),
    ),
    Fault(
        name="custom-function",
        make=_dense(Amplified),
        spoil=turn(6e4, all_samples=True),
        cured=True,
        accepted=overflow("mul.Tensor", layer=DENSE, marker="custom-function", **BACKWARD),
    ),
    Fault(
        name="root-of-variance",
        make=_dense(RootOfVariance),
        spoil=turn(0),
        cured=False,
        accepted=one("div.Tensor", layer=DENSE, kind="nan", marker="root-of-variance", reason=ZERO, **BACKWARD),
    ),
    Fault(
        name="masked-log",
        make=_dense(MaskedLog),
        spoil=turn(0),
        cured=False,
        accepted=one("div.Tensor", layer=DENSE, kind="nan", marker="masked-log", reason=ZERO, **BACKWARD),
    ),
    Fault(
        name="masked-exp",
        make=_dense(MaskedExp),
        spoil=turn(1e2),
        cured=False,
        # Two ways to tell one story: the exponential overflowed, and what was masked came back as 0 * inf.
        accepted=(
            *overflow("exp.default", layer=DENSE, marker="masked-exp"),
            Origin(
                operators=frozenset({"aten.mul.Tensor"}),
                layers=frozenset({DENSE}),
                kinds=frozenset({"nan"}),
                marker="masked-exp",
                reason="inf",
                **BACKWARD,
            ),
        ),
    ),
)
