"""A trained model gives the same results again."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.evaluation import evaluate
from {{cookiecutter.package_name}}.prediction import predict
from {{cookiecutter.package_name}}.training import train

QUIET = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false"]


def test_eval_and_predict_agree_with_training(
    small: Callable[..., DictConfig], config: Callable[..., DictConfig], tmp_path: Path, experiment: str
) -> None:
    whole = "++trainer.limit_test_batches=1.0"
    trained = train(small(experiment, whole))
    checkpoint = f"ckpt_path='{tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}'"

    # Data, model and precision come from the checkpoint.
    tested = evaluate(config("eval", checkpoint, *QUIET, name="eval"))
    assert tested == {name: value for name, value in trained.items() if name.startswith("test/")}
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["metrics"] == tested
    # Or they are named, and the model's sizes still are those of the checkpoint.
    named = small(experiment, whole, checkpoint, "precision={{cookiecutter.default_precision}}", script="eval", name="named")
    assert evaluate(named) == tested

    file = predict(config("predict", checkpoint, *QUIET, name="predict"))
    rows = pq.read_table(file).to_pylist()
    if "test/acc" in tested:
        accuracy = sum(row["label"] == row["prediction"] for row in rows) / len(rows)
        assert accuracy == pytest.approx(tested["test/acc"], abs=1e-6)
    else:
        mean = sum(float(row["bits_per_byte"]) for row in rows) / len(rows)
        assert mean == pytest.approx(tested["test/bits_per_byte"], rel=1e-5)
