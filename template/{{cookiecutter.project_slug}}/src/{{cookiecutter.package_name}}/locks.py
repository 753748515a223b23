"""A lock that ends with the process that holds it, however it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

#: Hidden, as nobody needs to look at it.
NAME = ".lock"


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """Be the only process that writes into a run's directory; on Windows nobody checks.

    Raises:
        ValueError: if another process is at work there.
    """
    with open(directory / NAME, "w") as stream:
        # A record lock: worker processes, which outlive a killed run by seconds, do not inherit it.
        if not _locked(stream.fileno()):
            raise ValueError(f"hydra.run.dir={directory} is in use: another process is at work on this run.")
        yield


def is_in_use(directory: Path) -> bool:
    """Whether a process is at work in a run's directory."""
    try:
        with open(directory / NAME, "r+") as stream:
            return not _locked(stream.fileno())
    except FileNotFoundError:
        return False


def _locked(file: int) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
