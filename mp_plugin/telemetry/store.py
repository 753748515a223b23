"""All that a run left on disk, read back."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mp_plugin.errors import ConfigError, TelemetryError
from mp_plugin.fallback.precision_map import FILE_NAME, PrecisionMap
from mp_plugin.telemetry.events import Incident
from mp_plugin.telemetry.find_run import find_run
from mp_plugin.telemetry.incident_log import IncidentLog, read_incidents, read_lines
from mp_plugin.telemetry.run_info import RunInfo, path_of

if TYPE_CHECKING:
    from pyarrow import Table

__all__ = ["IncidentLog", "Run", "open_run", "read_incidents"]

NAMED_LINES = 5
"""Damaged lines of a file that are named; of more, only the number is told."""

Damage = tuple[Path, str]
"""A file, and what is wrong with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """All that a run left on disk, as far as it can be read."""

    directory: Path
    """That holds `telemetry/`."""
    samples: "Table"
    """The rows of `telemetry/stats/`, of the columns in `stats_files.SCHEMA`: by step, and in a step in the order of
    the model. Of a step that two sessions have sampled, as after a resume, only the rows of the newer session."""
    incidents: tuple[Incident, ...] = ()
    """Oldest first."""
    events: tuple[dict[str, Any], ...] = ()
    """The lines of `incidents.jsonl` that are no incidents, oldest first: `given back`, `drift`."""
    info: RunInfo | None = None
    """None if it is missing or damaged."""
    precision_map: PrecisionMap | None = None
    """None if there is none, or it is damaged."""
    damaged: tuple[tuple[Path, str], ...] = ()
    """Files, or lines of files, that could not be read, and why."""


def open_run(path: str | os.PathLike[str]) -> Run:
    """Read what a run left on disk, while it goes on or after its end, however that came.

    Args:
        path: the run's directory, its `telemetry/` folder, or a directory above exactly one of them.

    Raises:
        TelemetryError: for a directory that holds no run, or several; and if all of its samples are of a later
            release.
    """
    from mp_plugin.telemetry.read_samples import read_samples

    directory = find_run(path)
    samples, damaged_parts = read_samples(directory / "telemetry" / "stats")
    incidents, events, damaged_lines = read_incident_log(directory / "telemetry" / "incidents.jsonl")
    info, damaged_info = _read_info(directory)
    precision_map, damaged_map = _read_map(directory / FILE_NAME)
    return Run(
        directory=directory,
        samples=samples,
        incidents=tuple(incidents),
        events=tuple(events),
        info=info,
        precision_map=precision_map,
        damaged=(*damaged_parts, *damaged_lines, *damaged_info, *damaged_map),
    )


def read_incident_log(path: Path) -> tuple[list[Incident], list[dict[str, Any]], list[Damage]]:
    """Read what can be read of `incidents.jsonl`: the incidents, the other events, and what is damaged."""
    incidents: list[Incident] = []
    events: list[dict[str, Any]] = []
    problems: list[str] = []
    try:
        for line in read_lines(path):
            if line.problem:
                problems.append(f"line {line.number} {line.problem}")
            elif line.incident is not None:
                incidents.append(line.incident)
            elif line.event is not None:
                events.append(line.event)
    except FileNotFoundError:
        pass  # nothing has happened
    except OSError as error:
        problems.append(f"cannot be read ({error.strerror or error})")
    if len(problems) > NAMED_LINES:
        problems[NAMED_LINES:] = [f"{len(problems) - NAMED_LINES} more lines cannot be read"]
    return incidents, events, [(path, problem) for problem in problems]


def _read_info(directory: Path) -> tuple[RunInfo | None, list[Damage]]:
    path = path_of(directory)
    if not path.exists():
        return None, []
    try:
        return RunInfo.load(directory), []
    except TelemetryError as error:
        return None, [(path, _without(f"{path} ", error))]


def _read_map(path: Path) -> tuple[PrecisionMap | None, list[Damage]]:
    if not path.exists():
        return None, []
    try:
        return PrecisionMap.load(path), []
    except ConfigError as error:
        return None, [(path, _without(f"The precision map {path} ", error))]


def _without(path: str, error: Exception) -> str:
    """Return what an error says of a file, which is named beside it."""
    return str(error).removeprefix(path).removesuffix(".")
