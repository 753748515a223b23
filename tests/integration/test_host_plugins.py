"""What a precision config does to the Trainer plugins of an app that we did not write."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent / "foreign_app"
IO = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
SLURM = "lightning.pytorch.plugins.environments.SLURMEnvironment"


@pytest.fixture
def run(tmp_path):
    def call(script, *args):
        command = [sys.executable, str(APP / script), *args]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    return call


def trainer(result):
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])["trainer"]


def stop_sentence(result):
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def overrides_to_paste(sentence):
    return shlex.split(sentence.partition("; to go on, add ")[2])


def test_an_app_without_plugins_gets_ours(run):
    config = trainer(run("show.py", "+precision=bf16"))
    assert config["plugins"] == ["${precision}"]
    assert config["precision"] is None


def test_lost_plugins_stop_the_run_and_the_pasted_override_keeps_them(run):
    args = ("+precision=bf16", "trainer=cluster")
    sentence = stop_sentence(run("show.py", *args))
    assert sentence.startswith(f"Stopped before training: precision=bf16 would drop {SLURM}, {IO} from this app's")
    result = run("app.py", *args, *overrides_to_paste(sentence))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "AdaptivePrecision torch.bfloat16 AsyncCheckpointIO"


@pytest.mark.parametrize(
    "args",
    [
        ("-m", "+precision=fp32,bf16", "trainer=cluster"),
        ("-m", "+precision=bf16", "trainer=default,cluster"),
    ],
    ids=["over precision", "over trainer"],
)
def test_a_sweep_is_stopped_too(run, args):
    assert f"would drop {SLURM}, {IO}" in stop_sentence(run("show.py", *args))


def test_a_sweep_that_loses_nothing_runs(run):
    result = run("show.py", "-m", "+precision=glob(*)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count('"plugins": ["${precision}"]') == 6


def test_a_plugin_list_on_the_command_line_is_the_users_decision(run):
    config = trainer(run("show.py", "+precision=bf16", "trainer=cluster", "trainer.plugins=[${precision}]"))
    assert config["plugins"] == ["${precision}"]


def test_precision_in_the_apps_own_defaults_list(run):
    result = run("show.py", "--config-name", "precision_last")
    assert trainer(result)["plugins"] == ["${precision}"]
    assert "mp_plugin" not in result.stderr


def test_precision_and_trainer_chosen_by_an_experiment(run):
    sentence = stop_sentence(run("show.py", "--config-name", "precision_last", "experiment=cluster"))
    assert f"precision=fp16 would drop {SLURM}, {IO}" in sentence


def test_a_trainer_that_comes_later_takes_ours_away(run):
    args = ("--config-name", "precision_first")
    sentence = stop_sentence(run("show.py", *args))
    assert "trainer.plugins does not contain ${precision}, so that precision=bf16 would have no effect" in sentence
    assert "precision=bf16 and trainer.precision=32-true are two precisions for one trainer" in sentence
    config = trainer(run("show.py", *args, *overrides_to_paste(sentence)))
    assert config["plugins"] == ["${precision}", {"_target_": SLURM, "auto_requeue": False}, {"_target_": IO}]
    assert config["precision"] is None


def test_two_precisions_stop_the_run(run):
    sentence = stop_sentence(run("show.py", "+precision=bf16", "trainer.precision=16-mixed"))
    assert "precision=bf16 and trainer.precision=16-mixed are two precisions for one trainer" in sentence
    assert overrides_to_paste(sentence) == ["trainer.precision=null"]


@pytest.mark.parametrize("args", [("+precision=bf16",), ("--config-name", "precision_last", "precision=bf16")])
def test_a_precision_given_twice_stops_the_run(run, args):
    sentence = stop_sentence(run("show.py", *args, "precision=fp16"))
    assert sentence == f"Stopped before training: {args[-1]} and precision=fp16 are 2 precisions; give one"


def test_an_app_that_instantiates_the_precision_itself_is_left_alone(run):
    assert trainer(run("show.py", "--config-name", "own_trainer_call", "+precision=bf16"))["plugins"] == [
        "${precision}"
    ]


def test_an_app_that_does_not_compose_without_the_precision_gets_a_warning_and_runs(run):
    result = run("show.py", "--config-name", "precision_last", "precision=fp16", "experiment=static_scale")
    assert trainer(result)["plugins"] == ["${precision}"]
    assert result.stderr.count("mp_plugin cannot tell whether precision=fp16 drops an entry") == 1


def test_the_check_can_be_turned_off(run):
    config = trainer(run("show.py", "+precision=bf16", "trainer=cluster", "hydra.job.env_set.MP_PLUGIN_CHECK=skip"))
    assert config["plugins"] == ["${precision}"]


def test_help_and_cfg_show_the_app_and_nothing_of_the_check(run):
    shown = run("show.py", "+precision=bf16", "--cfg", "job").stdout
    assert "precision: bf16-mixed" in shown
    assert "MP_PLUGIN_CHECK" not in shown
    assert "MP_PLUGIN_CHECK" not in run("show.py", "+precision=bf16", "--help").stdout
