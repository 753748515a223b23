"""The goals of speed, and whether the results meet them.

Pure functions from what `results/*.json` holds.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Result = dict[str, Any]

EARLIER = "event of an earlier step"
"""What the host may wait for while the device has work left; no sync in the sense of the goals."""
LONG_STEP_SECONDS = 0.02
MANY_BYTES = 100e6


class Value(NamedTuple):
    """One of the figures that a goal is about."""

    value: float
    where: str


@dataclass(frozen=True)
class Goal:
    """A bound on the worst of some figures."""

    what: str
    bound: float
    benchmark: str
    """Whose result it is about."""
    values: Callable[[Result], Iterator[Value]]
    on_gpu: bool = True
    on_cpu: bool = False
    is_floor: bool = False
    """Whether figures must be at least the bound, instead of at most."""
    digits: int = 2

    def bound_text(self) -> str:
        """Return the bound as the table shows it."""
        return f"{'≥' if self.is_floor else '≤'} {self.bound:,.{self.digits}f}"

    def judge(self, result: Result) -> tuple[str, str]:
        """Return the worst figure, and whether the goal is met; of a result without such figures, dashes."""
        values = list(self.values(result))
        if not values:
            return "-", "nothing to judge by"
        worst = min(values) if self.is_floor else max(values)
        is_met = worst.value >= self.bound if self.is_floor else worst.value <= self.bound
        of = f"worst of {len(values)}: {worst.where}" if len(values) > 1 else worst.where
        # A figure that misses a bound by less than it shows must not look as if it had met it.
        digits = self.digits if is_met or round(worst.value, self.digits) != self.bound else self.digits + 2
        return f"{worst.value:,.{digits}f} ({of})", "yes" if is_met else "no"


def _name(cell: Result) -> str:
    clips = ", clipping" if cell["clips"] else ""
    return f"{cell['model']}, {cell['precision']}, {cell['optimizer']}{clips}"


def _light(cells: Sequence[Result]) -> Iterator[Value]:
    for cell in cells:
        yield Value(cell["spread"]["light"]["median"], _name(cell))


def _fp16_clipping(result: Result) -> Iterator[Value]:
    return _light([cell for cell in result["cells"] if cell["precision"] == "fp16" and cell["clips"]])


def _bf16(result: Result) -> Iterator[Value]:
    return _light([cell for cell in result["cells"] if cell["precision"] == "bf16"])


def _long_steps(result: Result) -> Iterator[Value]:
    return _light(
        [cell for cell in result["cells"] if statistics.median(cell["seconds"]["stock"]) >= LONG_STEP_SECONDS]
    )


def _shares(result: Result) -> Iterator[Value]:
    for row in result["rows"]:
        if row["bytes"] >= MANY_BYTES:
            yield Value(row["share_of_copy"]["grad_stats"]["median"], f"{row['shapes']}, {row['dtype']}")


def syncs(waits: dict[str, float]) -> float:
    """Return how often the device ran out of work in a step because the host waited for it.

    Example:
        >>> syncs({"operator": 1.0, EARLIER: 1.0})
        1.0
    """
    return float(sum(number for what, number in waits.items() if what != EARLIER))


def _waits(optimizer: str) -> Callable[[Result], Iterator[Value]]:
    def values(result: Result) -> Iterator[Value]:
        for cell in result["cells"]:
            if cell["optimizer"] == optimizer:
                yield Value(syncs(cell["waits_per_step"]["light"]), _name(cell))

    return values


def _extra_bytes(result: Result) -> Iterator[Value]:
    for cell in result["cells"]:
        if (peaks := cell["peak_bytes"]) is not None:
            yield Value((peaks["light"] - peaks["stock"]) / cell["parameter_tensors"], _name(cell))


GOALS = (
    Goal("fp16, clipping, light telemetry ÷ stock 16-mixed with clipping", 0.97, "step_time", _fp16_clipping),
    Goal("bf16, light telemetry ÷ stock bf16-mixed", 1.00, "step_time", _bf16),
    Goal("light telemetry ÷ stock, steps of 20 ms and more", 1.02, "step_time", _long_steps, on_gpu=False, on_cpu=True),
    Goal("share of a copy's bandwidth, 100 MB and more", 0.85, "kernel_bandwidth", _shares, is_floor=True),
    Goal("host syncs per healthy step, fused", 0, "step_time", _waits("fused"), on_cpu=True, digits=0),
    Goal("host syncs per healthy step, not fused", 1, "step_time", _waits("foreach"), on_cpu=True, digits=0),
    Goal("device memory beyond stock's, bytes per parameter tensor", 1000, "step_time", _extra_bytes, digits=0),
)
