"""A table of texts and labels: csv, tsv, jsonl or parquet."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from {{cookiecutter.package_name}}.data.base import SHARES, SPLITS
from {{cookiecutter.package_name}}.data.class_splits import divide
from {{cookiecutter.package_name}}.data.labelled_text import LabelledSplits, LabelledTextDataModule
from {{cookiecutter.package_name}}.data.labels import (
    class_numbers,
    names_of,
    read_labels,
    require_trained,
)
from {{cookiecutter.package_name}}.data.sections import text_key
from {{cookiecutter.package_name}}.data.shared_examples import warn_of_shared
from {{cookiecutter.package_name}}.data.table_reading import Table, read_table
from {{cookiecutter.package_name}}.data.text_reading import find_files


class TextTableDataModule(LabelledTextDataModule):
    """The rows of one file, divided among the splits class by class, or of a file for each split.

    Args:
        path: the file; where there are others for validation and testing, the one to train on.
        val_path: rows for validation; None: some of `path`.
        test_path: rows for testing; None: some of `path`.
        label_column: the labels, text or integers.
        class_names: the classes in their order, so that integers in the table are their numbers; None: those that
            occur in training.
        **settings: those of `LabelledTextDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        label_column: str = "label",
        class_names: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.paths = {"train": path, "val": val_path, "test": test_path}
        self.label_column = label_column
        self.given_names = None if class_names is None else list(map(str, class_names))

    def read_examples(self) -> LabelledSplits:
        """Texts and class numbers of each split.

        Raises:
            ValueError: names the file and row of the first text or label that will not do.
        """
        tables = {}
        for split, setting in zip(SPLITS, ("data.path", "data.val_path", "data.test_path"), strict=True):
            if split == "train" or self.paths[split] is not None:
                tables[split] = self._read(self.paths[split], setting)
        return split_tables(tables, self.text_column, self.label_column, self.given_names, self.split_seed)

    def _read(self, path: str | None, setting: str) -> Table:
        files = find_files(path, [], setting) if path is None or not Path(path).expanduser().is_dir() else []
        if not files:
            raise ValueError(f"{setting}={path} is a folder: name one csv, tsv, json, jsonl or parquet file.")
        return read_table(files[0], [self.text_column, self.label_column], self.encoding)


def split_tables(
    tables: dict[str, Table], text_column: str, label_column: str, given_names: list[str] | None, split_seed: int
) -> LabelledSplits:
    """Texts and class numbers of each split, from tables for some of them.

    A split without a table is taken from the training table, class by class.

    Args:
        tables: by split, one for "train" at least.
        text_column: of all tables.
        label_column: of all tables.
        given_names: the classes by their numbers; None: those that occur in the training table.
        split_seed: decides which row falls into which split.

    Raises:
        ValueError: names the file and row of the first text or label that will not do.
    """
    for table in tables.values():
        table.require_text(text_column)
    given_names = given_names or tables["train"].class_names
    labels = {split: read_labels(table, label_column) for split, table in tables.items()}
    names = names_of(labels["train"]) if given_names is None else given_names
    numbers = {
        split: class_numbers(table, labels[split], names, label_column, numbered=given_names is not None)
        for split, table in tables.items()
    }
    texts = {split: list(table.columns[text_column]) for split, table in tables.items()}
    if len(names) < 2:
        raise ValueError(f"{tables['train'].sources[0]}: column {label_column!r} holds one class only, {names[0]!r}.")
    keys = {split: [text_key(text) for text in found] for split, found in texts.items()}
    warn_of_shared(keys, "texts", lambda split, row: tables[split].place(row))
    shares = {split: share for split, share in SHARES.items() if split not in tables}
    try:
        if shares:
            rows = divide(numbers["train"], keys["train"], names, shares, split_seed)
            all_texts, all_numbers = texts["train"], numbers["train"]
            texts |= {split: [all_texts[row] for row in found] for split, found in rows.items()}
            numbers |= {split: [all_numbers[row] for row in found] for split, found in rows.items()}
        require_trained(numbers, names)
    except ValueError as error:
        raise ValueError(f"{tables['train'].sources[0]}: {error}") from error
    return LabelledSplits(texts, numbers, names)
