"""A project remembers its template, so that later changes of the template can be brought in with cruft."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

Git = Callable[..., str]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git keeps the template's versions")


@pytest.fixture
def git(run) -> Git:
    """Return a function that runs git in a folder and returns what it prints."""

    def command(folder: Path, *arguments: str) -> str:
        result = run("git", *arguments, cwd=folder)
        assert result.returncode == 0, result.stdout
        return result.stdout.strip()

    return command


@pytest.fixture
def repository(template, git, tmp_path) -> Path:
    """Put the template under version control, as the project's public repository has it."""
    git(tmp_path, "init", "--quiet", "--initial-branch=main", "mp_plugin.git")
    folder = tmp_path / "mp_plugin.git"  # cookiecutter tells by the name that it is git
    (folder / "cookiecutter.json").write_bytes((template / "cookiecutter.json").read_bytes())
    for path in sorted((template / "template").rglob("*")):
        if path.is_file():
            copy = folder / path.relative_to(template)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--message=Template")
    return folder


def makefile_default(project: Path) -> str:
    """Return what the project's Makefile installs as mp-plugin."""
    lines = (project / "Makefile").read_text(encoding="utf-8").splitlines()
    (default,) = [line.removeprefix("MP_PLUGIN ?= ") for line in lines if line.startswith("MP_PLUGIN ?=")]
    return default


@pytest.mark.parametrize("by_url", [False, True], ids=["path", "url"])
def test_change_of_the_template_arrives(by_url, repository, run, run_cookiecutter, git, tmp_path):
    source = repository.as_uri() if by_url else str(repository)
    result = run_cookiecutter(source, "--no-input", "task=image", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    project = tmp_path / "my-project"
    first = git(repository, "rev-parse", "HEAD")
    record = json.loads((project / ".cruft.json").read_text(encoding="utf-8"))
    assert (record["template"], record["commit"], record["directory"]) == (source, first, "template")
    assert makefile_default(project) == (f"mp-plugin @ git+{source}@{first}" if by_url else source)

    (project / "README.md").write_text("# Rewritten by its owner\n", encoding="utf-8")
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=Project")
    rendered = repository / "template" / "{{cookiecutter.project_slug}}"
    with (rendered / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("\n# News for {{ cookiecutter.project_slug }}\n/news/\n")
    (rendered / "NEWS.md").write_text("# News of {{ cookiecutter.project_name }}\n", encoding="utf-8")
    git(repository, "add", "--all", "--force")
    git(repository, "commit", "--quiet", "--message=News")
    second = git(repository, "rev-parse", "HEAD")

    assert run(sys.executable, "-m", "cruft", "check", cwd=project).returncode != 0
    update = run(sys.executable, "-m", "cruft", "update", "--skip-apply-ask", cwd=project)
    assert update.returncode == 0, update.stdout
    assert run(sys.executable, "-m", "cruft", "check", cwd=project).returncode == 0

    assert (project / "NEWS.md").read_text(encoding="utf-8") == "# News of My Project\n"
    assert "# News for my-project\n/news/\n" in (project / ".gitignore").read_text(encoding="utf-8")
    changed = {line.split()[1] for line in git(project, "status", "--porcelain").splitlines()}
    moved = {"Makefile"} if by_url else set()
    assert changed == {".cruft.json", ".gitignore", "NEWS.md"} | moved
    assert makefile_default(project) == (f"mp-plugin @ git+{source}@{second}" if by_url else source)


def test_checkout_is_recorded(repository, run_cookiecutter, git, tmp_path):
    git(repository, "tag", "v1")
    git(repository, "commit", "--quiet", "--allow-empty", "--message=Later")
    result = run_cookiecutter(repository.as_uri(), "--checkout", "v1", "--no-input", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    record = json.loads((tmp_path / "my-project" / ".cruft.json").read_text(encoding="utf-8"))
    assert (record["checkout"], record["commit"]) == ("v1", git(repository, "rev-parse", "v1"))


def test_cruft_create_makes_the_same_project(repository, run, run_cookiecutter, tmp_path):
    plain = run_cookiecutter(repository, "--no-input", "--output-dir", tmp_path / "plain", cwd=tmp_path)
    assert plain.returncode == 0, plain.stdout
    cruft = ("cruft", "create", "--directory", "template", "--no-input", "--output-dir", str(tmp_path / "cruft"))
    created = run(sys.executable, "-m", *cruft, repository, cwd=tmp_path)
    assert created.returncode == 0, created.stdout
    projects = [tmp_path / "plain" / "my-project", tmp_path / "cruft" / "my-project"]
    records = [json.loads((project / ".cruft.json").read_text(encoding="utf-8")) for project in projects]
    assert [{key: record[key] for key in ("template", "commit", "directory")} for record in records][0] == {
        key: records[1][key] for key in ("template", "commit", "directory")
    }
    contents = [
        {
            str(path.relative_to(project)): path.read_bytes()
            for path in project.rglob("*")
            if path.is_file() and path.name != ".cruft.json"
        }
        for project in projects
    ]
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("origin", "recorded", "installed"),
    [
        ("https://ada:secret@example.com/t/mp.git", "https://example.com/t/mp.git", "git+https://example.com/t/mp.git"),
        ("git@example.com:t/mp.git", "git@example.com:t/mp.git", "git+ssh://git@example.com/t/mp.git"),
        ("ssh://git@example.com/t/mp.git", "ssh://git@example.com/t/mp.git", "git+ssh://git@example.com/t/mp.git"),
    ],
)
def test_origin_becomes_a_requirement_without_a_password(
    origin, recorded, installed, repository, run_cookiecutter, cookiecutter_config, git, tmp_path
):
    clone = cookiecutter_config.parent / "clones" / tmp_path.name
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    git(clone, "remote", "set-url", "origin", origin)
    result = run_cookiecutter(clone, "--no-input", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    project = tmp_path / "my-project"
    assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["template"] == recorded
    requirement = Requirement(makefile_default(project))
    assert requirement.name == "mp-plugin"
    assert requirement.url == f"{installed}@{git(repository, 'rev-parse', 'HEAD')}"
    assert not [path for path in project.rglob("*") if path.is_file() and b"secret" in path.read_bytes()]


def test_repository_without_the_template_in_its_history_is_no_source(template, git, run_cookiecutter, tmp_path):
    """An unpacked template inside somebody's own repository: that repository's commits do not describe it."""
    git(template.parent, "init", "--quiet")
    git(template.parent, "commit", "--quiet", "--allow-empty", "--message=Unrelated")
    result = run_cookiecutter(template, "--no-input", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert not (tmp_path / "my-project" / ".cruft.json").exists()
