"""The splits of Hugging Face data sets: on the hub, saved to disk, or as files in its layout."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from {{cookiecutter.package_name}}.data.base import SPLIT_NAMES, SPLITS
from {{cookiecutter.package_name}}.packages import import_extra

#: What a config calls a split that is to be taken from the training split, even where the data have one.
FROM_TRAIN = "none"
#: What a name on the hub looks like, such as glue or owner/name; a file that is missing is not looked for there.
HUB_NAME = re.compile(r"(?!.*\.(parquet|jsonl?|csv|tsv)$)[\w-][\w.-]*(/[\w.-]+)?")
ACCEPTED = "name a data set on the hub, a folder or a file, as in data.path=my_data"


def load_splits(
    path: str | None,
    asked: Mapping[str, str | None],
    read_files: Callable[[Path], Mapping[str, Any]],
    subset: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """The splits that a data set has, "train" at least, as the datasets library or `read_files` gives them.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, or a file or folder for `read_files`.
        asked: what the data set calls "train", "val" and "test"; None: the usual names; "none": leave it out.
        read_files: the parts of a data set in files, by the names that they have there.
        subset: of a data set on the hub that has several.
        cache_dir: where downloads go; None: where the library puts them.

    Raises:
        ValueError: says what there is, if the path or a split is not.
    """
    if not path:
        raise ValueError(f"data.path is missing: {ACCEPTED}.")
    place = Path(path).expanduser()
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        found = import_extra("datasets", "hf").load_from_disk(str(place))
        parts: Mapping[str, Any] = found if isinstance(found, dict) else {"train": found}
    elif place.exists():
        parts = read_files(place)
    elif HUB_NAME.fullmatch(path):
        parts = download(path, subset, cache_dir)
    else:
        raise ValueError(f"data.path={path} does not exist: {ACCEPTED}.")
    names = {split: split_name(split, asked[split], list(parts), path) for split in SPLITS}
    splits = {split: parts[name] for split, name in names.items() if name is not None}
    empty = [split for split, part in splits.items() if not len(part)]
    if empty:
        raise ValueError(f"data.path={path} has no rows in {', '.join(empty)}.")
    return splits


def download(path: str, subset: str | None, cache_dir: str | None) -> Mapping[str, Any]:
    """The parts of a data set on the hub.

    Raises:
        ValueError: if it cannot be had.
    """
    library = import_extra("datasets", "hf")
    # Without network the hub's client tries for half a minute, a number that no setting changes.
    hint = "HF_HUB_OFFLINE=1 takes what was downloaded before"
    rank_zero_only(print)(f"Asking the Hugging Face Hub for {path}; {hint}.", file=sys.stderr, flush=True)
    try:
        found: Mapping[str, Any] = library.load_dataset(path, subset, cache_dir=cache_dir)
    except Exception as error:  # the hub's client raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"data.path={path} is not here, and the hub did not give it: {reason}") from error
    return found


def files_by_split(files: Sequence[Path], place: Path) -> dict[str, list[Path]]:
    """Files by the split that their names tell, or folders that they lie in; all others are for training.

    Args:
        files: such as test-00000-of-00001.parquet or test/0000.parquet, as the hub has them.
        place: where they lie; folders above it tell nothing.
    """
    parts: dict[str, list[Path]] = {}
    for file in files:
        folders = file.relative_to(place).parts[:-1]
        words = [*re.split(r"[^a-z]+", file.stem.lower()), *(folder.lower() for folder in reversed(folders))]
        name = next((word for word in words if word in SPLIT_NAMES), "train")
        parts.setdefault(name, []).append(file)
    return parts


def split_name(split: str, asked: str | None, there: Sequence[str], path: str) -> str | None:
    """What the data set calls a split; None if it has none.

    Raises:
        ValueError: if it does not have what was asked for, or nothing to train on, or several that could be meant.
    """
    if asked == FROM_TRAIN and split != "train":
        return None
    usual = [asked] if asked else [name for name, meant in SPLIT_NAMES.items() if meant == split]
    fitting = [name for name in usual if name in there]
    if len(fitting) > 1:
        raise ValueError(
            f"data.path={path} has several splits that could be {split}: {', '.join(fitting)}; "
            f"name one with data.{split}_split=..."
        )
    found = fitting[0] if fitting else None
    if found is None and (asked is not None or split == "train"):
        raise ValueError(
            f"data.path={path} has no split {asked or split!r}; it has: {', '.join(there)}: "
            f"name one with data.{split}_split=..."
        )
    return found
