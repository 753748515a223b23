"""Reading a user's text files, with care."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from {{cookiecutter.package_name}}.data.visible_files import visible_files

TEXT_PATTERNS = ("*.txt", "*.md")


def find_files(path: str | Path | None, patterns: Sequence[str], setting: str = "data.path") -> list[Path]:
    """The files that a path means: itself, or all below it that match, hidden ones aside, in order of their names.

    Args:
        path: a file or a folder.
        patterns: what the names of files in a folder look like, such as *.txt.
        setting: what the config calls the path.

    Raises:
        ValueError: if there is no such path, or no file in it.
    """
    if path is None:
        raise ValueError(f"{setting} is missing: name a file or folder, such as {setting}=my_data.")
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise ValueError(f"{setting}={path} does not exist.")
    found = {file for pattern in patterns for file in visible_files(place, pattern)}
    if not found:
        raise ValueError(f"{setting}={path} holds no file that matches {' or '.join(patterns)}.")
    return sorted(found, key=lambda file: file.relative_to(place).as_posix())


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """The text of a file, with \\n at the end of each line.

    Raises:
        ValueError: names the file, line and byte that is not in the encoding, or says that the file is not text.
    """
    content = path.read_bytes()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte {error.start} (0x{content[error.start]:02x}) is not {encoding}; "
            "convert the file, or name its encoding with data.encoding=..."
        ) from error
    except LookupError as error:
        raise ValueError(f"data.encoding={encoding} is unknown to Python; utf-8 and latin-1 are examples.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}, line {line}: a zero byte; the file is no text, or its data.encoding is utf-16.")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def hash_texts(texts: Sequence[str]) -> str:
    """One hash of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        content = text.encode()
        digest.update(f"{len(content)}\0".encode())
        digest.update(content)
    return f"sha256:{digest.hexdigest()}"
