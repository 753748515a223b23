"""Removing runs: `python -m {{cookiecutter.package_name}}.clean_runs --help`."""

import argparse
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from {{cookiecutter.package_name}}.locks import is_in_use
from {{cookiecutter.package_name}}.run_card import NAME, read_card


@dataclass(frozen=True)
class Candidate:
    """A run that may go.

    Args:
        directory: the run's directory.
        reason: why it may.
        size: bytes.
    """

    directory: Path
    reason: str
    size: int


def candidates(root: Path, older_than: timedelta | None, now: datetime) -> Iterator[Candidate]:
    """Runs below a folder that failed, and those of any kind that started longer ago than asked for.

    A run is a folder with a run card of this project. One that a process is at work on is never among them.

    Args:
        root: such as outputs/; links out of it are not followed.
        older_than: None to leave all runs that did not fail.
        now: the present time.
    """
    for file in sorted(root.rglob(NAME)):
        directory, card = file.parent, read_card(file.parent)
        inside = directory.resolve().is_relative_to(root.resolve()) and directory.resolve() != root.resolve()
        if card is None or not inside or is_in_use(directory):
            continue
        age = now - datetime.fromisoformat(card["started"])
        if card["status"] == "failed":
            reason = "failed"
        elif older_than is not None and age > older_than:
            reason = f"{card['status']}, {age.days} days old"
        else:
            continue
        size = sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
        yield Candidate(directory, reason, size)


def main(arguments: list[str] | None = None) -> None:
    """List what would be removed, ask, and remove it."""
    parser = argparse.ArgumentParser(description="Remove runs that failed, and old ones if asked to.")
    parser.add_argument("--root", type=Path, default=Path("outputs"), help="where runs are collected: outputs")
    parser.add_argument("--older-than", type=float, metavar="DAYS", help="remove also runs of any kind that are older")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    options = parser.parse_args(arguments)
    age = None if options.older_than is None else timedelta(days=options.older_than)
    found = list(candidates(options.root, age, datetime.now(timezone.utc)))
    for run in found:
        print(f"{run.directory}  {run.reason}, {run.size / 2**20:.1f} MiB")
    if not found:
        print(f"Nothing to remove below {options.root}.")
    elif not options.yes and not (sys.stdin.isatty() and input(f"Remove these {len(found)}? [y/N] ").lower() == "y"):
        print("Nothing was removed.")
    else:
        for run in found:
            shutil.rmtree(run.directory)
        print(f"Removed {len(found)}.")


if __name__ == "__main__":
    main()
