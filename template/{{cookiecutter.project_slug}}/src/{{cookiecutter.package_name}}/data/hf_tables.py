"""Tables of texts from Hugging Face data sets."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from {{cookiecutter.package_name}}.data.hf_dataset import files_by_split, load_splits
from {{cookiecutter.package_name}}.data.table_reading import (
    TABLE_SUFFIXES,
    Table,
    joined,
    read_table,
    require_columns,
)
from {{cookiecutter.package_name}}.data.text_reading import find_files


def load_tables(
    path: str | None,
    columns: Sequence[str],
    asked: Mapping[str, str | None],
    subset: str | None = None,
    cache_dir: str | None = None,
) -> dict[str, Table]:
    """Some columns of the splits that a data set has, "train" at least.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, a folder of parquet, jsonl, json, csv or tsv files
            that bear the splits' names, or one such file.
        columns: which ones.
        asked: what the data set calls "train", "val" and "test", as for `load_splits`.
        subset: of a data set on the hub that has several.
        cache_dir: where downloads go; None: where the library puts them.

    Raises:
        ValueError: says what there is, if the path, a split or a column is not.
    """
    parts = load_splits(path, asked, table_files, subset, cache_dir)
    return {split: table_of(part, columns, f"{path} ({split})") for split, part in parts.items()}


def table_files(place: Path) -> dict[str, list[Path]]:
    """The tables at a path, by split.

    Raises:
        ValueError: if there is none.
    """
    return files_by_split(find_files(place, [f"*{suffix}" for suffix in TABLE_SUFFIXES]), place)


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
