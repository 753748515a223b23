"""A copy of the template, and a function that generates projects from it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cookiecutter.main import cookiecutter

REPOSITORY = Path(__file__).resolve().parents[2]

Bake = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what makes the template, so that no test depends on the state of the repository around it."""
    copy = tmp_path_factory.mktemp("repository") / "mp_plugin"
    copy.mkdir()
    shutil.copy(REPOSITORY / "cookiecutter.json", copy)
    shutil.copytree(
        REPOSITORY / "template", copy / "template", ignore=shutil.ignore_patterns("__pycache__", ".*_cache")
    )
    return copy


@pytest.fixture(scope="session")
def cookiecutter_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep cookiecutter's clones and replay files out of the user's home."""
    folder = tmp_path_factory.mktemp("cookiecutter")
    config = folder / "config.yaml"
    config.write_text(f"cookiecutters_dir: {folder / 'clones'}\nreplay_dir: {folder / 'replay'}\n", encoding="utf-8")
    return config


@pytest.fixture
def bake(template: Path, cookiecutter_config: Path, tmp_path: Path) -> Bake:
    """Return a function that generates a project with the given answers and returns its folder."""

    def generate(**answers: str | bool) -> Path:
        project = cookiecutter(
            str(template),
            no_input=True,
            extra_context=answers,
            output_dir=str(tmp_path / "projects"),
            config_file=str(cookiecutter_config),
        )
        return Path(project)

    return generate


@pytest.fixture
def home(tmp_path: Path, cookiecutter_config: Path) -> dict[str, str]:
    """Return the environment of a user whose home, git identity and cookiecutter folders are temporary."""
    folder = tmp_path / "home"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "COOKIECUTTER"))}
    return environment | {
        "HOME": str(folder),
        "COOKIECUTTER_CONFIG": str(cookiecutter_config),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.com",
        "GIT_COMMITTER_NAME": "Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.com",
    }


@pytest.fixture
def run(home: dict[str, str]) -> Run:
    """Return a function that runs a command as that user; a question that ``typed`` does not answer ends it."""

    def command(*arguments: str | Path, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(argument) for argument in arguments],
            cwd=cwd,
            env=home,
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return command


@pytest.fixture
def run_cookiecutter(run: Run) -> Run:
    """Return a function that runs the real ``cookiecutter`` command."""

    def command(*arguments: str | Path, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
        return run(sys.executable, "-m", "cookiecutter", *arguments, cwd=cwd, typed=typed)

    return command
