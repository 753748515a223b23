"""A project remembers its template, so that later changes of the template can be brought in with cruft."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from itertools import product
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


PREVIOUS_RELEASE = "e9e9957"
"""The commit whose template projects have that are to be updated."""
OPTIONS = tuple(product(("image", "nlp", "both"), ("bf16", "fp32", "fp16"), ("csv", "tensorboard", "wandb")))
"""What that template asked for and its files depend on."""


@pytest.fixture(scope="session")
def releases(template, tmp_path_factory) -> tuple[Path, str, str]:
    """Return a repository of the previous release's template and of this one, and both commits."""
    here = Path(__file__).resolve().parents[2]
    archive = subprocess.run(
        ["git", "-C", here, "archive", PREVIOUS_RELEASE, "cookiecutter.json", "template"],
        capture_output=True,
        check=False,
    )
    if archive.returncode != 0:
        pytest.skip(f"the history of this clone does not reach back to {PREVIOUS_RELEASE}")
    folder = tmp_path_factory.mktemp("releases") / "mp_plugin.git"  # cookiecutter tells by the name that it is git
    subprocess.run(["git", "init", "--quiet", folder], check=True)

    def commit(message: str) -> str:
        owner = ("-c", "user.name=Tester", "-c", "user.email=tester@example.com")
        for command in (("add", "--all", "--force"), (*owner, "commit", "--quiet", f"--message={message}")):
            subprocess.run(["git", "-C", folder, *command], check=True)
        head = subprocess.run(["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        return head.stdout.strip()

    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    first = commit("Previous release")
    shutil.rmtree(folder / "template")
    shutil.copytree(template / "template", folder / "template")
    shutil.copy(template / "cookiecutter.json", folder)
    return folder, first, commit("This release")


@pytest.fixture
def project_of(releases, run_cookiecutter, tmp_path) -> Callable[..., Path]:
    """Return a function that generates a project from one of the releases."""

    def generate(commit: str, *answers: str) -> Path:
        output = tmp_path / commit
        options = ("--checkout", commit, "--directory", "template", "--no-input", "--output-dir", output)
        result = run_cookiecutter(releases[0].as_uri(), *options, *answers, cwd=tmp_path)
        assert result.returncode == 0, result.stdout
        # As a project that follows the template, not one commit of it.
        record = output / "my-project" / ".cruft.json"
        record.write_text(record.read_text(encoding="utf-8").replace(f'"checkout": "{commit}"', '"checkout": null'))
        return output / "my-project"

    return generate


def update(project: Path, run, git: Git) -> None:
    """Commit a project, and bring in the newest template without a conflict."""
    git(project, "init", "--quiet")
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message=Project")
    result = run(sys.executable, "-m", "cruft", "update", "--skip-apply-ask", cwd=project)
    assert result.returncode == 0, result.stdout
    assert "onflict" not in result.stdout
    assert not list(project.rglob("*.rej"))
    assert not git(project, "diff", "--name-only", "--diff-filter=U")


def contents_of(project: Path) -> dict[str, bytes]:
    """Return what a project consists of, without what git and cruft keep for themselves."""
    files = {path.relative_to(project).as_posix(): path for path in project.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith((".git/", ".cruft.json"))}


@pytest.mark.parametrize("options", OPTIONS, ids="-".join)
def test_a_project_of_the_previous_release_becomes_one_of_this(options, releases, project_of, run, git):
    names = ("task", "default_precision", "default_logger")
    answers = [f"{name}={choice}" for name, choice in zip(names, options, strict=True)]
    _, first, second = releases
    project = project_of(first, *answers)
    update(project, run, git)
    assert contents_of(project) == contents_of(project_of(second, *answers))
    assert json.loads((project / ".cruft.json").read_text(encoding="utf-8"))["commit"] == second


def test_an_update_keeps_what_the_owner_has_changed(releases, project_of, run, git):
    _, first, second = releases
    project = project_of(first, "task=both")
    own = project / "src" / "my_project" / "data" / "galaxies.py"
    own.write_text('"""Galaxies."""\n', encoding="utf-8")
    readme, model = project / "README.md", project / "conf" / "model" / "mlp.yaml"
    with readme.open("a", encoding="utf-8") as file:
        file.write("\n## Our results\n\nGood ones.\n")
    # Not beside a line that the template changes too: that would be a conflict, for the owner to settle.
    changed = re.sub(r"^label_smoothing: .*$", "label_smoothing: 0.5", model.read_text(encoding="utf-8"), flags=re.M)
    assert "label_smoothing: 0.5\n" in changed
    model.write_text(changed, encoding="utf-8")
    update(project, run, git)

    expected = contents_of(project_of(second, "task=both"))
    found = contents_of(project)
    assert found.keys() - expected.keys() == {"src/my_project/data/galaxies.py"}
    differing = {name for name in expected if found[name] != expected[name]}
    assert differing == {"README.md", "conf/model/mlp.yaml"}
    assert found["README.md"] == expected["README.md"] + b"\n## Our results\n\nGood ones.\n"
    assert found["conf/model/mlp.yaml"] == re.sub(
        rb"(?m)^label_smoothing: .*$", b"label_smoothing: 0.5", expected["conf/model/mlp.yaml"]
    )
