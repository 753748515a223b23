"""Every documented way to call cookiecutter generates the same project."""

import json
import shutil
from pathlib import Path

import pytest

ANSWERS = ("task=nlp", "default_precision=fp16")


def contents(project: Path) -> dict[str, bytes]:
    return {str(path.relative_to(project)): path.read_bytes() for path in project.rglob("*") if path.is_file()}


@pytest.fixture
def expected(bake) -> dict[str, bytes]:
    return contents(bake(**dict(answer.split("=") for answer in ANSWERS)))


def test_root(template, run_cookiecutter, expected, tmp_path):
    result = run_cookiecutter(".", "--no-input", "--output-dir", tmp_path, *ANSWERS, cwd=template)
    assert result.returncode == 0, result.stdout
    assert contents(tmp_path / "my-project") == expected


def test_directory(template, run_cookiecutter, expected, tmp_path):
    result = run_cookiecutter(template, "--directory", "template", "--no-input", *ANSWERS, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert contents(tmp_path / "my-project") == expected


def test_zip(template, run_cookiecutter, expected, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mp_plugin"), "zip", template.parent, template.name)
    result = run_cookiecutter(archive, "--no-input", *ANSWERS, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert contents(tmp_path / "my-project") == expected
    assert "set MP_PLUGIN in the Makefile" in result.stdout
    assert "`cruft update` will not work" in result.stdout
    assert not (tmp_path / "my-project" / ".cruft.json").exists()


def test_replay(template, run_cookiecutter, expected, tmp_path):
    first = run_cookiecutter(template, "--no-input", "--output-dir", tmp_path / "first", *ANSWERS, cwd=tmp_path)
    assert first.returncode == 0, first.stdout
    result = run_cookiecutter(template, "--directory", "template", "--replay", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert contents(tmp_path / "my-project") == expected


def test_replay_from_a_zip(template, run_cookiecutter, expected, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "mp_plugin"), "zip", template.parent, template.name)
    where = ("--directory", "template")
    first = run_cookiecutter(
        archive, *where, "--no-input", "--output-dir", tmp_path / "first", *ANSWERS, cwd=tmp_path
    )
    assert first.returncode == 0, first.stdout
    result = run_cookiecutter(archive, *where, "--replay", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert contents(tmp_path / "my-project") == contents(tmp_path / "first" / "my-project") == expected


def test_answers_typed_in(template, run_cookiecutter, tmp_path):
    """A person who answers every question; the root asks first which of the one template to take."""
    typed = ["1", "Deep Nets", "", "", "Ada", "ada@example.com", "2", "3", "2", "3", "2", "2", "yes"]
    result = run_cookiecutter(template, cwd=tmp_path, typed="\n".join(typed) + "\n")
    assert result.returncode == 0, result.stdout
    project = tmp_path / "deep-nets"
    assert (project / "Dockerfile").is_file()
    assert not (project / ".github").exists()
    assert "Apache License" in (project / "LICENSE").read_text(encoding="utf-8")
    assert "python:3.12-slim" in (project / "Dockerfile").read_text(encoding="utf-8")


def test_templates_entry_names_the_template(template):
    entry = json.loads((template / "cookiecutter.json").read_text(encoding="utf-8"))
    assert [item["path"] for item in entry["templates"].values()] == ["./template"]
