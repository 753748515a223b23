"""Every logger is told the same, alone and beside others, and writes below the run's directory only."""

import csv
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.resume import go_on_from
from {{cookiecutter.package_name}}.training import train

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
INSTALLED = [logger for logger in LOGGERS if logger == "csv" or find_spec(logger)]
#: What loggers add of their own: the step, and when something was logged.
OWN = {"step", "trainer/global_step", "_step", "_runtime", "_timestamp"}


def names_in_csv(run: Path) -> set[str]:
    with open(run / "csv" / "metrics.csv", newline="") as stream:
        return set(next(csv.reader(stream)))


def names_in_tensorboard(run: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return set(events.Tags()["scalars"])


def names_in_wandb(run: Path) -> set[str]:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    names = set()
    for data in records(file.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        names |= {item.key or "/".join(item.nested_key) for item in record.history.item}
    # Histograms, and the table of layers, are no metrics with a value.
    return {name for name in names if "log2_magnitude" not in name and "_table" not in name}


def records(content: bytes) -> Iterator[bytes]:
    """What a file of W&B holds: LevelDB's log format, in blocks of 32 KiB, after seven bytes."""
    position, data = 7, b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:  # no room for another head
            position += 32768 - position % 32768
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


def names_in_mlflow(run: Path) -> set[str]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    (record,) = client.search_runs([experiment.experiment_id])
    assert record.info.status == "FINISHED"
    assert record.data.params["seed"] == "0"
    assert record.data.params["trainer/max_epochs"] == "2"
    return set(record.data.metrics)


NAMES = {
    "csv": names_in_csv,
    "tensorboard": names_in_tensorboard,
    "wandb": names_in_wandb,
    "mlflow": names_in_mlflow,
}


def test_all_loggers_at_once_are_told_the_same(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    overrides = [f"logger=[{','.join(INSTALLED)}]", "precision=fp16", "precision/telemetry=full"]
    train(small("{{ 'lm' if cookiecutter.task == 'nlp' else 'digits' }}", *overrides))
    run = tmp_path / "run"
    told = {logger: NAMES[logger](run) - OWN for logger in INSTALLED}
    assert {"train/loss", "val/loss", "test/loss", "precision/loss_scale", "epoch"} <= told["csv"]
    assert any(name.startswith("precision/layer/") and "." in name for name in told["csv"])
    assert told == dict.fromkeys(INSTALLED, told["csv"])
    assert json.loads((run / "telemetry" / "cost.json").read_text())["steps"] == 8


def test_steps_that_are_logged_again_show_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps, value, begin in ((range(6), 1.0, 0), (range(3, 8), 2.0, 3)):
        logger = TensorBoardLogger(tmp_path, name="tensorboard", version="")
        go_on_from(logger, begin)
        for step in steps:
            logger.log_metrics({"loss": value}, step=step)
        logger.finalize("success")
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(each.step, each.value) for each in shown] == [(i, 1.0 if i < 3 else 2.0) for i in range(8)]


@pytest.mark.parametrize("option", LOGGERS)
def test_each_stays_below_the_run(option: str) -> None:
    cfg = compose("train", ["paths.run_dir=/somewhere/run", f"logger=[csv,{option}]"])
    loggers = OmegaConf.to_container(cfg.logger, resolve=True)
    assert set(loggers) == {"csv", option}
    assert all("/somewhere/run" in str(settings) for settings in loggers.values())
