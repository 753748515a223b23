"""A short training of every task in every precision."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.training import train

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_short_training(small: Callable[..., DictConfig], tmp_path: Path, experiment: str, precision: str) -> None:
    metrics = train(small(experiment, f"precision={precision}"))
    assert math.isfinite(metrics["test/loss"])

    run = tmp_path / "run"
    report = json.loads((run / "metrics.json").read_text())
    assert report["metrics"] == metrics
    assert report["precision"] == PRECISIONS[precision]
    assert report["precision_summary"]["steps"] == 8
    assert report["baselines"]
    assert Path(report["checkpoint"]) == run / "checkpoints" / "best.ckpt"
    tree = (run / "config_tree.log").read_text()
    assert "max_epochs: 2" in tree
    assert tree.count("_target_: mp_plugin.AdaptivePrecision") == 1
    assert "max_epochs: 2" in (run / "csv" / "hparams.yaml").read_text()
    assert "train/loss" in (run / "csv" / "metrics.csv").read_text()

    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(run / "checkpoints" / name, weights_only=True)
        assert checkpoint["task"] == report["task"]
        assert all(tensor.dtype == torch.float32 for tensor in checkpoint["state_dict"].values() if tensor.ndim)


def test_three_batches_are_learnt_by_heart(small: Callable[..., DictConfig], tmp_path: Path, experiment: str) -> None:
    train(
        small(
            experiment, "debug=overfit", "trainer.max_epochs=25", "model.lr=0.01", "++trainer.limit_train_batches=1.0"
        )
    )
    with open(tmp_path / "run" / "csv" / "metrics.csv", newline="") as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert losses[-1] < 0.7 * losses[0]
