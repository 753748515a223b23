"""What a run leaves on disk: its incidents, one JSON line each, and how all of its telemetry is read back."""

import json
import logging
import os
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mp_plugin.errors import TelemetryError
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.telemetry.events import Incident
from mp_plugin.telemetry.run_info import RunInfo

if TYPE_CHECKING:
    from pyarrow import Table

log = logging.getLogger(__name__)

LINE_VERSION = 1
"""What a line means; a release that changes that counts it up."""


class IncidentLog:
    """Append each incident to `telemetry/incidents.jsonl`, complete before training goes on.

    Every line stands for itself; its `run`, the time when the log was opened, tells the runs in one file apart. The
    file is opened and closed for each line, so that a killed process loses none. It is not synced to the disk itself:
    only a machine that loses its power can lose the last ones, and a sync costs up to seconds on a shared file system,
    at every incident of a run that may have thousands. Trouble with the disk never stops a run: it is told once, and
    nothing more is written.

    Args:
        directory: of the run; `telemetry/` below it is created by the first incident.
        run: the name of the session that writes; None for the time now.

    Example:
        >>> IncidentLog("runs/7").path.as_posix()
        'runs/7/telemetry/incidents.jsonl'
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str | None = None) -> None:
        self.path = Path(directory) / "telemetry" / "incidents.jsonl"
        self._is_broken = False
        self._run = run or _now()

    def append(self, incident: Incident, **extra: Any) -> None:
        """Write an incident.

        Args:
            incident: what happened.
            extra: further keys of its line, plain JSON values.
        """
        self._write({**incident.as_dict(), **extra})

    def append_event(self, event: dict[str, Any]) -> None:
        """Write what is no incident, under the key `event`: plain JSON values."""
        self._write(event)

    def _write(self, values: dict[str, Any]) -> None:
        if self._is_broken:
            return
        head = {"version": LINE_VERSION, "run": self._run, "time": _now()}
        try:
            line = json.dumps({**head, **values}, allow_nan=False, default=repr)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.write(b"\n" * _is_torn(file) + line.encode() + b"\n")
        except Exception as error:  # a run must not end because its diary cannot be written
            self._is_broken = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s cannot be written (%s); incidents are no longer recorded there.", self.path, reason)


def read_incidents(path: str | os.PathLike[str]) -> list[Incident]:
    """Read what `IncidentLog` wrote, oldest first.

    Events that are no incidents are left out; so is a line that a killed process left unfinished, with a warning in
    the log.

    Raises:
        TelemetryError: for a line of another version, or one without a field that every incident has.
    """
    incidents = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        place = f"{path}, line {number}"
        try:
            values = json.loads(line)
        except ValueError:
            log.warning("%s is not complete and is left out; the process that wrote it was killed.", place)
            continue
        if isinstance(values, dict) and "event" in values:
            continue
        version = values.get("version") if isinstance(values, dict) else None
        if version != LINE_VERSION:
            raise TelemetryError(f"{place} has version={version!r}; accepted: {LINE_VERSION}.")
        try:
            incidents.append(Incident.from_dict(values))
        except (KeyError, TypeError, ValueError) as error:
            raise TelemetryError(f"{place} is not an incident ({error!r}).") from error
    return incidents


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a run left on disk, as far as it can be read."""

    directory: Path
    """That holds `telemetry/`."""
    samples: "Table"
    """The rows of `telemetry/stats/`, of the columns in `stats_files.SCHEMA`: by step, in a step in the model's order. Of
    a step that two sessions have sampled, as after a resume, only the rows of the newer session."""
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
        TelemetryError: for a directory that holds no run, or several; and for files of a later release.
    """
    raise NotImplementedError


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _is_torn(file: Any) -> bool:
    """Whether a file's last line lacks its end."""
    if not file.tell():
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
