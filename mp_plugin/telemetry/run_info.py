"""What a run says of itself as a whole: `telemetry/run.json`, replaced as it goes on."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

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
        """Write it below the directory of a run, whole or not at all.

        Raises:
            OSError: when the file cannot be written.
        """
        path = Path(directory) / "telemetry" / "run.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"version": INFO_VERSION, **asdict(self)}, indent=2, default=repr) + "\n")
