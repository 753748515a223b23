"""What a run says of itself as a whole: `telemetry/run.json`, replaced as it goes on."""

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mp_plugin.errors import TelemetryError
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

    @staticmethod
    def path(directory: str | os.PathLike[str]) -> Path:
        """Return where a run in this directory has it."""
        return Path(directory) / "telemetry" / "run.json"

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it below the directory of a run, whole or not at all.

        Raises:
            OSError: when the file cannot be written.
        """
        text = json.dumps({"version": INFO_VERSION, **asdict(self)}, indent=2, default=repr)
        write_whole(self.path(directory), text + "\n")

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> "RunInfo":
        """Read what `save` wrote; keys that this release does not know are ignored.

        Raises:
            TelemetryError: for a file that is missing, damaged, or of another version.
        """
        try:
            values = json.loads(cls.path(directory).read_text(encoding="utf-8"))
        except OSError as error:
            raise TelemetryError(f"run.json cannot be read ({error.strerror or error}).") from error
        except (ValueError, RecursionError) as error:
            raise TelemetryError("run.json is not JSON.") from error
        version = values.get("version") if isinstance(values, dict) else None
        if version != INFO_VERSION:
            raise TelemetryError(f"run.json has version={version!r}; accepted: {INFO_VERSION}.")
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        try:
            return cls(**known)
        except TypeError as error:
            raise TelemetryError(f"run.json is incomplete ({error}).") from error
