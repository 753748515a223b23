"""Tables from Hugging Face data sets: on the hub, saved to disk, or as files in its layout."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.table_reading import (
    TABLE_SUFFIXES,
    Table,
    joined,
    read_table,
    require_columns,
)
from {{cookiecutter.package_name}}.data.text_reading import find_files
from {{cookiecutter.package_name}}.packages import import_extra

#: What data sets call the splits.
USUAL = {"train": ("train",), "val": ("validation", "val", "valid", "dev"), "test": ("test",)}
#: What a config calls a split that is to be taken from the training split, even where the data have one.
FROM_TRAIN = "none"


def load_tables(
    path: str | None,
    columns: Sequence[str],
    splits: Mapping[str, str | None],
    subset: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Table]:
    """The splits that a data set has, "train" at least.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, a folder of parquet, jsonl, json, csv or tsv files
            that bear the splits' names, or one such file.
        columns: which ones.
        splits: what the data set calls "train", "val" and "test"; None: the usual names; "none": leave it out.
        subset: of a data set on the hub that has several.
        cache_dir: where downloads go; None: where the library puts them.

    Raises:
        ValueError: says what there is, if the path, a split or a column is not.
    """
    if path is None:
        raise ValueError("data.path is missing: name a data set on the hub, a folder or file, as in data.path=my_data.")
    place = Path(path).expanduser()
    if (place / "dataset_dict.json").is_file() or (place / "state.json").is_file():
        found = import_extra("datasets", "hf").load_from_disk(str(place))
        parts = found if isinstance(found, dict) else {"train": found}
    elif place.exists() or path.startswith((".", "/", "~")) or place.suffix in TABLE_SUFFIXES:
        files = find_files(path, [f"*{suffix}" for suffix in TABLE_SUFFIXES])
        parts = files_by_split(files)
    else:
        parts = download(path, subset, cache_dir)
    names = {split: split_name(split, splits.get(split), list(parts), path) for split in SPLITS}
    return {
        split: table_of(parts[name], columns, f"{path} ({name})") for split, name in names.items() if name is not None
    }


def download(path: str, subset: str | None, cache_dir: str | None) -> dict[str, Any]:
    """The splits of a data set on the hub.

    Raises:
        ValueError: if it cannot be had.
    """
    library = import_extra("datasets", "hf")
    try:
        found: dict[str, Any] = library.load_dataset(path, subset, cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"data.path={path} is no local file or folder, and not to be had from the hub: {first}"
        ) from error
    return found


def files_by_split(files: Sequence[Path]) -> dict[str, Any]:
    """Files by the split that their names tell, as in test-00000-of-00001.parquet; all others are for training."""
    parts: dict[str, list[Path]] = {}
    known = {name for names in USUAL.values() for name in names}
    for file in files:
        words = [*re.split(r"[^a-z]+", file.stem.lower()), file.parent.name.lower()]
        name = next((word for word in words if word in known), "train")
        parts.setdefault(name, []).append(file)
    return parts


def split_name(split: str, asked: str | None, there: Sequence[str], path: str) -> str | None:
    """What the data set calls a split; None if it has none.

    Raises:
        ValueError: if it does not have what was asked for, or nothing to train on.
    """
    if asked == FROM_TRAIN and split != "train":
        return None
    found = next((name for name in ([asked] if asked else USUAL[split]) if name in there), None)
    if found is None and (asked is not None or split == "train"):
        raise ValueError(
            f"data.path={path} has no split {asked or split!r}; it has: {', '.join(there)}: "
            f"name one with data.{split}_split=..."
        )
    return found


def table_of(part: Any, columns: Sequence[str], source: str) -> Table:
    """The columns of one split.

    Args:
        part: its files, or a data set of the datasets library.
        columns: which ones.
        source: what messages call it.

    Raises:
        ValueError: names the file and row, or the missing column.
    """
    if isinstance(part, list):
        return joined([read_table(file, columns) for file in part])
    require_columns(source, columns, part.column_names)
    # A label column knows the names of its classes, whose numbers stand in the rows.
    class_names = next((names for name in columns if (names := getattr(part.features[name], "names", None))), None)
    values = {name: list(part[name]) for name in columns}
    return Table([source] * len(part), "row", range(1, len(part) + 1), values, class_names)
