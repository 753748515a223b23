"""The files that a user means by a folder."""

from pathlib import Path


def visible_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files in and below a folder whose names match, without those that are hidden or in a hidden folder.

    Links to nowhere are among them, so that whoever reads the files names them.

    Args:
        folder: where they are; its own path may be hidden.
        pattern: what their names look like, such as *.txt.
    """
    return [
        path
        for path in folder.rglob(pattern)
        if not path.is_dir() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
