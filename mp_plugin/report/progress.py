"""How far a run came, and whether it goes on."""

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import Enum

from mp_plugin.checks import is_count
from mp_plugin.report.incident_groups import lost_steps
from mp_plugin.telemetry.store import Run

SILENCE = timedelta(minutes=10)
SILENCE_SHARE = 0.05
"""A run that has written nothing for so long, and for this share of its own time, is not called running any more."""


class Ending(str, Enum):
    """How a run ended, as far as its files tell."""

    finished = "finished"
    stopped = "stopped"
    """By an exception."""
    running = "running"
    silent = "silent"
    """It should be running and writes nothing: it was killed, or hangs."""
    unknown = "unknown"
    """`run.json` is missing or damaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a run came."""

    ending: Ending
    steps: int
    """Optimizer steps tried; without `run.json` as many as samples and incidents show."""
    skipped: int
    """Of these, not taken because a gradient was not finite."""
    updated: datetime | None
    """When it last told so; None if unknown."""


def progress(run: Run, *, now: datetime | None = None) -> Progress:
    """Return how far a run came and whether it goes on.

    Args:
        run: whatever is left of it.
        now: when it is looked at, with a time zone; None for the clock.
    """
    summary = run.info.summary if run.info is not None else {}
    # Incidents are written at once, the summary from time to time.
    skipped = max(_count(summary.get("skipped_steps")), len(lost_steps(run.incidents)))
    return Progress(
        ending=_ending(run, now or datetime.now(timezone.utc)),
        steps=max(_count(summary.get("steps")) or _seen_steps(run), skipped),
        skipped=skipped,
        updated=None if run.info is None else _time(run.info.updated),
    )


def _ending(run: Run, now: datetime) -> Ending:
    info = run.info
    if info is None:
        return Ending.unknown
    if info.status != "running":
        return Ending.stopped if info.status == "stopped" else Ending.finished
    began, updated = _time(info.run), _time(info.updated)
    if updated is None:
        return Ending.running
    patience = max(SILENCE, SILENCE_SHARE * (updated - (began or updated)))
    return Ending.silent if now - updated > patience else Ending.running


def _seen_steps(run: Run) -> int:
    import pyarrow.compute as pc

    newest = pc.max(run.samples["step"]).as_py()
    steps = [each.step for each in run.incidents] + ([] if newest is None else [newest])
    return max(steps, default=-1) + 1


def _count(value: object) -> int:
    return value if isinstance(value, int) and is_count(value) else 0


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)
