"""Comparing runs of projects that we did not write: plain Lightning, and somebody else's Hydra app."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.loggers import CSVLogger

from mp_plugin import AdaptivePrecision, CostMeter
from mp_plugin.compare import compare_runs
from mp_plugin.compare.statistics import Method
from tests.helpers.training import Regression, quiet_trainer, regression_data

APP = """
import hydra
import lightning.pytorch as pl
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger
from tests.helpers.training import regression_data
from tests.integration.test_compare_foreign import WithTest


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    pl.seed_everything(cfg.seed)
    if cfg.fails:
        raise SystemExit("no GPU here")
    logger = CSVLogger(HydraConfig.get().runtime.output_dir, name="csv")
    trainer = hydra.utils.instantiate(cfg.trainer, logger=logger)
    model = WithTest(cfg.seed)
    trainer.fit(model, regression_data())
    trainer.test(model, regression_data(), verbose=False)


main()
"""
CONFIG = """
seed: 0
fails: false
trainer:
  _target_: lightning.pytorch.Trainer
  accelerator: cpu
  max_epochs: 1
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  precision: null
  log_every_n_steps: 1
"""


class WithTest(Regression):
    """Weights by the seed, and a test."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for layer in (self.net[0], self.net[2]):
            layer.reset_parameters()

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))


@pytest.fixture
def own_seed(monkeypatch):
    """What seed_everything leaves behind in the environment is taken back."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")


def test_runs_of_plain_lightning_are_paired_by_the_seed_that_was_set(tmp_path, own_seed):
    for precision in ("fp32", "bf16"):
        for seed in (0, 1, 2):
            seed_everything(seed, verbose=False)
            trainer = quiet_trainer(
                plugins=[AdaptivePrecision(precision)],
                callbacks=[CostMeter()],
                logger=CSVLogger(tmp_path, name="logs"),
                log_every_n_steps=1,
            )
            model = WithTest(seed)
            trainer.fit(model, regression_data())
            trainer.test(model, regression_data(), verbose=False)
    comparison = compare_runs([tmp_path])
    assert [each.group.label for each in comparison.groups] == ["32-true", "bf16-mixed"]
    assert [run.seed for run in comparison.runs] == [0, 1, 2, 0, 1, 2]
    assert comparison.metric.name == "test_loss"
    difference = comparison.groups[1].results[0].difference
    assert (difference.method, difference.count) == (Method.paired, 3)
    assert comparison.groups[1].cost.step_ms is not None


def test_runs_of_a_hydra_app_tell_their_seed_and_choice(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "app.py", "-m", "+precision=fp32,bf16", "seed=0,1", "hydra.sweep.dir=sweep"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = [*command[:2], "+precision=bf16", "seed=2", "fails=true", "hydra.run.dir=sweep/refused"]
    assert subprocess.run(refused, cwd=tmp_path, env=environment, capture_output=True).returncode == 1
    comparison = compare_runs([tmp_path / "sweep"])
    assert [each.group.label for each in comparison.groups] == ["fp32", "bf16"]
    found = sorted((run.choice, run.seed, run.status) for run in comparison.runs)
    finished = [(choice, seed, "finished") for choice in ("bf16", "fp32") for seed in (0, 1)]
    assert found == sorted([*finished, ("bf16", 2, "left no metrics")])
    assert comparison.groups[1].results[0].difference.method is Method.paired
    assert comparison.groups[1].steps == 16  # of the record that the plugin wrote beside the log
    assert not any("differ in more" in note for note in comparison.notes)
