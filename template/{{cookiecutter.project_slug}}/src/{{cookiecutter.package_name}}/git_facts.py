"""Which version of the code is running."""

import subprocess
from pathlib import Path
from typing import Any

#: Seconds for git to answer; a repository on a slow network disk shall not hold up a run.
PATIENCE = 10
#: Files that git does not know are not in the diff; so many of them are named.
LISTED = 100


def git_facts(folder: Path) -> dict[str, Any] | None:
    """Commit, branch, whether anything is uncommitted, and files that git does not know; None outside a repository.

    Args:
        folder: any folder of the repository.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain", "-z")
    if commit is None or changes is None:
        return None
    untracked = [_text(entry[3:]) for entry in changes.split(b"\0") if entry.startswith(b"?? ")]
    return {
        "commit": _text(commit),
        "branch": _branch(folder),
        "dirty": bool(changes),
        "untracked": untracked[:LISTED],
    }


def uncommitted(folder: Path) -> bytes | None:
    """The difference between the working tree and the last commit, for `git apply`; None where git cannot tell."""
    # Whatever the user has set for diffs to be read by people.
    plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "--src-prefix=a/", "--dst-prefix=b/")
    return _git(folder, "diff", "HEAD", "--binary", *plain)


def _branch(folder: Path) -> str | None:
    name = _text(_git(folder, "rev-parse", "--abbrev-ref", "HEAD") or b"")
    return name if name not in ("", "HEAD") else None


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", errors="replace").strip()


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
