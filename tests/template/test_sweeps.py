"""The generated project's sweeps survive what happens to sweeps: kills, crashes, company, and bad trials."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

optuna = pytest.importorskip("optuna")
pytest.importorskip("plotly")

TRAIN = (
    "experiment=digits",
    "model.width=16",
    "trainer.max_epochs=4",
    "+trainer.limit_train_batches=4",
    "logger=csv",
    "callbacks.progress_bar=null",
)
GOOD_LR = {"choices": [0.01, 0.02]}
SECONDS = 240

Sweep = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def project(bake) -> Path:
    """Generate a project for images."""
    return bake(task="image", default_precision="fp32")


@pytest.fixture
def sweep(project):
    """Return a function that starts a sweep with a search space; what still runs after the test is killed."""
    started = []

    def start(space: dict, *settings: str, train: tuple[str, ...] = TRAIN) -> "subprocess.Popen[str]":
        search = {"train": list(train), "space": space}
        text = "# @package _global_\n" + yaml.safe_dump(search, sort_keys=False)
        (project / "conf" / "search" / "tiny.yaml").write_text(text, encoding="utf-8")
        paths = [str(project / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        process = subprocess.Popen(
            [sys.executable, "sweep.py", "search=tiny", "name=s", "heartbeat_seconds=1", *settings],
            cwd=project,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell starts what it puts into the background, such as a test run, deaf to Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    """Wait for a sweep and return what it printed."""
    printed, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, printed
    return printed


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until something has happened."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def pids_of(folder: Path) -> list[int]:
    """The processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if os.fsencode(str(folder)) in words:
            found.append(int(path.parent.name))
    return found


def trials_of(project: Path) -> list["optuna.trial.FrozenTrial"]:
    """All trials of the study on disk."""
    database = f"sqlite:///{project / 'outputs' / 'sweep' / 's' / 'study.db'}"
    return optuna.load_study(study_name="s", storage=database).trials


def under_way(folder: Path) -> Callable[[], bool]:
    """Whether a trial has begun to train."""
    return (folder / "csv" / "metrics.csv").exists


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="finds a killed sweep's trials in /proc")
def test_killed_sweep_goes_on(project, sweep):
    folder = project / "outputs" / "sweep" / "s"
    settings = ("n_trials=3", "n_jobs=2")
    killed = sweep({"model.lr": {"type": "float", "low": 0.001, "high": 0.1}}, *settings)
    wait_for(under_way(folder / "trials" / "0001"))
    assert pids_of(folder / "trials")
    killed.kill()
    killed.wait()
    # No trial trains on unseen.
    wait_for(lambda: not pids_of(folder / "trials"))

    printed = finish(sweep({"model.lr": {"type": "float", "low": 0.001, "high": 0.1}}, *settings))
    trials = trials_of(project)
    lost = [trial for trial in trials if trial.state.name == "FAIL"]
    assert lost, printed
    repeated = {trial.user_attrs["repeats"]: trial.params for trial in trials if "repeats" in trial.user_attrs}
    assert repeated == {trial.number: trial.params for trial in lost}
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 3
    assert len(trials) == 3 + len(lost)
    assert len({trial.params["model.lr"] for trial in trials}) == 3

    wider = finish(sweep({"model.lr": {"type": "float", "low": 0.001, "high": 0.2}}, *settings), status=1)
    assert "space.model.lr={'low': 0.001, 'high': 0.1, 'log': False}, and now" in wider
    more = finish(sweep({"model.lr": {"type": "float", "low": 0.001, "high": 0.1}}, "n_trials=3", "n_jobs=1"))
    assert "starts" not in more
    assert "3 complete" in more


def test_two_workers_share_a_study_and_its_failures(project, sweep):
    folder = project / "outputs" / "sweep" / "s"
    # The model refuses a learning rate of zero; Hydra refuses a loss scale without fp16.
    space = {"model.lr": {"choices": [0.01, 0.0]}, "precision": {"choices": ["fp32", "bf16"]}}
    workers = [sweep(space, "n_trials=5", "sampler=random", "pruner=none") for _ in range(2)]
    victim = folder / "trials" / "0000"
    wait_for(lambda: pids_of(victim))
    os.kill(pids_of(victim)[0], signal.SIGKILL)  # as the system does when memory runs out
    for worker in workers:
        finish(worker)

    trials = trials_of(project)
    assert len(trials) == 5
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    states = {trial.number: trial.state.name for trial in trials}
    assert states == {
        trial.number: "COMPLETE" if trial.params["model.lr"] and trial.number else "FAIL" for trial in trials
    }
    errors = {trial.number: trial.user_attrs["error"] for trial in trials if trial.state.name == "FAIL"}
    assert errors.pop(0) == "killed by SIGKILL, as the system does when memory runs out"
    assert set(errors.values()) <= {"model: lr=0.0 is out of range: it must be greater than 0."}
    with open(folder / "results.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {int(row["trial"]): row["state"] for row in rows} == states
    assert len(list((folder / "workers").iterdir())) == 2


def test_sweep_in_which_all_fails_stops(project, sweep):
    printed = finish(sweep({"model.lr": {"choices": [0.0]}}, "max_failures_in_a_row=2", "n_jobs=2"), status=1)
    assert "2 trials in a row have failed, so something is wrong with all of them" in printed
    assert "lr=0.0 is out of range" in printed.splitlines()[-1]
    assert {trial.state.name for trial in trials_of(project)} <= {"FAIL", "WAITING"}


def test_poor_trial_is_pruned(project, sweep):
    folder = project / "outputs" / "sweep" / "s"
    options = "+pruner_options.n_startup_trials=1"
    space = {"model.lr": {"choices": [1e-9, 0.02]}}
    finish(sweep(space, "n_trials=4", "sampler=random", "seed=0", options))
    trials = trials_of(project)
    good = [trial for trial in trials if trial.params["model.lr"] == 0.02]
    after = [trial for trial in trials if trial.params["model.lr"] == 1e-9 and trial.number > good[0].number]
    assert after, "the seed draws a good trial first"
    assert {trial.state.name for trial in good} == {"COMPLETE"}
    for trial in after:
        assert trial.state.name == "PRUNED"
        assert len(trial.intermediate_values) == 1
        run = folder / "trials" / f"{trial.number:04d}"
        assert json.loads((run / "trial.json").read_text())["state"] == "PRUNED"
        # It ended as a run ends: with a test of its best checkpoint.
        assert "test/loss" in json.loads((run / "metrics.json").read_text())["metrics"]
    best = yaml.safe_load((folder / "experiment" / "best.yaml").read_text())
    assert best["model"]["lr"] == 0.02
    assert "cdn" not in (folder / "sweep.html").read_text(encoding="utf-8").split("</script>")[-1]


def test_ctrl_c_leaves_the_study_in_order(project, sweep):
    folder = project / "outputs" / "sweep" / "s"
    process = sweep({"model.lr": GOOD_LR}, "n_trials=2", "n_jobs=2")
    wait_for(under_way(folder / "trials" / "0000"))
    process.send_signal(signal.SIGINT)
    assert "`python sweep.py name=s` with the same settings goes on" in finish(process, status=130)
    assert not pids_of(folder / "trials")
    assert (folder / "results.csv").exists()
    trials = trials_of(project)
    assert {trial.state.name for trial in trials} == {"FAIL", "WAITING"}
    assert json.loads((folder / "trials" / "0000" / "trial.json").read_text())["state"] == "FAIL"
    finish(sweep({"model.lr": GOOD_LR}, "n_trials=2", "n_jobs=2"))
    assert sum(trial.state.name == "COMPLETE" for trial in trials_of(project)) == 2


def test_unknown_metric_stops_the_sweep_at_once_and_may_be_put_right(project, sweep):
    printed = finish(sweep({"model.lr": GOOD_LR}, "metric=val/los", "n_trials=2"), status=1)
    assert printed.splitlines()[-1].startswith("metric=val/los is not logged at validation; logged are ")
    assert "val/loss" in printed.splitlines()[-1]
    (failed,) = trials_of(project)
    assert failed.state.name == "FAIL"
    finish(sweep({"model.lr": GOOD_LR}, "n_trials=2"))
    assert [trial.state.name for trial in trials_of(project)] == ["FAIL", "COMPLETE"]
