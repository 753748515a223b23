"""Which version of the code is running."""

import subprocess
from pathlib import Path
from typing import Any

#: Seconds for git to answer; a repository on a slow network disk shall not hold up a run.
PATIENCE = 10


def git_facts(folder: Path) -> dict[str, Any] | None:
    """Commit, branch and whether anything is uncommitted; None without git or outside a repository.

    Args:
        folder: any folder of the repository.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    if commit is None or changes is None:
        return None
    return {"commit": commit.strip(), "branch": _branch(folder), "dirty": bool(changes)}


def uncommitted(folder: Path) -> str | None:
    """The difference between the working tree and the last commit; None where git cannot tell."""
    return _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff")


def _branch(folder: Path) -> str | None:
    name = (_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or "").strip()
    return name if name not in ("", "HEAD") else None


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None
