"""A generated project follows the repository checks of sp-repo-review, apart from the exceptions it justifies."""

import json
import re
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("ci", "license"), [("github", "MIT"), ("none", "Proprietary")])
def test_sp_repo_review(ci, license, bake):
    project = bake(ci=ci, license=license)
    result = subprocess.run(
        [sys.executable, "-m", "repo_review", str(project), "--show", "err"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All checks passed" in result.stdout, result.stdout


def test_every_exception_is_needed(bake):
    """An exception that no longer hides anything is to be removed."""
    project = bake()
    pyproject = project / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8")
    head, _, exceptions = text.partition("[tool.repo-review]")
    pyproject.write_text(head, encoding="utf-8")
    result = subprocess.run(
        [sys.executable, "-m", "repo_review", str(project), "--show", "err", "--format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    failed = {name for name, check in json.loads(result.stdout)["checks"].items() if check["result"] is False}
    assert failed == set(re.findall(r'^  "(\w+)"', exceptions, flags=re.MULTILINE))
