"""The incidents of a run on disk: one JSON line each, and how they are read back."""

import json
import logging
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.events import Incident

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

    Example:
        >>> IncidentLog("runs/7").path.as_posix()
        'runs/7/telemetry/incidents.jsonl'
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory) / "telemetry" / "incidents.jsonl"
        self._is_broken = False
        self._run = _now()

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


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _is_torn(file: Any) -> bool:
    """Whether a file's last line lacks its end."""
    if not file.tell():
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
