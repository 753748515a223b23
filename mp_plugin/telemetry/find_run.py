"""Where below a path a run has left its telemetry."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from mp_plugin.errors import TelemetryError

TRACES = ("run.json", "stats/part-*", "incidents.jsonl", "census.json")
"""What a run's `telemetry/` holds, each of them if there was reason to write it."""

MAX_DEPTH = 6
"""Levels that are searched: Hydra's date and time, `logs`, a logger's name, an experiment's, a version."""
MAX_DIRECTORIES = 10_000
"""That are searched, as in a home directory it would take for ever."""
LISTED_RUNS = 5


def find_run(path: str | os.PathLike[str]) -> Path:
    """Return the directory of the one run at or below a path: the one that holds `telemetry/`.

    Args:
        path: the run's directory, its `telemetry/` folder, or a directory above exactly one of them.

    Raises:
        TelemetryError: if there is none, or several.
    """
    given = Path(os.path.expanduser(path))
    if not os.path.isdir(given):
        problem = "is a file" if os.path.exists(given) else "does not exist"
        raise TelemetryError(f"{given} {problem}; accepted: the directory of a run.")
    for folder in (given, given.resolve()):  # the second for `.`, and for a link that leads here
        if folder.name == "telemetry" and _holds_telemetry(folder.parent):
            return folder.parent
    runs = list(runs_below(given, _holds_telemetry))
    if not runs:
        traces = ", ".join(f"telemetry/{name}" for name in TRACES)
        raise TelemetryError(
            f"{given} holds no run: none of {traces} there, nor up to {MAX_DEPTH} levels below it; "
            "accepted: the directory of a run, or one above it."
        )
    if len(runs) > 1:
        runs.sort(key=_changed, reverse=True)
        more = f" and {len(runs) - LISTED_RUNS} more" if len(runs) > LISTED_RUNS else ""
        listed = ", ".join(map(str, runs[:LISTED_RUNS]))
        raise TelemetryError(f"{given} holds {len(runs)} runs; accepted: one of them, newest first {listed}{more}.")
    return runs[0]


def _holds_telemetry(directory: Path) -> bool:
    telemetry = directory / "telemetry"
    return os.path.isdir(telemetry) and any(any(telemetry.glob(name)) for name in TRACES)


def _changed(run: Path) -> float:
    try:
        return os.path.getmtime(run / "telemetry")
    except OSError:  # gone meanwhile
        return 0.0


def runs_below(top: Path, is_run: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield the directories of runs, at or below one; what lies in a run is not searched.

    Args:
        top: where the search starts.
        is_run: whether a directory is that of a run.

    Raises:
        TelemetryError: if there are too many directories to search.
    """
    waiting = deque([(top, 0)])
    searched = 0
    while waiting:
        directory, depth = waiting.popleft()
        searched += 1
        if searched > MAX_DIRECTORIES:
            raise TelemetryError(
                f"{top} holds more than {MAX_DIRECTORIES:,} directories, too many to search; "
                "accepted: the directory of a run, or one a few levels above it."
            )
        if is_run(directory):
            yield directory
        elif depth < MAX_DEPTH:
            waiting.extend((below, depth + 1) for below in _directories_below(directory))


def _directories_below(directory: Path) -> list[Path]:
    """Return all but hidden ones and links, which may lead round in circles."""
    try:
        with os.scandir(directory) as entries:
            return sorted(
                Path(each.path)
                for each in entries
                if not each.name.startswith(".") and each.is_dir(follow_symlinks=False)
            )
    except OSError:  # not ours to read
        return []
