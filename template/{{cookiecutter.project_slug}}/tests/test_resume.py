"""Going on with a run: from its weights, its whole state, or where it was killed."""

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.csv_logger import CSVLogger
from {{cookiecutter.package_name}}.locks import is_in_use, only_writer
from {{cookiecutter.package_name}}.resume import newest_unfinished
from {{cookiecutter.package_name}}.run_card import recorded
from {{cookiecutter.package_name}}.trained_settings import KeepSettings
from {{cookiecutter.package_name}}.training import train
from {{cookiecutter.package_name}}.whole_file import whole_file

ROOT = Path(__file__).parents[1]
EXPERIMENT = "digits" if (ROOT / "conf" / "experiment" / "digits.yaml").exists() else "lm"

#: A process that trains, and dies in the middle of the second last.ckpt that it writes.
KILLED = """
import io, os, runpy, signal, sys
from pathlib import Path
import torch

save, saved = torch.save, []

def half(content, file):
    saved.append(str(file))
    if sum("last.ckpt" in name for name in saved) == 2:
        whole = io.BytesIO()
        save(content, whole)
        Path(file).write_bytes(whole.getvalue()[:1000])
        os.kill(os.getpid(), signal.SIGKILL)
    save(content, file)

torch.save = half
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def state(run: Path, name: str = "last") -> dict[str, Any]:
    """A checkpoint's content."""
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def losses(run: Path) -> list[tuple[str, str, str]]:
    """Step and losses of each row of a run's log."""
    with open(run / "csv" / "metrics.csv", newline="") as stream:
        return [(row["step"], row["train/loss"], row["val/loss"]) for row in csv.DictReader(stream)]


def test_killed_while_it_writes_a_checkpoint(
    tmp_path: Path, small: Callable[..., DictConfig], settings_of_small: Callable[[str], list[str]]
) -> None:
    experiment = EXPERIMENT
    settings = [*settings_of_small(experiment), "resume=latest", "hydra.run.dir=killed"]
    command = [sys.executable, "-c", KILLED, str(ROOT / "train.py"), *settings]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    killed = tmp_path / "killed"
    assert json.loads((killed / "run.json").read_text())["status"] == "running"
    assert state(killed)["epoch"] == 0

    cfg = small(experiment, "resume=latest", name="killed")
    train(cfg)
    train(small(experiment, name="whole"))
    for name in ("last", "best"):
        assert equal(state(killed, name)["state_dict"], state(tmp_path / "whole", name)["state_dict"])
    assert losses(killed) == losses(tmp_path / "whole")
    facts = json.loads((killed / "run.json").read_text())
    assert facts["status"] == "finished"
    assert facts["resumed_from"] == str(killed / "checkpoints" / "last.ckpt")
    assert not [path for path in killed.rglob("*") if "partial" in path.name]


def test_weights_alone(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    experiment = EXPERIMENT
    train(small(experiment, name="first"))
    first = tmp_path / "first" / "checkpoints" / "last.ckpt"
    # With a learning rate of next to nothing the weights stay where they start.
    train(small(experiment, "resume=weights", f"ckpt_path='{first}'", "model.lr=1e-30", name="second"))
    second = state(tmp_path / "second")
    assert equal(second["state_dict"], state(tmp_path / "first")["state_dict"])
    # The last checkpoint is that of the last epoch, although validation did not get better in it.
    assert (second["epoch"], second["global_step"]) == (1, 8)
    assert json.loads((tmp_path / "second" / "run.json").read_text())["resumed_from"] == str(first)


def test_the_middle_of_an_epoch_needs_steps_of_the_same_size(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    middle = ["callbacks=[default,step_checkpoints]", "callbacks.step_checkpoints.filename=middle"]
    middle += ["callbacks.step_checkpoints.every_n_train_steps=3", "trainer.max_epochs=1"]
    first = small(EXPERIMENT, *middle, "callbacks.progress_bar=null", name="first")
    train(first)
    checkpoint = tmp_path / "first" / "checkpoints" / "middle.ckpt"
    again = [EXPERIMENT, f"ckpt_path='{checkpoint}'", f"data.batch_size={2 * first.data.batch_size}"]
    with pytest.raises(SystemExit, match=f"middle of an epoch, with {first.data.batch_size} examples per step"):
        train(small(*again, "resume=everything", name="second"))
    assert not (tmp_path / "second" / "checkpoints").exists()
    train(small(*again, "resume=weights", "trainer.max_epochs=1", name="third"))


def test_finished_runs_and_other_settings(
    small: Callable[..., DictConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [EXPERIMENT, "trainer.max_epochs=1", "resume=latest"]
    metrics = train(small(*settings))
    written = (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    capsys.readouterr()
    assert train(small(*settings)) == metrics
    assert "has finished already" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="other settings: seed is 0 there and 5 here"):
        train(small(*settings, "seed=5"))


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        (["resume=weights"], "ckpt_path is missing"),
        (["resume=everything"], "ckpt_path is missing"),
        (["resume=lastest"], "resume=lastest is unknown; accepted: null, weights, everything, latest"),
        (["resume=latest", "ckpt_path=a.ckpt"], "resume=latest finds its own checkpoint"),
    ],
)
def test_modes_that_cannot_be(small: Callable[..., DictConfig], settings: list[str], complaint: str) -> None:
    with pytest.raises(SystemExit, match=complaint):
        train(small(EXPERIMENT, *settings))


def test_latest_is_the_newest_unfinished_run_with_these_settings(
    config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    assert newest_unfinished(config("train"), tmp_path) is None
    for number, (name, seed) in enumerate({"old": 0, "new": 0, "other": 1, "busy": 0}.items()):
        with recorded(config("train", f"seed={seed}", name=name)) as card:
            started = f"2030-01-01T00:00:0{number}+00:00"
            killed = json.dumps(json.loads((card.directory / "run.json").read_text()) | {"started": started})
        (tmp_path / name / "run.json").write_text(killed)
    wanted = config("train", "resume=latest")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "busy")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    assert is_in_use(tmp_path / "busy")
    with pytest.raises(ValueError, match="another process is at work"), only_writer(tmp_path / "busy"):
        pass
    assert newest_unfinished(wanted, tmp_path) == tmp_path / "new"
    holder.kill()
    holder.communicate()
    assert newest_unfinished(wanted, tmp_path) == tmp_path / "busy"


#: A process that works on a run until it is killed.
HOLD = """
import sys
from pathlib import Path
from {{cookiecutter.package_name}}.locks import only_writer

with only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_log_that_goes_on_keeps_what_comes_before(tmp_path: Path) -> None:
    def log(steps: range, from_step: int | None) -> list[dict[str, str]]:
        logger = CSVLogger(tmp_path, name="csv", version="")
        if from_step is not None:
            logger.go_on_from(from_step)
        for step in steps:
            logger.log_metrics({"loss": step / 2, **({"late": 1.0} if step > 3 else {})}, step)
            logger.save()
        with open(tmp_path / "csv" / "metrics.csv", newline="") as stream:
            return list(csv.DictReader(stream))

    whole = log(range(6), None)
    with open(tmp_path / "csv" / "metrics.csv", "a") as stream:
        stream.write("9,cut o")  # by a kill
    assert log(range(3, 6), 3) == whole
    assert [row["step"] for row in log(range(2), None)] == ["0", "1"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "a.txt"
    with whole_file(file) as partial:
        partial.write_text("old")
    with pytest.raises(FileNotFoundError), whole_file(file) as partial:
        partial.with_name("nowhere").rename(partial)
    assert file.read_text() == "old"


def test_told_to_end_in_the_middle_of_an_epoch(
    small: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == 6 and not told_once:
            told_once.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    told_once: list[bool] = []
    monkeypatch.setattr(KeepSettings, "on_train_batch_start", lambda self, trainer, *args: told(trainer))
    with pytest.raises(SystemExit) as caught:
        train(small(EXPERIMENT, "resume=latest", name="told"))
    assert caught.value.code == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "told" / "run.json").read_text())["status"] == "stopped"
    assert state(tmp_path / "told")["global_step"] == 7
    train(small(EXPERIMENT, "resume=latest", name="told"))
    train(small(EXPERIMENT, name="whole"))
    assert equal(state(tmp_path / "told")["state_dict"], state(tmp_path / "whole")["state_dict"])
