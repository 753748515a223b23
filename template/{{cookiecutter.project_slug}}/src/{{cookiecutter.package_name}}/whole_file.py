"""Files that are there as a whole or not at all, whenever the process is killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to, in the same folder, and move what is there into place at the end.

    A kill on the way leaves a hidden file that the next attempt overwrites.

    Args:
        path: the file; its folder is made if need be.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    # The content must reach the disk before the name does, or a power cut could leave an empty file.
    with open(partial, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as a whole."""
    with whole_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole."""
    write_bytes(path, text.encode())
