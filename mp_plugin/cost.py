"""What a fit costs: measured on each rank, told of all."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mp_plugin.energy import EnergyMeter
from mp_plugin.peak_memory import PeakMemory
from mp_plugin.step_times import WARM_UP_STEPS, StepTimes

COST_VERSION = 1
SECONDS_BETWEEN_LOOKS = 60.0
"""At the counters of energy, which go round within minutes."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What adds up over the sessions of a run; plain values, for its checkpoints."""

    steps: int = 0
    train_seconds: float = 0.0
    fit_seconds: float = 0.0
    energy_joules: float | None = 0.0
    """None once a session did not count them."""
    sessions: int = 0


@dataclass(frozen=True, kw_only=True)
class RankCost:
    """What one session of a fit cost on one rank."""

    steps: int
    train_seconds: float
    """Without validation and checkpoints."""
    fit_seconds: float
    """With both."""
    step_seconds: list[float]
    """Of the newest steps, without the warm-up, like the two below."""
    samples_per_second: float | None
    waiting_share: float | None
    peak_memory_bytes: int | None
    peak_memory_of: str
    energy_joules: float | None
    energy_source: str


class CostClock:
    """Measure one session of a fit on this rank; what is done for each step takes some microseconds, and never waits.

    Args:
        device: that computes the steps.
        counts_energy: whether this rank reads the counters of energy: of several on a CPU only one does.
    """

    def __init__(self, device: torch.device, *, counts_energy: bool = True) -> None:
        self.times = StepTimes(device)
        self._energy = EnergyMeter(device) if counts_energy else None
        self._memory = PeakMemory(device)
        self._began = self._newest_look = time.perf_counter()
        self._steps = 0
        self._samples_in_step: int | None = 0
        self._waited_in_step = 0.0
        self._samples: int | None = 0
        self._waited = 0.0
        self._asked: float | None = None
        self._has_waited = False

    def ask(self) -> None:
        """Note that training asks for a batch; once more without `receive` between them changes nothing."""
        if self._asked is None:
            self._asked = time.perf_counter()

    def receive(self) -> None:
        """Note that it has the batch."""
        if self._asked is not None:
            self._waited_in_step += time.perf_counter() - self._asked
            self._asked, self._has_waited = None, True

    def end_batch(self, *, samples: int | None, ends_step: bool) -> None:
        """Note that a batch is over.

        Args:
            samples: that it held; None if that cannot be told.
            ends_step: whether the weights have moved; false while gradients are accumulated.
        """
        self._samples_in_step = _plus(self._samples_in_step, samples)
        if ends_step:
            if self._steps >= WARM_UP_STEPS:
                self._samples = _plus(self._samples, self._samples_in_step)
                self._waited += self._waited_in_step
            self._steps, self._samples_in_step, self._waited_in_step = self._steps + 1, 0, 0.0
        self.times.end_batch(ends_step=ends_step)
        self.look()

    def look(self) -> None:
        """Read the counters of energy, if it is time to."""
        now = time.perf_counter()
        if now - self._newest_look > SECONDS_BETWEEN_LOOKS and self._energy is not None:
            self._newest_look = now
            self._energy.look()

    def read(self) -> RankCost:
        """Return the cost so far; waits for the device."""
        is_running = self.times.is_running
        self.times.stop()
        self.times.settle(wait=True)
        if is_running:
            self.times.go()
        seconds = self.times.counted_seconds
        joules, source = (0.0, "") if self._energy is None else self._energy.read()
        nbytes, of = self._memory.read()
        return RankCost(
            steps=self.times.steps,
            train_seconds=self.times.seconds,
            fit_seconds=time.perf_counter() - self._began,
            step_seconds=list(self.times.newest),
            samples_per_second=self._samples / seconds if self._samples and seconds else None,
            waiting_share=min(1.0, self._waited / seconds) if self._has_waited and seconds else None,
            peak_memory_bytes=nbytes,
            peak_memory_of=of,
            energy_joules=joules,
            energy_source=source,
        )


def add(former: Spent, ranks: Sequence[RankCost | None]) -> Spent:
    """Return what a run has spent with one more session of it.

    Args:
        former: sessions.
        ranks: that trained together, the first one first; None for one that could not be asked.
    """
    first = next(rank for rank in ranks if rank is not None)
    energies = [None if rank is None else rank.energy_joules for rank in ranks]
    return Spent(
        steps=former.steps + first.steps,
        train_seconds=former.train_seconds + first.train_seconds,
        fit_seconds=former.fit_seconds + first.fit_seconds,
        energy_joules=_sum([former.energy_joules, *energies]),
        sessions=former.sessions + 1,
    )


def cost_of(former: Spent, ranks: Sequence[RankCost | None]) -> dict[str, Any]:
    """Return what `telemetry/cost.json` says of a run, as far as its ranks know it.

    Args:
        former: sessions.
        ranks: as for `add`.
    """
    known = [rank for rank in ranks if rank is not None]
    first, spent = known[0], add(former, ranks)
    peak = max(known, key=lambda rank: rank.peak_memory_bytes or 0)
    waiting = [rank.waiting_share for rank in known]
    return {
        "version": COST_VERSION,
        **asdict(spent),
        "step_ms": _quantiles(first.step_seconds),
        "samples_per_second": _sum([None if rank is None else rank.samples_per_second for rank in ranks]),
        "waiting_share": None if None in waiting else max(share for share in waiting if share is not None),
        "peak_memory_bytes": peak.peak_memory_bytes,
        "peak_memory_of": peak.peak_memory_of,
        "energy_source": _energy_source(former, ranks),
    }


def _energy_source(former: Spent, ranks: Sequence[RankCost | None]) -> str:
    sources = ["not measured: a rank could not be asked" if rank is None else rank.energy_source for rank in ranks]
    if former.energy_joules is None:
        sources.append("not measured: the run was resumed, and what it used before was not counted")
    told = [source for source in sources if source]
    return next((source for source in told if source.startswith("not measured")), told[0])


def _plus(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _quantiles(seconds: Sequence[float]) -> dict[str, float | None]:
    names = {"median": 0.5, "p10": 0.1, "p90": 0.9}
    if not seconds:
        return dict.fromkeys(names)
    values = np.quantile(np.asarray(seconds) * 1000, list(names.values()))
    return dict(zip(names, values.tolist(), strict=True))
