"""A study of precisions in a generated project, from its command to its page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = ["trainer.max_epochs=1", "model.width=16", "logger=csv", "callbacks.progress_bar=null"]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(bake):
    return bake(task="image")


def python(project, *arguments):
    path = os.pathsep.join([str(project / "src"), str(REPOSITORY)])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )


def test_a_study_in_one_command(project):
    study = ["precisions=fp32,bf16", "seeds=0,1", "fail_if_worse=1", "margin=0.5", *SMALL]
    result = python(project, "-m", "my_project.ablate", *study)
    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = (project / "outputs" / "ablations").iterdir()
    page = (folder / "compare.html").read_text(encoding="utf-8")
    assert "bf16" in result.stdout
    assert "holds the line of 100 points below" in page
    assert result.stdout.count("Cost: medians over runs") == 1
    assert (project / "outputs").is_dir()
    assert [each.name for each in (project / "outputs").iterdir()] == ["ablations"]


def test_a_sweep_over_precisions_compares_itself(project):
    result = python(project, "train.py", "-m", "precision=fp32,bf16", *SMALL)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "a test needs 2 seeds or more" in result.stdout
    (page,) = project.rglob("compare.html")
    assert page.parent.parent.name == "multiruns"
