"""How does the cost of a step's own work grow, with parameters, with tensors, and with ranks?

The gradients are given: there is no forward pass, and the backward pass only writes them. What is left of a step is
Lightning's own loop, the loss scaling, the clipping, which all these gradients need, and the optimizer. All take turns
within a round: `floor` is stock Lightning in FP32 without scaling and clipping; `stock` is `MixedPrecision` with a
`GradScaler` and clipping, and ours is shown with the same foreach optimizer, and with the fused one, which stock
refuses to clip for. The optimizer is SGD, the one with the least work of its own, and nothing is sampled. A step of a
real training is longer by its passes: these ratios are the worst there are.

With ranks the figure is bytes, counted in every collective of a step of a small training under DDP and gloo, always on
the CPU: they do not depend on the device.

    python benchmarks/growth.py [--device cuda] [--rounds 5] [--quick]
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.collectives import bytes_per_step
from helpers.devices import check_device, parser_of, synchronize
from helpers.free_memory import free_bytes
from helpers.harness import circumstances, turns, write
from helpers.quiet_fit import fit
from helpers.ratios import ratios
from helpers.tables import growth_tables
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry

SCALE, VALUE, MAX_NORM = 1024.0, 1e-2, 1.0
KINDS = ("floor", "stock", "ours", "ours, fused")
TENSORS, BLOCKS = 100, 3
WARM_UP = {"cpu": 3, "cuda": 20}
"""On a GPU, until nobody waits for the verdict any more."""


class Given(torch.autograd.Function):
    """A backward pass that only writes gradients: of `VALUE`, times the loss scale."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, module: "GivenGradients") -> Tensor:
        ctx.module = module
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None]:
        module = ctx.module
        module.all_values.copy_(scale * VALUE)
        for parameter, gradient in zip(module.weights, module.given, strict=True):
            parameter.grad = gradient
        return scale, None


class GivenGradients(pl.LightningModule):
    """So many parameters in so many tensors, whose gradients are always the same, and too large not to be clipped."""

    def __init__(self, num_values: int, num_tensors: int, device: str) -> None:
        super().__init__()
        sizes = [num_values // num_tensors + (index < num_values % num_tensors) for index in range(num_tensors)]
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(size, device=device)) for size in sizes)
        self.all_values = torch.empty(num_values, device=device)
        self.given = self.all_values.split(sizes)
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.is_fused = False

    def cpu(self) -> "GivenGradients":
        """Stay: Lightning would move all of it off the GPU after each of many trainings."""
        return self

    def training_step(self, batch: int, batch_idx: int) -> Tensor:
        return Given.apply(self.anchor, self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        how = {"fused": True} if self.is_fused else {"foreach": True}
        return torch.optim.SGD(self.parameters(), lr=1e-3, **how)


class BlockClock(pl.Callback):
    """The seconds of a step, by blocks of steps: the device is waited for at the ends of blocks only."""

    def __init__(self, device: str, length: int) -> None:
        self.device, self.length, self.warm_up = device, length, WARM_UP[device]
        self.seconds: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self.warm_up and (batch_idx - self.warm_up) % self.length == 0:
            synchronize(self.device)
            self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx >= self.warm_up and (batch_idx + 1 - self.warm_up) % self.length == 0:
            synchronize(self.device)
            self.seconds.append((time.perf_counter() - self._start) / self.length)


def make_plugin(kind: str, device: str) -> Any:
    """Return the precision plugin of one kind; None for Lightning's own FP32."""
    if kind == "floor":
        return None
    if kind == "stock":
        return MixedPrecision("16-mixed", device, torch.amp.GradScaler(device, init_scale=SCALE, growth_interval=10**9))
    scaling = LossScaling(init_scale=SCALE, growth_interval=10**9)
    return AdaptivePrecision("fp16", scaling=scaling, telemetry=Telemetry(every_n_steps=0))


def step_seconds(module: GivenGradients, kind: str, device: str, length: int) -> float:
    """Train for a few blocks of steps and return the seconds of a step in the middle one."""
    clock = BlockClock(device, length)
    module.is_fused = kind.endswith("fused")
    options: dict[str, Any] = {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}
    if kind != "floor":
        options["gradient_clip_val"] = MAX_NORM
    steps = WARM_UP[device] + BLOCKS * length
    fit(module, DataLoader(range(steps), batch_size=None), make_plugin(kind, device), clock, steps=steps, **options)
    return statistics.median(clock.seconds)


def measure(num_values: int, num_tensors: int, device: str, rounds: int, length: int) -> dict[str, Any]:
    """Let all kinds take turns on the same gradients."""
    module = GivenGradients(num_values, num_tensors, device)
    samples: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _, order in turns(KINDS, rounds):
        for kind in order:
            samples[kind].append(step_seconds(module, kind, device, length))
    own_work = {kind: [a - b for a, b in zip(samples[kind], samples["floor"], strict=True)] for kind in KINDS[1:]}
    return {
        "values": num_values,
        "tensors": num_tensors,
        "seconds": samples,
        "beside_stock": {kind: ratios(samples[kind], samples["stock"]) for kind in KINDS},
        "seconds_above_floor": own_work,
    }


def sizes(device: str, *, is_quick: bool) -> tuple[list[tuple[int, int]], list[tuple[int, int]], Sequence[int]]:
    """Return pairs of parameters and tensors that grow in parameters, others that grow in tensors, and ranks."""
    if is_quick:
        return [(10**5, 10)], [(10**5, 100)], () if device == "cuda" else (1, 2)
    # A parameter and its gradient are 8 bytes.
    most = min(0.5 * free_bytes(device) / 8, 1e9 if device == "cuda" else 1e8)
    total = 10**8 if device == "cuda" else 10**7
    parameters = [(10**power, TENSORS) for power in range(5, 10) if 10**power <= most]
    return parameters, [(total, 10**power) for power in range(1, 5)], () if device == "cuda" else (1, 2, 4)


def main() -> None:
    """Measure, print and write down."""
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int)
    chosen = parser.parse_args()
    check_device(chosen.device)
    found = circumstances(chosen.device)
    by_parameters, by_tensors, by_ranks = sizes(chosen.device, is_quick=chosen.quick)
    rounds = chosen.rounds or (2 if chosen.quick else 3 if chosen.device == "cuda" else 5)

    def measured(pairs: list[tuple[int, int]]) -> list[dict[str, Any]]:
        # The smaller the steps, the more of them in a block.
        values = 10**9 if chosen.device == "cuda" else 10**7
        lengths = [max(1, min(20, 2 * values // pair[0], 2 * 10**4 // pair[1])) for pair in pairs]
        return [measure(*pair, chosen.device, rounds, length) for pair, length in zip(pairs, lengths, strict=True)]

    result = {
        **found,
        "parameters": measured(by_parameters),
        "tensors": measured(by_tensors),
        "ranks": [
            {"ranks": ranks, **{kind: bytes_per_step(kind, ranks) for kind in ("stock", "ours")}} for ranks in by_ranks
        ],
    }
    print(*growth_tables(result).values(), sep="\n\n")
    if not chosen.quick:
        write("growth", result, chosen.device)


if __name__ == "__main__":
    main()
