"""Where below some paths runs have left their files."""

import os
from collections.abc import Sequence
from pathlib import Path

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.find_run import MAX_DEPTH, TRACES, runs_below

CARD, METRICS, CSV = "run.json", "metrics.json", "metrics.csv"
HYDRA = ".hydra/config.yaml"
"""What Hydra writes before a run begins, and all that is left of one that did not."""


def find_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the directories of all runs at or below some paths, each once, in the order of their names.

    Args:
        paths: directories of runs, or directories above several, such as that of a sweep.

    Raises:
        TelemetryError: for a path that does not exist, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        given = Path(os.path.expanduser(path))
        if not given.is_dir():
            problem = "is a file" if given.exists() else "does not exist"
            raise TelemetryError(f"{given} {problem}; accepted: directories of runs, or above them.")
        runs = sorted(runs_below(given, _is_run), key=_natural)
        if not runs:
            raise TelemetryError(
                f"{given} holds no run: none of {CARD}, {METRICS}, {CSV}, {HYDRA}, telemetry/ there, nor up to "
                f"{MAX_DEPTH} levels below it; accepted: directories of runs, or above them."
            )
        for run in runs:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _is_run(directory: Path) -> bool:
    if any((directory / name).is_file() for name in (CARD, METRICS, CSV, HYDRA)):
        return True
    telemetry = directory / "telemetry"
    return telemetry.is_dir() and any(any(telemetry.glob(name)) for name in (*TRACES, "cost.json"))


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order 10 after 9: the runs of a sweep are numbered."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.parts]
