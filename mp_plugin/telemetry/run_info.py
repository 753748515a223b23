"""What a run says of itself as a whole: `telemetry/run.json`, replaced as it goes on."""

import json
import os
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.events import json_values
from mp_plugin.whole_file import write_whole

INFO_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The newest session of a run: where it ran, how far it is, and what its samples cost."""

    run: str
    """When the session began, UTC; the same as in its samples and incidents."""
    status: str
    """`running` until it ends: `finished`, or `stopped` by an exception. One that was killed stays `running`."""
    updated: str
    """When this was written, UTC."""
    precision: str
    """Lightning's name, such as `16-mixed`."""
    compute_dtype: str
    """A key of `FORMATS`."""
    environment: dict[str, str] = field(default_factory=dict)
    """Versions, device, ranks: names and values to show."""
    telemetry: dict[str, Any] = field(default_factory=dict)
    """The settings: fields of `Telemetry`."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What `AdaptivePrecision.summary()` returned: steps, skips, loss scale, incidents, layers in FP32, scale window,
    and under `telemetry` the samples: `taken`, `left_out`, `seconds`, `training_seconds`, `share`."""

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it below the directory of a run, whole or not at all: who reads meanwhile has the former one.

        Raises:
            OSError: when the file cannot be written.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        text = json.dumps(json_values({"version": INFO_VERSION, **values}), indent=2, default=repr)
        write_whole(path_of(directory), text + "\n")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "RunInfo":
        """Read what `save` wrote; keys that this release does not know are ignored.

        Raises:
            TelemetryError: for a file that is missing, damaged, or of another version.

        Example:
            >>> RunInfo.load("runs/none")
            Traceback (most recent call last):
            mp_plugin.errors.TelemetryError: runs/none/telemetry/run.json cannot be read (No such file or directory).
        """
        path = path_of(directory)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TelemetryError(f"{path} cannot be read ({error.strerror or error}).") from error
        except (ValueError, RecursionError) as error:  # a thousand brackets
            raise TelemetryError(f"{path} is not JSON ({type(error).__name__}: {error}).") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version != INFO_VERSION:
            raise TelemetryError(f"{path} has version={version!r}; accepted: {INFO_VERSION}.")
        known = {}
        for each in fields(cls):
            accepted = dict if each.default_factory is not MISSING else str
            known[each.name] = values.get(each.name, None if accepted is str else {})
            if not isinstance(known[each.name], accepted):
                raise TelemetryError(f"{path} has {each.name}={known[each.name]!r}; accepted: {_IN_WORDS[accepted]}.")
        return cls(**known)


_IN_WORDS = {str: "a text", dict: "a table"}


def path_of(directory: str | os.PathLike[str]) -> Path:
    """Return where a run in this directory has its `run.json`."""
    return Path(directory) / "telemetry" / "run.json"
