"""Folders of runs as a project leaves them, with numbers whose comparison is known."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mp_plugin.telemetry.incident_log import IncidentLog
from tests.helpers.planted_runs import info, overflow

NAMES = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
STEP_MS = {"fp32": 29.0, "bf16": 10.0, "fp16": 14.5}
MEMORY = {"fp32": 1000, "bf16": 540, "fp16": 600}
BATCH = 32
TRAIN_SECONDS = 360.0


def write_run(
    folder: Path,
    precision: str = "fp32",
    seed: int = 0,
    acc: float = 0.9,
    *,
    status: str = "finished",
    task: str = "ImageClassifier",
    fingerprint: str = "sha256:aa",
    config: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
    settings: dict[str, Any] | None = None,
    choices: dict[str, str] | None = None,
    cost: dict[str, Any] | None = None,
    skipped: int = 0,
    islands: Sequence[str] = (),
    incidents: int = 0,
    predictions: dict[str, Any] | None = None,
) -> Path:
    """Leave what a run of a generated project leaves, in a new folder.

    The cost is that of `STEP_MS` and `MEMORY`, with no energy measured; `cost` replaces parts of it.
    """
    folder.mkdir(parents=True)
    summary = {"steps": 100, "skipped_steps": skipped, "fp32_layers": dict.fromkeys(islands, "chosen")}
    card = {
        "version": 1,
        "task": task,
        "status": status,
        "started": "2026-02-03T04:00:00+00:00",
        "ended": "2026-02-03T04:06:00+00:00",
        "git": {"commit": "c0ffee", "branch": "main", "dirty": False},
        "config": {
            "seed": seed,
            "paths": {"output_root": "outputs", "run_dir": str(folder)},
            "model": {"width": 64},
            "precision": {"_target_": "mp_plugin.AdaptivePrecision", "precision": NAMES[precision], **(settings or {})},
            "trainer": {"max_epochs": 3, "precision": None, "plugins": [{"precision": NAMES[precision]}]},
            **(config or {}),
        },
        "choices": {"precision": precision, "data": "digits", **(choices or {})},
        "overrides": [f"precision={precision}", f"seed={seed}"],
        "environment": {"python": "3.11.9", "torch": "2.9.0", "device": "cpu", "ranks": 1},
        "data": {"name": "digits", "fingerprint": fingerprint, "train": 1000, "val": 300, "test": 4},
        "precision": summary,
        "resumed_from": None,
    }
    write_json(folder / "run.json", card)
    info(steps=100, skipped=skipped).save(folder)
    write_cost(folder, precision, **(cost or {}))
    log = IncidentLog(folder, run="2026-02-03T04:00:00.000+00:00")
    for step in range(incidents):
        log.append(overflow(step))
    if status != "finished":
        return folder
    result = {
        "task": task,
        "seed": seed,
        "precision": NAMES[precision],
        "metrics": {"test/acc": acc, "test/loss": 1 - acc, **(metrics or {})},
        "baselines": {"majority class": 0.1},
        "precision_summary": summary,
        "checkpoint": str(folder / "checkpoints" / "best.ckpt"),
        "status": "finished",
        "run_dir": str(folder),
    }
    write_json(folder / "metrics.json", result)
    if predictions is not None:
        write_predictions(folder, predictions)
    return folder


def write_cost(folder: Path, precision: str, **changes: Any) -> None:
    """Leave the `telemetry/cost.json` of a run on a CPU."""
    step = changes.pop("step", STEP_MS[precision])
    values = {
        "version": 1,
        "steps": 100,
        "step_ms": {"median": step, "p10": 0.9 * step, "p90": 1.2 * step},
        "samples_per_second": 1000 * BATCH / step,
        "train_seconds": TRAIN_SECONDS,
        "waiting_share": 0.02,
        "peak_memory_bytes": MEMORY[precision] * 1_000_000,
        "peak_memory_of": "process, resident",
        "energy_joules": None,
        "energy_source": "not measured: no RAPL here",
        "device": "cpu",
        "ranks": 1,
        **changes,
    }
    write_json(folder / "telemetry" / "cost.json", values)


def write_predictions(folder: Path, columns: dict[str, Any]) -> None:
    """Leave the predictions on the test split; an `index` from 0 on is added where there is none."""
    length = len(next(iter(columns.values())))
    pq.write_table(pa.table({"index": list(range(length)), **columns}), folder / "test_predictions.parquet")


def write_json(path: Path, values: Any) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def write_sweep(folder: Path, accuracies: dict[str, Sequence[float]], **options: Any) -> Path:
    """Leave the runs of a sweep over precisions, with these accuracies for the seeds 0, 1, 2 and so on."""
    number = 0
    for precision, values in accuracies.items():
        for seed, acc in enumerate(values):
            write_run(folder / str(number), precision, seed, acc, **options)
            number += 1
    return folder


FP32 = (0.900, 0.905, 0.895, 0.902, 0.898)
EQUIVALENT = (0.901, 0.904, 0.8955, 0.9015, 0.8985)
"""Within half a point of `FP32`, seed by seed."""
WORSE = (0.880, 0.884, 0.876, 0.883, 0.877)
"""About two points below."""
UNCLEAR = (0.915, 0.890, 0.905, 0.890, 0.900)
"""Anywhere."""
