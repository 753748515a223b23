"""Pictures that cannot be read, found before training."""

import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from {{cookiecutter.package_name}}.data.visible_files import visible_files

#: Files that are taken for pictures.
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}

#: How many faults are named.
NAMED = 5


def list_images(folder: Path) -> list[Path]:
    """All pictures in and below a folder, hidden ones aside, in the same order on every machine."""
    named = [path for path in visible_files(folder) if path.suffix.lower() in SUFFIXES]
    return sorted(named, key=lambda path: path.relative_to(folder).as_posix())


def contents_of(names: Sequence[str], read: Callable[[int], bytes], verify: bool = True) -> list[str]:
    """The hash of each picture's bytes, after a look at whether they are a picture.

    Every file is read once. PNG files are checked by their checksums and JPEG files at an eighth of their size, which
    takes about a second for 10,000 small files.

    Args:
        names: what the pictures are called where something is wrong with them.
        read: the bytes of a picture, by its place in `names`.
        verify: False to look at nothing, and to return the names instead of hashes.

    Raises:
        ValueError: names the first pictures that cannot be read, and how many there are.
    """
    if not verify:
        return list(names)
    hashes, faults = [], []
    for i, name in enumerate(names):
        try:
            data = read(i)
            look_at(data)
        except Exception as error:  # pillow raises many kinds for a broken file
            faults.append(f"{name} ({' '.join(str(error).split()) or type(error).__name__})")
        else:
            hashes.append(hashlib.sha256(data).hexdigest())
    if faults:
        more = ", ..." if len(faults) > NAMED else ""
        raise ValueError(
            f"{len(faults)} of {len(names)} images cannot be read: {', '.join(faults[:NAMED])}{more}. "
            "Repair or remove them."
        )
    return hashes


def look_at(data: bytes) -> None:
    """Find out whether bytes are a whole picture.

    Raises:
        Exception: if they are not.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "PNG":
                image.verify()
            else:
                image.draft(image.mode, (1, 1))
                image.load()
    except UnidentifiedImageError:
        # Its own message names an object in memory.
        raise ValueError("empty file" if not data else "not an image") from None
