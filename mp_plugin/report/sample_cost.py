"""What the samples of a run cost, as it has measured it."""

from dataclasses import dataclass
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.table import TELLING_SECONDS


@dataclass(frozen=True, kw_only=True)
class SampleCost:
    """What taking samples cost."""

    taken: int
    left_out: int
    """To keep within `Telemetry.max_overhead`."""
    seconds: float
    training_seconds: float

    @property
    def share(self) -> float | None:
        """Of the training time; None if that was so short that its share tells nothing."""
        return self.seconds / self.training_seconds if self.training_seconds >= TELLING_SECONDS else None


def sample_cost(run: Run) -> SampleCost | None:
    """Return what the samples cost; None if it is not on record."""
    measured = run.info.summary.get("telemetry") if run.info is not None else None
    if not isinstance(measured, dict):
        return None
    counts: dict[str, Any] = {name: measured.get(name) for name in ("taken", "left_out")}
    times: dict[str, Any] = {name: measured.get(name) for name in ("seconds", "training_seconds")}
    if not all(map(is_count, counts.values())) or not all(is_number(each, lowest=0) for each in times.values()):
        return None
    return SampleCost(**counts, **times)
