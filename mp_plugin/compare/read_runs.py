"""What one run left, as far as it matters to a comparison."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mp_plugin.checks import is_count
from mp_plugin.compare.find_runs import CARD, CSV, METRICS
from mp_plugin.compare.hydra_job import read_hydra_job
from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.run_info import RunInfo, path_of
from mp_plugin.telemetry.store import Damage, read_incident_log

CARD_VERSION = COST_VERSION = 1
PREDICTIONS = "test_predictions.parquet"
NOT_FINITE = ("nan", "inf", "-inf")
"""How JSON without NaN has them."""
OWN_DIRECTORY = "<run>"
"""Stands for a run's own directory in its settings, which would else differ between any two runs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparedRun:
    """A run, as far as its files tell."""

    directory: Path
    status: str
    """`finished`, or why its metrics do not count, such as `running`, `failed`, `left no metrics`."""
    task: str | None = None
    seed: int | None = None
    choice: str | None = None
    """How the precision was chosen, such as `bf16`; else its name, such as `bf16-mixed`."""
    subchoices: Mapping[str, str] = field(default_factory=dict)
    """Choices below the precision, such as fallback: auto."""
    precision: Any = None
    """All settings of the precision, or its name where no more is known."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    """All settings, with the run's own directory as `<run>`."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str | None = None
    """Of its data."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What `AdaptivePrecision.summary()` returned."""
    cost: Mapping[str, Any] = field(default_factory=dict)
    """`telemetry/cost.json`."""
    predictions: Path | None = None
    num_incidents: int | None = None
    """None where incidents were not recorded."""
    damaged: tuple[Damage, ...] = ()
    """Files that could not be read, and why."""

    @property
    def is_finished(self) -> bool:
        """Whether its metrics count."""
        return self.status == "finished"


def read_run(directory: Path) -> ComparedRun:
    """Read what a run left, as much of it as can be read.

    Of foreign projects: the `metrics.csv` of a CSVLogger, what Hydra noted of the job, and `telemetry/` where it is.
    """
    damaged: list[Damage] = []
    home = _home_of_telemetry(directory)
    card = _read_json(directory / CARD, damaged, version=CARD_VERSION)
    result = _read_json(directory / METRICS, damaged)
    cost = _read_json(home / "telemetry" / "cost.json", damaged, version=COST_VERSION)
    info = _read_info(home, damaged)
    metrics = _numbers(result.get("metrics")) if result else _last_of_csv(directory, damaged)
    settings, chosen = ({}, {}) if card else read_hydra_job(directory, damaged)
    config = _without_directory(_mapping(card.get("config")) or settings, directory)
    choices = _mapping(card.get("choices")) or chosen
    summary = _mapping(card.get("precision")) or _mapping(result.get("precision_summary"))
    name = result.get("precision") or (info.precision if info else None)
    predictions = directory / PREDICTIONS
    return ComparedRun(
        directory=directory,
        status=_status(card, result, info, bool(metrics)),
        task=_text(card.get("task")) or _text(result.get("task")),
        seed=_seed(config.get("seed"), result.get("seed"), cost.get("seed")),
        choice=_text(choices.get("precision")) or _text(name),
        subchoices={
            key.partition("@")[0].rpartition("/")[2]: str(value)
            for key, value in choices.items()
            if key.startswith("precision/") or "@precision." in key
        },
        precision=_precision(config) or name or choices.get("precision"),
        metrics=metrics,
        config=config,
        environment=_mapping(card.get("environment")) or (dict(info.environment) if info else {}),
        git=_mapping(card.get("git")),
        fingerprint=_text(_mapping(card.get("data")).get("fingerprint")),
        summary=summary or (dict(info.summary) if info else {}),
        cost=cost,
        predictions=predictions if predictions.is_file() else None,
        num_incidents=_count_incidents(home, summary, info, damaged),
        damaged=tuple(damaged),
    )


def _precision(config: Mapping[str, Any]) -> Any:
    """Return the settings of the precision; None where they name others, which Hydra notes unresolved."""
    found = config.get("precision") or _mapping(config.get("trainer")).get("precision")
    return None if "${" in str(found) else found


def _home_of_telemetry(directory: Path) -> Path:
    """Return where `telemetry/` lies: in the run's directory, or in that of its logger, the only one below."""
    if (directory / "telemetry").is_dir():
        return directory
    homes = [path.parent for pattern in ("*/telemetry", "*/*/telemetry") for path in sorted(directory.glob(pattern))]
    return homes[0] if len(homes) == 1 else directory


def _status(card: Mapping[str, Any], result: Mapping[str, Any], info: RunInfo | None, has_metrics: bool) -> str:
    told = _text(card.get("status")) or _text(result.get("status"))
    if told is None and not result and info is not None:
        told = info.status
    if told not in (None, "finished"):
        return str(told)
    return "finished" if has_metrics else "left no metrics"


def _read_json(path: Path, damaged: list[Damage], *, version: int | None = None) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        damaged.append((path, f"cannot be read ({error.strerror or error})"))
        return {}
    except (ValueError, RecursionError) as error:
        damaged.append((path, f"is not JSON ({type(error).__name__}: {error})"))
        return {}
    if not isinstance(values, dict):
        damaged.append((path, "is not a table of JSON"))
        return {}
    if version is not None and values.get("version") != version:
        damaged.append((path, f"has version={values.get('version')!r}; accepted: {version}"))
        return {}
    return values


def _read_info(directory: Path, damaged: list[Damage]) -> RunInfo | None:
    path = path_of(directory)
    if not path.exists():
        return None
    try:
        return RunInfo.load(directory)
    except TelemetryError as error:
        damaged.append((path, str(error).removeprefix(f"{path} ").removesuffix(".")))
        return None


def _last_of_csv(directory: Path, damaged: list[Damage]) -> dict[str, float]:
    """Return the last value of each column: of the run's own file, or of the only one below it."""
    own = directory / CSV
    files = [own] if own.is_file() else sorted(directory.glob(f"*/{CSV}")) + sorted(directory.glob(f"*/*/{CSV}"))
    if len(files) != 1:
        if files:
            damaged.append((directory, f"has {len(files)} files {CSV} below it, and no {METRICS}; accepted: one"))
        return {}
    last: dict[str, float] = {}
    try:
        with files[0].open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, text in row.items():
                    if text and isinstance(name, str) and name not in ("step", "epoch"):
                        last[name] = float(text)
    except (OSError, ValueError, csv.Error) as error:
        damaged.append((files[0], f"cannot be read ({error})"))
        return {}
    return last


def _count_incidents(
    directory: Path, summary: Mapping[str, Any], info: RunInfo | None, damaged: list[Damage]
) -> int | None:
    path = directory / "telemetry" / "incidents.jsonl"
    if path.exists():
        incidents, _, damaged_lines = read_incident_log(path)
        damaged.extend(damaged_lines)
        return len(incidents)
    told = _mapping(summary.get("incidents")).get("total")
    if isinstance(told, int) and is_count(told):
        return told
    # A run that records them and has none leaves no such file.
    return 0 if info is not None else None


def _without_directory(config: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    own = _text(_mapping(config.get("paths")).get("run_dir"))
    places = sorted({each for each in (own, str(directory), str(directory.resolve())) if each}, key=len, reverse=True)

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): replaced(each) for key, each in value.items()}
        if isinstance(value, list):
            return [replaced(each) for each in value]
        if isinstance(value, str):
            for place in places:
                if value == place or value.startswith(f"{place}/"):
                    return OWN_DIRECTORY + value[len(place) :]
        return value

    return {str(key): replaced(value) for key, value in config.items()}


def _numbers(values: Any) -> dict[str, float]:
    """Return what are numbers, NaN and infinity included: a diverged run has them, and that has to be seen."""
    found = {}
    for name, value in _mapping(values).items():
        if value in NOT_FINITE or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            found[str(name)] = float(value)
    return found


def _seed(*candidates: Any) -> int | None:
    return next((each for each in candidates if isinstance(each, int) and not isinstance(each, bool)), None)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
