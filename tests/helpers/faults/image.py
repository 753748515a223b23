"""Faults in an image network: convolutions, pooling, then dense blocks, in containers within containers."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.helpers.faults.batches import CLASSES
from tests.helpers.faults.fault import Fault, one, overflow, turn
from tests.helpers.faults.training import Block, Planted, constant, run

CHANNELS = 8
WIDTH = 16
CONV, DENSE = "net.stages.conv.1", "net.stages.dense.2"
"""Where the planted block is."""


class ImageNet(nn.Module):
    """Two convolutional and four dense blocks with residual connections; one of them may be planted."""

    def __init__(self, *, conv: nn.Module | None = None, dense: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        norm = nn.BatchNorm2d(CHANNELS)
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 3, padding=1), norm, nn.ReLU())
        self.stages = nn.ModuleDict(
            {
                "conv": nn.ModuleList([ConvBlock(), conv or ConvBlock()]),
                "dense": nn.ModuleList([Dense(), Dense(), dense or Dense(), Dense()]),
            }
        )
        self.widen = nn.Linear(CHANNELS, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor, knob: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.stages["conv"]:
            x = x + run(block, x, knob)
        x = self.widen(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        for block in self.stages["dense"]:
            x = x + run(block, x, knob)
        return self.head(x)  # type: ignore[no-any-return]


class ConvBlock(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        return torch.relu(self.conv(self.norm(x)))


class Dense(Block):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, WIDTH)

    def features(self, x: Tensor) -> Tensor:
        """Numbers between 0 and 1, in the dtype of the matmul."""
        return torch.sigmoid(self.up(self.norm(x)))

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        return self.features(x)


def column(knob: Tensor, like: Tensor) -> Tensor:
    """The knobs as a column of the dtype of the activations."""
    return knob.to(like.dtype).unsqueeze(-1)


class Conv(ConvBlock):
    def __init__(self) -> None:
        super().__init__()
        self.last = constant(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), 0.5)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = torch.sigmoid(self.conv(self.norm(x))) * knob.to(x.dtype)[:, None, None, None]
        return self.last(x)  # culprit: conv


class Matmul(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.wide = constant(nn.Linear(WIDTH, WIDTH), 0.5)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        return self.wide(x)  # culprit: matmul


class Exp(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        return torch.exp(x)  # culprit: exp


class Divide(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        return x / column(knob, x)  # culprit: divide


class Proportions(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        total = x.sum(dim=-1, keepdim=True)
        return x / total  # culprit: proportions


class Log(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        return torch.log(x)  # culprit: log


class Root(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        return x.sqrt()  # culprit: root


class ReciprocalRootNorm(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        x = x * column(knob, x)
        variance = x.var(dim=-1, keepdim=True, unbiased=False)
        scale = variance.rsqrt()  # culprit: rsqrt-norm
        return (x - x.mean(dim=-1, keepdim=True)) * scale


class InPlace(Dense):
    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x) * 4
        x.mul_(column(knob, x))  # culprit: in-place
        return x


class Cast(Dense):
    """Between autocast's matmuls somebody computes in fp32; the next matmul takes it back to fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x).float()
        x = x * column(knob, x)
        return self.last(x)  # culprit: cast


def _conv(block: type[ConvBlock]) -> Callable[[], Planted]:
    return lambda: Planted(ImageNet(conv=block()))


def _dense(block: type[Dense]) -> Callable[[], Planted]:
    return lambda: Planted(ImageNet(dense=block()))


MATMULS = ("addmm.default", "mm.default", "linear.default")
CONVOLUTIONS = ("convolution.default", "mkldnn_convolution.default", "_convolution.default")
ZERO = r"0/0|zero"

FAULTS = (
    Fault(
        name="matmul",
        make=_dense(Matmul),
        spoil=turn(3e4),
        accepted=overflow(*MATMULS, layer=f"{DENSE}.wide", marker="matmul"),
    ),
    Fault(
        name="conv",
        make=_conv(Conv),
        spoil=turn(3e4),
        accepted=overflow(*CONVOLUTIONS, layer=f"{CONV}.last", marker="conv"),
    ),
    Fault(name="exp", make=_dense(Exp), spoil=turn(1e2), accepted=overflow("exp.default", layer=DENSE, marker="exp")),
    Fault(
        name="one-over-zero",
        make=_dense(Divide),
        spoil=turn(0),
        precision="bf16",
        accepted=one("div.Tensor", layer=DENSE, marker="divide", reason="zero", dtype="bf16"),
    ),
    Fault(
        name="zero-over-zero",
        make=_dense(Proportions),
        spoil=turn(0),
        accepted=one("div.Tensor", layer=DENSE, kind="nan", marker="proportions", reason=ZERO, dtype="fp16"),
    ),
    Fault(
        name="log-of-zero",
        make=_dense(Log),
        spoil=turn(0),
        accepted=one("log.default", layer=DENSE, marker="log", reason="log.* (of|at) zero", dtype="fp16"),
    ),
    Fault(
        name="log-of-negative",
        make=_dense(Log),
        spoil=turn(-1),
        precision="fp32",
        accepted=one("log.default", layer=DENSE, kind="nan", marker="log", reason="log.*negative", dtype="fp32"),
    ),
    Fault(
        name="root-of-negative",
        make=_dense(Root),
        spoil=turn(-1),
        precision="fp32",
        accepted=one("sqrt.default", layer=DENSE, kind="nan", marker="root", reason="negative", dtype="fp32"),
    ),
    Fault(
        name="rsqrt-norm",
        make=_dense(ReciprocalRootNorm),
        spoil=turn(0),
        accepted=one("rsqrt.default", layer=DENSE, marker="rsqrt-norm", reason="zero", dtype="fp16"),
    ),
    Fault(
        name="in-place",
        make=_dense(InPlace),
        spoil=turn(6e4),
        accepted=overflow("mul_.Tensor", layer=DENSE, marker="in-place"),
    ),
    Fault(
        name="cast",
        make=_dense(Cast),
        spoil=turn(1e7),
        accepted=overflow("_to_copy.default", "to.dtype", layer=f"{DENSE}.last", marker="cast"),
    ),
)
