"""A trained model gives the same results again."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.evaluation import evaluate
from {{cookiecutter.package_name}}.prediction import predict
from {{cookiecutter.package_name}}.training import train


def test_eval_and_predict_agree_with_training(
    small: Callable[..., DictConfig], tmp_path: Path, experiment: str
) -> None:
    whole = "++trainer.limit_test_batches=1.0"
    trained = train(small(experiment, whole))
    checkpoint = f"ckpt_path='{tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}'"

    tested = evaluate(small(experiment, whole, checkpoint, script="eval", name="eval"))
    assert tested == {name: value for name, value in trained.items() if name.startswith("test/")}
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"] == tested

    file = predict(small(experiment, checkpoint, script="predict", name="predict"))
    with open(file, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if "test/acc" in tested:
        accuracy = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
        assert accuracy == pytest.approx(tested["test/acc"], abs=1e-6)
    else:
        mean = sum(float(row["bits_per_byte"]) for row in rows) / len(rows)
        assert mean == pytest.approx(tested["test/bits_per_byte"], rel=1e-5)
