"""A Hugging Face data set with a column of text, for a language model."""

from collections.abc import Mapping, Sequence
from typing import Any

from {{cookiecutter.package_name}}.data.base import SHARES, SPLITS
from {{cookiecutter.package_name}}.data.causal_text import CausalTextDataModule
from {{cookiecutter.package_name}}.data.hf_tables import load_tables
from {{cookiecutter.package_name}}.data.sections import (
    Section,
    document_of,
    split_documents,
    text_key,
)
from {{cookiecutter.package_name}}.data.shared_examples import warn_of_shared
from {{cookiecutter.package_name}}.data.table_reading import Table


class HuggingFaceTextDataModule(CausalTextDataModule):
    """The rows of a data set as documents; splits that it does not have are taken from the training split.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, or a folder or file of parquet, jsonl, json or csv.
        subset: of a data set on the hub that has several.
        text_column: the text; rows without any are skipped.
        train_split: what the data set calls it; None: train.
        val_split: None: validation, or what else it is usually called; "none": some of the training rows.
        test_split: None: test; "none": some of the training rows.
        cache_dir: where downloads go; None: where the datasets library puts them.
        **settings: those of `CausalTextDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        subset: str | None = None,
        text_column: str = "text",
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        cache_dir: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path, self.subset, self.text_column, self.cache_dir = path, subset, text_column, cache_dir
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}

    def read_splits(self) -> dict[str, list[Section]]:
        """Rows, or parts of rows where there are few.

        Raises:
            ValueError: if the data set is not there or will not do.
        """
        tables = load_tables(self.path, [self.text_column], self.split_names, self.subset, self.cache_dir)
        documents = {split: documents_of(table, self.text_column) for split, table in tables.items()}
        warn_of_repeats(documents)
        shares = {split: share for split, share in SHARES.items() if split not in tables}
        if shares:
            try:
                documents |= split_documents(documents["train"], self.split_seed, shares)
            except ValueError as error:
                raise ValueError(f"data.path={self.path} holds too little text: {error}") from error
        return {split: documents[split] for split in SPLITS}


def documents_of(table: Table, column: str) -> list[Section]:
    """The rows of a table that have text.

    Raises:
        ValueError: names the first row that holds something else.
    """
    documents = []
    for index, text in enumerate(table.columns[column]):
        if not isinstance(text, str | None):
            raise ValueError(f"{table.place(index)}: column {column!r} holds {text!r}, which is no text.")
        if text and text.strip():
            documents.append(document_of(table.place(index), text.replace("\r\n", "\n").replace("\0", "")))
    if not documents:
        raise ValueError(f"{table.place(0)}: column {column!r} holds no text, here or in any other row.")
    return documents


def warn_of_repeats(documents: Mapping[str, Sequence[Section]]) -> None:
    """Warn if paragraphs of the splits that came with the data are also in the training split."""
    if len(documents) > 1:
        paragraphs = {
            split: [(section.topic, paragraph) for section in sections for paragraph in section.paragraphs]
            for split, sections in documents.items()
        }
        keys = {split: [text_key(paragraph) for _, paragraph in found] for split, found in paragraphs.items()}

        def name_of(split: str, number: int) -> str:
            place, paragraph = paragraphs[split][number]
            return f"{place}: {paragraph[:40]!r}"

        warn_of_shared(keys, "paragraphs", name_of)
