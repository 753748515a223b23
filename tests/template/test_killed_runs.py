"""A training that is killed with SIGKILL, at any time and again and again, ends with the weights it would have had."""

import csv
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

HELPER = Path(__file__).resolve().parents[1] / "helpers" / "killed_run.py"
SMALL = (
    *("logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1"),
    *("trainer.max_epochs=3", "+trainer.limit_train_batches=4", "+trainer.limit_val_batches=2", "model.width=32"),
    # How many layers are sampled depends on the time that it takes.
    "precision.telemetry.every_n_steps=0",
)
VARIANTS = {
    "bf16": [],
    # Overflows at first, so that the loss scale and the skipped steps have something to resume.
    "fp16 with an average": [
        *("precision=fp16", "precision.scaling.init_scale=16777216", "callbacks=[default,ema]"),
    ],
    "in the middle of epochs": [
        *("callbacks=[default,step_checkpoints]", "callbacks.step_checkpoints.every_n_train_steps=1"),
    ],
}


def train(project: Path, run_dir: Path, kills: list[int], settings: list[str]) -> list[str]:
    """Train until the kills are over and the run is done; what became of each attempt."""
    command = [sys.executable, str(HELPER), ",".join(map(str, kills)), f"hydra.run.dir={run_dir}", "resume=latest"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(project / "src"), *sys.path]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *SMALL, *settings], cwd=project, env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"^(?:killed|finished \d+)$", done.stdout, flags=re.MULTILINE)


def differences(a: object, b: object, place: str = "") -> list[str]:
    """Where two checkpoints differ; names of files aside, as the runs lie in different folders."""
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [place]
    if isinstance(a, dict):
        a, b = ({key: value for key, value in side.items() if key != "CostMeter"} for side in (a, b))  # it has a clock
        pairs = list(zip(a.items(), b.items(), strict=True))
        names = [place for (left, _), (right, _) in pairs if left != right and "/" not in str(left)]
        return names + [found for (name, x), (_, y) in pairs for found in differences(x, y, f"{place}.{name}")]
    if isinstance(a, (list, tuple)):
        return [
            found
            for i, (x, y) in enumerate(zip(a, b, strict=True))
            for found in differences(x, y, f"{place}[{i}]")
        ]
    return [] if a == b or (isinstance(a, str) and "/" in a) else [f"{place}: {a} and {b}"]


def losses(run_dir: Path) -> list[tuple]:
    with open(run_dir / "csv" / "metrics.csv", newline="") as stream:
        return [tuple(row[name] for name in ("step", "train/loss", "val/loss", "test/loss")) for row in csv.DictReader(stream)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_kills_leave_no_trace(variant, bake, tmp_path):
    project, settings = bake(task="image"), VARIANTS[variant]
    whole = tmp_path / "whole"
    (end,) = train(project, whole, [], settings)
    moments = int(end.split()[1])
    assert moments > 80
    rng = random.Random(variant)
    for number in range(3):
        # The first kill is anywhere; the others come while less and less is left to do.
        kills = [rng.randrange(moments), rng.randrange(moments), rng.randrange(moments // 2)]
        killed = tmp_path / f"killed{number}"
        assert "killed" in train(project, killed, kills, settings)
        for name in ("last", "best"):
            checkpoints = (torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True) for run in (whole, killed))
            assert [place for place in differences(*checkpoints) if not place.startswith(".loops")] == [], kills
        metrics, again = (json.loads((run / "metrics.json").read_text())["metrics"] for run in (whole, killed))
        assert metrics == again
        rows, kept = losses(whole), losses(killed)
        # A step's row is written after its checkpoint, if it has one: each kill can fall between the two.
        lost = len(kills) if "step_checkpoints" in str(settings) else 0
        assert len(kept) >= len(rows) - lost
        assert [row for row in rows if row in kept] == kept
        assert pq.read_table(whole / "test_predictions.parquet") == pq.read_table(killed / "test_predictions.parquet")
        files = ({str(path.relative_to(run)) for path in run.rglob("*") if "telemetry" not in path.parts} for run in (whole, killed))
        assert len(set.symmetric_difference(*files)) == 0
