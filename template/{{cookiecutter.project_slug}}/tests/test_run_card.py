"""The run card tells what a run was and how it ended."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.git_facts import git_facts, uncommitted
from {{cookiecutter.package_name}}.run_card import recorded
from {{cookiecutter.package_name}}.training import train

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = "digits" if (CONF / "experiment" / "digits.yaml").exists() else "lm"


def card(run: Path) -> dict[str, Any]:
    """What a run's card says."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def test_card_of_a_finished_run(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    train(small(EXPERIMENT, "seed=3"))
    facts = card(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert (facts["version"], facts["status"], facts["script"]) == (1, "finished", "train")
    assert facts["started"] <= facts["ended"]
    assert facts["task"] == metrics["task"]
    assert facts["config"]["seed"] == 3
    assert facts["config"]["precision"]["_target_"] == "mp_plugin.AdaptivePrecision"
    assert facts["precision"] == metrics["precision_summary"]
    assert facts["environment"]["ranks"] == 1
    assert min(facts["data"][split] for split in ("train", "val", "test")) > 0
    assert metrics["status"] == "finished"


def test_telemetry_stands_in_the_run_folder(small: Callable[..., DictConfig], tmp_path: Path) -> None:
    cfg = small(EXPERIMENT)
    # As train.py does it: trainer.plugins then holds a copy of the precision settings.
    OmegaConf.resolve(cfg)
    train(cfg)
    run = tmp_path / "run"
    assert [path.relative_to(run) for path in run.rglob("telemetry")] == [Path("telemetry")]
    assert {"run.json", "cost.json"} <= {path.name for path in (run / "telemetry").iterdir()}


@pytest.mark.parametrize(
    ("end", "status", "reason"),
    [
        (KeyboardInterrupt(), "stopped", None),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory"),
        (SystemExit("seed=-1 is out of range."), "failed", "seed=-1 is out of range."),
    ],
)
def test_status_of_a_run_that_ends_early(
    config: Callable[..., DictConfig], tmp_path: Path, end: BaseException, status: str, reason: str | None
) -> None:
    def run() -> None:
        with recorded(config("train")):
            assert card(tmp_path / "run")["status"] == "running"
            raise end

    with pytest.raises(type(end)):
        run()
    facts = card(tmp_path / "run")
    assert (facts["status"], facts["error"]) == (status, reason)
    assert facts["ended"]


def test_sigterm_is_no_success(config: Callable[..., DictConfig], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught, recorded(config("train")):
        raise SIGTERMException
    assert caught.value.code == 128 + 15
    assert card(tmp_path / "run")["status"] == "stopped"


def git(folder: Path, *arguments: str) -> str:
    """What git answers."""
    person = ["-c", "user.name=Tester", "-c", "user.email=tester@example.com"]
    command = ["git", "-C", str(folder), *person, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_git_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_facts(tmp_path) is None
    git(tmp_path, "init", "--initial-branch=main")
    (tmp_path / "a.py").write_text("one = 1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--message=First")
    commit = git(tmp_path, "rev-parse", "HEAD")
    clean = {"commit": commit, "branch": "main", "dirty": False, "untracked": []}
    assert git_facts(tmp_path) == clean
    changed = {"a.py": "one = 2  # für\n".encode("latin-1"), "b.png": bytes(range(256))}
    for name, content in changed.items():
        (tmp_path / name).write_bytes(content)
    git(tmp_path, "add", "b.png")
    (tmp_path / "of mine.py").touch()
    assert git_facts(tmp_path) == {**clean, "dirty": True, "untracked": ["of mine.py"]}

    for setting in ("diff.noprefix=true", "diff.relative=true", "diff.mnemonicPrefix=true"):
        git(tmp_path, "config", *setting.split("="))
    (tmp_path / "inside").mkdir()
    difference = uncommitted(tmp_path / "inside")
    assert difference is not None
    (tmp_path / "run.diff").write_bytes(difference)
    git(tmp_path, "reset", "--hard")
    git(tmp_path, "apply", "run.diff")
    assert {name: (tmp_path / name).read_bytes() for name in changed} == changed

    monkeypatch.setenv("PATH", str(tmp_path))  # no git there
    assert git_facts(tmp_path) is None
