"""The command line of a trial."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CALLBACK = "{{cookiecutter.package_name}}.sweep.report.ReportToSweep"
#: The callback's place in the trial's config.
PLACE = "callbacks.report_to_sweep"


def as_override(key: str, value: Any) -> str:
    """A setting as Hydra reads it from the command line, whatever characters it holds."""
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if not isinstance(value, str):
        return f"{key}={value!r}"
    # Hydra halves backslashes before a quote, and no others.
    quoted = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"{key}='{quoted}'"


def settings_of(train: Sequence[str], params: Mapping[str, Any]) -> list[str]:
    """A trial's own settings: the fixed ones, then those that vary."""
    return [*train, *(as_override(key, value) for key, value in params.items())]


def overrides_of(train: Sequence[str], params: Mapping[str, Any], metric: str, folder: Path) -> list[str]:
    """All overrides of a trial: its settings, its folder, and the callback that reports to the sweep.

    Args:
        train: fixed settings.
        params: settings that vary, with this trial's values.
        metric: what to report.
        folder: where the trial's run goes.
    """
    return [
        *settings_of(train, params),
        as_override("hydra.run.dir", str(folder.absolute())),
        as_override(f"+{PLACE}._target_", CALLBACK),
        as_override(f"+{PLACE}.metric", metric),
    ]


def command_of(overrides: Sequence[str]) -> list[str]:
    """What to execute for a trial."""
    return [sys.executable, str(train_script()), *overrides]


def train_script() -> Path:
    """The project's train.py, beside the sweep.py that was started.

    Raises:
        ValueError: if it is not there.
    """
    script = Path(sys.argv[0]).absolute().parent / "train.py"
    if not script.is_file():
        raise ValueError(f"{script} is missing: start sweep.py from the project's folder.")
    return script
