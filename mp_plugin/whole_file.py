"""Write a text file whole, or leave what is there."""

import os
from contextlib import suppress
from pathlib import Path


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file under another name, and give it its own when it is complete; makes its directory.

    Raises:
        OSError: when it cannot be written; what was there before is still there then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as directory:
        ...     write_whole(f"{directory}/runs/7.txt", "done")
        ...     os.listdir(f"{directory}/runs")
        ['7.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
