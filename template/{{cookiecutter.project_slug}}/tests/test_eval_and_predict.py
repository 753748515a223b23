"""A trained model gives the same results again."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.evaluation import evaluate
from {{cookiecutter.package_name}}.prediction import predict
from {{cookiecutter.package_name}}.tasks.base import Task
from {{cookiecutter.package_name}}.training import train

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = "digits" if (CONF / "experiment" / "digits.yaml").exists() else "lm"
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


def test_predictions_end_when_they_are_told_to(
    small: Callable[..., DictConfig], config: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(small(EXPERIMENT, "trainer.max_epochs=1"))
    checkpoint = f"ckpt_path='{tmp_path / 'run' / 'checkpoints' / 'best.ckpt'}'"
    cfg = config("predict", checkpoint, *QUIET, "+data.batch_size=8", name="predict")
    steps = []

    def step(self: Task, batch: Any, batch_idx: int) -> dict[str, torch.Tensor]:
        steps.append(batch_idx)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"prediction": torch.zeros(8, dtype=torch.int64)}

    monkeypatch.setattr(hydra.utils.get_class(small(EXPERIMENT).model["_target_"]), "predict_step", step)
    with pytest.raises(SystemExit) as caught:
        predict(cfg)
    assert caught.value.code == 128 + signal.SIGTERM
    assert steps == [0]
    assert json.loads((tmp_path / "predict" / "run.json").read_text())["status"] == "stopped"
    assert not (tmp_path / "predict" / "predictions.parquet").exists()
