"""The incidents of a run on disk: one JSON line each, complete before training goes on."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
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

    Every line stands for itself; its `run`, the time when the session began, tells the sessions in one file apart. The
    file is opened and closed for each line, so that a killed process loses none. It is not synced to the disk itself:
    only a machine that loses its power can lose the last ones, and a sync costs up to seconds on a shared file system,
    at every incident of a run that may have thousands. Trouble with the disk never stops a run: it is told once, and
    nothing more is written.

    Args:
        directory: of the run; `telemetry/` below it is created by the first incident.
        run: tells the sessions that write to one directory apart: when this one began, UTC; None for now.

    Example:
        >>> IncidentLog("runs/7").path.as_posix()
        'runs/7/telemetry/incidents.jsonl'
    """

    def __init__(self, directory: str | os.PathLike[str], *, run: str | None = None) -> None:
        self.path = Path(directory) / "telemetry" / "incidents.jsonl"
        self._is_broken = False
        self.run = run or now()

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
        head = {"version": LINE_VERSION, "run": self.run, "time": now()}
        try:
            line = json.dumps({**head, **values}, allow_nan=False, default=repr)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                file.write(b"\n" * _is_torn(file) + line.encode() + b"\n")
        except Exception as error:  # a run must not end because its diary cannot be written
            self._is_broken = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s cannot be written (%s); incidents are no longer recorded there.", self.path, reason)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of `incidents.jsonl`, as far as it can be read."""

    number: int
    incident: Incident | None = None
    event: dict[str, Any] | None = None
    """What is no incident, and has the key `event`."""
    problem: str = ""
    """Why it is not to be used; empty if nothing is wrong."""
    is_complete: bool = True
    """False for what is no JSON: a killed process left it unfinished."""


def read_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Yield the lines of a file that `IncidentLog` wrote, oldest first, without a word about those that are damaged.

    Raises:
        OSError: when the file cannot be read.
    """
    with Path(path).open(encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            yield _read_line(number, line)


def read_incidents(path: str | os.PathLike[str]) -> list[Incident]:
    """Read what `IncidentLog` wrote, oldest first.

    Events that are no incidents are left out; so is a line that a killed process left unfinished, with a warning in
    the log.

    Raises:
        TelemetryError: for a line of another version, or one without a field that every incident has.
    """
    incidents = []
    for line in read_lines(path):
        place = f"{path}, line {line.number}"
        if not line.is_complete:
            log.warning("%s is not complete and is left out; the process that wrote it was killed.", place)
        elif line.incident is not None:
            incidents.append(line.incident)
        elif line.event is None:
            raise TelemetryError(f"{place} {line.problem}.")
    return incidents


def _read_line(number: int, line: str) -> Line:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):  # a thousand brackets
        return Line(number, problem="is not complete", is_complete=False)
    version = values.get("version") if isinstance(values, dict) else None
    problem = "" if version == LINE_VERSION else f"has version={version!r}; accepted: {LINE_VERSION}"
    if isinstance(values, dict) and "event" in values:
        return Line(number, event=values, problem=problem)
    if problem:
        return Line(number, problem=problem)
    try:
        return Line(number, incident=Incident.from_dict(values))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return Line(number, problem=f"is not an incident ({error!r})")


def now() -> str:
    """Return the time in UTC, such that later times are later in the alphabet."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _is_torn(file: Any) -> bool:
    """Whether a file's last line lacks its end."""
    if not file.tell():
        return False
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) != b"\n")
