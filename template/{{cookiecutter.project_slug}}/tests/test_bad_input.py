"""What cannot be run is refused with one sentence, before training starts."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from {{cookiecutter.package_name}}.overrides import refuse_repeated
from {{cookiecutter.package_name}}.training import train

ROOT = Path(__file__).parents[1]

#: Another size than that of the small test runs, of the same data.
WIDTH = {
    "digits": ["model.width=16"],
    "lm": ["model.width=16"],
    "topics": ["model.hidden_dim=16", "data.num_buckets=1024"],
}

REFUSED = {
    "precision=fp17": ["precision=fp17 is unknown", "bf16", "fp32"],
    "+precision=fp16": ["precision"],
    "precision=as_trained": ["precision=as_trained", "eval.py"],
    "data.split_seed=-1": ["split_seed=-1", "0 to"],
    "trainer.max_epoch=3": ["max_epoch"],
    "trainer.max_epochs=-5": ["max_epochs", "-5"],
    "model.lr=0": ["lr=0", "greater than 0"],
    "model.lr=abc": ["lr=abc is not a number"],
    "data.batch_size=true": ["batch_size=True is not a number"],
    "paths.output_root=José": ["paths.output_root=José cannot be read", "in quotes of its own"],
    "paths.output_root=[a": ["paths.output_root=[a cannot be read"],
    "seed": ["seed cannot be read as key=value"],
    "logger=null": ["A group of the configuration, such as logger, cannot be null: leave it out, as with ~logger."],
    "model={widht: 3}": ["model.widht is not a setting of this project"],
    "modle.lr=1": ["modle.lr is not a setting of this project"],
    "precision.device=warp": ["precision: device='warp' is not a device type"],
    "precision.device=xla": ["precision: device='xla' is not available on this machine"],
    "model.warmup_fraction=1": ["warmup_fraction=1", "less than 1"],
    "data.batch_size=0": ["batch_size=0", "greater than 0"],
    "seed=-1": ["seed=-1", "0 to"],
    "seed=null": ["seed=None", "0 to"],
    "+model.depth=3": ["model", "depth"],
    "ckpt_path=nowhere.ckpt": ["ckpt_path=nowhere.ckpt", "not a file"],
    "model._target_=nowhere.Model": ["nowhere"],
}


def refusal(run_script: Callable[..., Any], script: str, *overrides: str) -> str:
    """The one sentence with which a script ends; neither 0 nor a mere number."""
    with pytest.raises(SystemExit) as caught:
        run_script(script, *overrides)
    sentence = caught.value.code
    assert isinstance(sentence, str)
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("override", REFUSED)
def test_setting_is_refused(run_script: Callable[..., Any], tmp_path: Path, override: str) -> None:
    sentence = refusal(run_script, "train.py", override)
    assert all(part in sentence for part in REFUSED[override]), sentence
    assert not list(tmp_path.rglob("*.ckpt"))


def test_precision_twice_is_refused(run_script: Callable[..., Any]) -> None:
    sentence = refusal(run_script, "train.py", "precision=bf16", "precision=fp16")
    assert "precision=bf16 and " in sentence
    assert "precision=fp16" in sentence


@pytest.mark.parametrize("setting", ["precision/scaling=static", "precision.scaling.init_scale=2"])
def test_scaling_of_a_format_without_it_is_refused(run_script: Callable[..., Any], setting: str) -> None:
    sentence = refusal(run_script, "train.py", "precision=bf16", setting)
    assert "precision/scaling is a choice of precision=fp16: bf16 " in sentence


def test_other_settings_given_twice_are_refused(run_script: Callable[..., Any]) -> None:
    sentence = refusal(run_script, "train.py", "seed=1", "seed=2")
    assert sentence == "seed is given twice, as seed=1 and as seed=2: give it once."


def test_sweep_that_is_to_go_on_is_named(run_script: Callable[..., Any], tmp_path: Path) -> None:
    sentence = refusal(run_script, "train.py", "hydra.mode=MULTIRUN", "resume=latest", "seed=0,1")
    assert sentence == "resume=latest needs the directory of the sweep that is to go on: hydra.sweep.dir=..."
    assert not list(tmp_path.iterdir())


def test_several_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="names several precisions for one run"):
        refuse_repeated(["seed=1", "precision=[bf16,fp16]"])


@pytest.mark.parametrize("script", ["eval.py", "predict.py"])
def test_missing_checkpoint_is_refused(run_script: Callable[..., Any], script: str) -> None:
    assert "ckpt_path is missing" in refusal(run_script, script)


def test_damaged_checkpoint_is_refused(run_script: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    assert "text.ckpt is damaged" in refusal(run_script, "train.py", "ckpt_path=text.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "part.ckpt")
    assert "it lacks task" in refusal(run_script, "eval.py", "ckpt_path=part.ckpt")


def test_checkpoint_of_another_task_or_size_is_refused(
    run_script: Callable[..., Any], small: Callable[..., Any], tmp_path: Path, experiment: str
) -> None:
    train(small(experiment, "trainer.max_epochs=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    asked = [f"experiment={experiment}", "ckpt_path=run/checkpoints/last.ckpt"]
    assert "does not fit the model" in refusal(run_script, "train.py", *asked, *WIDTH[experiment])
    if experiment == "topics":  # with as many ids as usual: what follows from them, such as shapes, is not worth a word
        for command in (["train.py", *asked], ["eval.py", asked[1], "+data.num_buckets=512"]):
            assert "trained with other tokens than the data have" in refusal(run_script, *command)

    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "task": "Elsewhere"}, path)
    sentence = refusal(run_script, "eval.py", *asked)
    assert "holds a Elsewhere" in sentence
    assert type(checkpoint["task"]) is str
    assert checkpoint["task"] in sentence


def test_refused_run_may_come_again(run_script: Callable[..., Any], tmp_path: Path) -> None:
    assert "lr=-1" in refusal(run_script, "train.py", "model.lr=-1", "hydra.run.dir=again")
    assert "lr=-2" in refusal(run_script, "train.py", "model.lr=-2", "hydra.run.dir=again")
    (tmp_path / "again" / "run.diff").write_text("of then")
    assert "lr=-2" in refusal(run_script, "train.py", "model.lr=-2", "hydra.run.dir=again")
    difference = tmp_path / "again" / "run.diff"
    assert not difference.exists() or difference.read_text() != "of then"
    (tmp_path / "again" / "config_tree.log").touch()  # of a run that began
    assert "again already holds a run" in refusal(run_script, "train.py", "model.lr=-3", "hydra.run.dir=again")
    assert json.loads((tmp_path / "again" / "run.json").read_text())["overrides"] == ["model.lr=-2"]


def test_existing_run_is_left_alone(run_script: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "old" / ".hydra").mkdir(parents=True)
    assert "old already holds a run" in refusal(run_script, "train.py", "hydra.run.dir=old")
    assert not list((tmp_path / "old" / ".hydra").iterdir())


def test_exit_status_and_stderr(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py"), "data.batch_size=0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "batch_size=0 is out of range: it must be greater than 0." in done.stderr


def test_a_job_that_cannot_be_run_does_not_end_the_sweep(
    run_script: Callable[..., Any], settings_of_small: Callable[[str], list[str]], tmp_path: Path
) -> None:
    settings = settings_of_small("digits" if (ROOT / "conf" / "experiment" / "digits.yaml").exists() else "lm")
    sweep = ["seed=-1,0", "precision=fp32,bf16", "hydra.sweep.dir=sweep", "-m"]
    sentence = refusal(run_script, "train.py", *settings, *sweep)
    assert sentence == "seed=-1 is out of range: it must be an integer from 0 to 4294967295."
    cards = [json.loads((tmp_path / "sweep" / str(job) / "run.json").read_text()) for job in range(4)]
    assert [(card["status"], card["error"]) for card in cards] == 2 * [("failed", sentence)] + 2 * [("finished", None)]
    assert "1 of 2 runs did not finish" in (tmp_path / "sweep" / "compare.html").read_text(encoding="utf-8")
