"""Only runs of this project that failed, or are old enough, are removed."""

import io
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from {{cookiecutter.package_name}}.clean_runs import main
from {{cookiecutter.package_name}}.locks import NAME


def make_run(directory: Path, status: str, days: float) -> None:
    """Leave a run that started some days ago."""
    directory.mkdir(parents=True)
    started = (datetime.now(timezone.utc) - timedelta(days=days)).isoformat(timespec="seconds")
    card = {"version": 1, "script": "train", "status": status, "config": {}, "started": started}
    (directory / "run.json").write_text(json.dumps(card))
    (directory / NAME).touch()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Runs of all kinds, and things that are no runs."""
    root = tmp_path / "outputs"
    make_run(root / "train" / "failed", "failed", 0)
    make_run(root / "train" / "killed", "running", 3)
    make_run(root / "train" / "done", "finished", 3)
    make_run(root / "train" / "new", "finished", 0)
    make_run(tmp_path / "elsewhere", "failed", 9)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "notes").mkdir()
    (root / "notes" / "run.json").write_text('{"mine": true}')
    return root


def left(outputs: Path) -> list[str]:
    """Names of what is still there."""
    return sorted(path.parent.name for path in [*outputs.rglob("run.json"), *outputs.parent.glob("elsewhere/run.json")])


def test_failed_runs_go(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--root", str(outputs), "--yes"])
    assert left(outputs) == ["done", "elsewhere", "killed", "new", "notes"]
    assert f"{outputs / 'train' / 'failed'}  failed" in capsys.readouterr().out


def test_old_runs_go_when_asked_for(outputs: Path) -> None:
    main(["--root", str(outputs), "--older-than", "2", "--yes"])
    assert left(outputs) == ["elsewhere", "new", "notes"]


def test_nothing_goes_without_a_yes(
    outputs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = left(outputs)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # not a terminal, so nobody has read the list
    main(["--root", str(outputs)])
    assert left(outputs) == before
    assert "Nothing was removed." in capsys.readouterr().out
    main(["--root", str(outputs / "notes")])
    assert "Nothing to remove" in capsys.readouterr().out
