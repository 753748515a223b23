"""A sweep with every logger leaves nothing outside its folder, and each run is closed before the next begins."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def user(tmp_path: Path) -> dict[str, str]:
    """Return the environment of a user with an empty home, who has not told any tracker anything."""
    (tmp_path / "home").mkdir()
    told = ("WANDB_", "MLFLOW_", "XDG_", "PYTEST_", "HYDRA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(told)}
    # MLflow stays silent in continuous integration anyway; here it has to be our doing.
    for name in ("CI", "GITHUB_ACTIONS", "DO_NOT_TRACK"):
        environment.pop(name, None)
    return environment | {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_sweep_with_all_loggers_stays_in_its_folder(bake, user, tmp_path):
    project = bake(task="image")
    before = below(project)
    loggers = "logger=[csv,tensorboard,wandb,mlflow]"
    environment = user | {"PYTHONPATH": os.pathsep.join(["src", user.get("PYTHONPATH", "")]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "train.py", "-m", "seed=0,1", loggers, "debug=fast", "hydra.sweep.dir=outputs/sweep"]
    done = subprocess.run(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "session has already started" not in done.stdout

    assert below(tmp_path / "home") == set()
    assert {path.split("/")[0] for path in below(project) - before} == {"outputs"}
    assert {path.name for path in (project / "outputs" / "sweep").iterdir()} == {"0", "1", "multirun.yaml"}
    for number in (0, 1):
        run = project / "outputs" / "sweep" / str(number)
        assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
        assert len(list(run.glob("tensorboard/events.out.tfevents.*"))) >= 1
        with sqlite3.connect(run / "mlflow.db") as database:
            rows = database.execute("select status, value from runs join params using (run_uuid) where key = 'seed'")
            assert rows.fetchall() == [("FINISHED", str(number))]
        assert f"seed: {number}" in (run / "csv" / "hparams.yaml").read_text(encoding="utf-8")
