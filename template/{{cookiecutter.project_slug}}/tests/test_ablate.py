"""The study of precisions, and the comparison at the end of a sweep."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from {{cookiecutter.package_name}} import entry_point
from {{cookiecutter.package_name}}.ablate import main, split
from {{cookiecutter.package_name}}.compare_at_end import CompareAtEnd, compare_unfinished_sweep


def leave_run(folder: Path, precision: str, seed: int, accuracy: float) -> None:
    """Leave what a run leaves for a comparison, without training."""
    folder.mkdir(parents=True)
    config = {"seed": seed, "precision": {"precision": precision}}
    card = {"version": 1, "task": "T", "status": "finished", "config": config, "choices": {"precision": precision}}
    (folder / "run.json").write_text(json.dumps(card))
    (folder / "metrics.json").write_text(json.dumps({"metrics": {"test/acc": accuracy}, "status": "finished"}))


def leave_sweep(folder: Path) -> None:
    """Leave a sweep in which bf16 lost ten points."""
    for number, (precision, seed, accuracy) in enumerate(
        [("fp32", 0, 0.9), ("fp32", 1, 0.92), ("bf16", 0, 0.8), ("bf16", 1, 0.8201)]
    ):
        leave_run(folder / str(number), precision, seed, accuracy)


def project_at(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder look like the root of this project, and go there."""
    (folder / "conf").mkdir()
    for name in ("train.py", "conf/train.yaml"):
        (folder / name).touch()
    monkeypatch.chdir(folder)


def sweep_config(folder: Path) -> Any:
    """Return as much of a sweep's config as its end needs."""
    return OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})


@pytest.mark.parametrize(("trained", "line", "status"), [(0, "0.5", 0), (0, "0.01", 3), (1, "0.5", 1)])
def test_a_study_trains_compares_and_hands_its_status_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trained: int, line: str, status: int
) -> None:
    commands: list[list[str]] = []

    def train(command: list[str]) -> int:
        commands.append(command)
        (directory,) = (each.partition("=")[2] for each in command if each.startswith("hydra.sweep.dir="))
        leave_sweep(Path(directory))
        return trained

    monkeypatch.setattr(subprocess, "call", train)
    project_at(tmp_path, monkeypatch)
    study = ["precisions=fp32,bf16", "seeds=0,1", "model.lr=0.1", f"fail_if_worse={line}", "margin=0.2"]
    assert main(study) == status
    ((_, script, *overrides),) = commands
    assert script == "train.py"
    assert {"-m", "precision=fp32,bf16", "seed=0,1", "model.lr=0.1", "~hydra.callbacks.compare_at_end"} < set(overrides)
    (folder,) = (tmp_path / "outputs" / "ablations").iterdir()
    assert "bf16: equivalent to fp32 within 20 points" in (folder / "compare.html").read_text(encoding="utf-8")


def test_a_study_refused_by_the_training_ends_with_its_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(command: list[str]) -> int:
        (directory,) = (each.partition("=")[2] for each in command if each.startswith("hydra.sweep.dir="))
        Path(directory).mkdir(parents=True)
        (Path(directory) / "multirun.yaml").touch()  # is there before the first run is composed
        return 1

    monkeypatch.setattr(subprocess, "call", refuse)
    project_at(tmp_path, monkeypatch)
    assert main(["nonsense"]) == 1


def test_settings_of_the_study_are_told_from_those_of_the_training() -> None:
    own, overrides = split(["margin=0.01", "model.margin=3", "seeds=0,1", "trainer.max_epochs=1"])
    assert own == {"margin": "0.01", "seeds": "0,1"}
    assert overrides == ["model.margin=3", "trainer.max_epochs=1"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("margin=half", "margin=half is not accepted; accepted: a number of at least 0"),
        ("fail_if_worse=-1", "fail_if_worse=-1 is not accepted"),
        ("precisions=bf16", "precisions=bf16 names one precision; accepted: two or more"),
        ("seeds=0,1,0", "seeds=0,1,0 names a seed twice"),
        ("precisions=fp32,bf16", "start this in the project's root"),
    ],
)
def test_what_cannot_be_studied_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main([argument])
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_over_precisions_is_compared_at_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leave_sweep(tmp_path)
    CompareAtEnd().on_multirun_end(sweep_config(tmp_path))
    assert "bf16: worse than fp32 by" in " ".join(capsys.readouterr().out.split())
    assert "bf16: worse than fp32 by" in (tmp_path / "compare.html").read_text(encoding="utf-8")


def test_a_sweep_over_something_else_ends_without_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        leave_run(tmp_path / str(seed), "bf16", seed, 0.9)
    CompareAtEnd().on_multirun_end(sweep_config(tmp_path))
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "compare.html").exists()


def test_runs_that_cannot_be_compared_do_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CompareAtEnd().on_multirun_end(sweep_config(tmp_path))
    assert capsys.readouterr().out.startswith("The runs are not compared: ")


def test_a_sweep_that_a_job_ended_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(entry_point, "compare_unfinished_sweep", lambda: told.append("compared"))

    def main() -> None:
        raise ValueError("the loss of job 3")

    with pytest.raises(ValueError, match="the loss of job 3"):
        entry_point.entry_point(main)()
    assert told == ["compared"]


def test_a_sweep_that_was_refused_has_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "multirun.yaml").touch()
    CompareAtEnd().on_multirun_start(sweep_config(tmp_path))
    compare_unfinished_sweep()
    assert capsys.readouterr().out == ""
