"""A Hugging Face data set with columns of texts and labels."""

from collections.abc import Sequence
from typing import Any

from {{cookiecutter.package_name}}.data.hf_tables import load_tables
from {{cookiecutter.package_name}}.data.labelled_text import LabelledSplits, LabelledTextDataModule
from {{cookiecutter.package_name}}.data.text_table import split_tables


class HuggingFaceLabelledTextDataModule(LabelledTextDataModule):
    """The rows of a data set; splits that it does not have are taken from the training split, class by class.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, or a folder or file of parquet, jsonl, json or csv.
        subset: of a data set on the hub that has several.
        label_column: the labels, text or integers.
        class_names: the classes in their order; None: those that the data set names, or that occur in training.
        train_split: what the data set calls it; None: train.
        val_split: None: validation, or what else it is usually called; "none": some of the training rows.
        test_split: None: test; "none": some of the training rows.
        cache_dir: where downloads go; None: where the datasets library puts them.
        **settings: those of `LabelledTextDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        subset: str | None = None,
        label_column: str = "label",
        class_names: Sequence[str] | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        cache_dir: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.path, self.subset, self.label_column, self.cache_dir = path, subset, label_column, cache_dir
        self.given_names = None if class_names is None else list(map(str, class_names))
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}

    def read_examples(self) -> LabelledSplits:
        """Texts and class numbers of each split.

        Raises:
            ValueError: names the row of the first text or label that will not do.
        """
        columns = [self.text_column, self.label_column]
        tables = load_tables(self.path, columns, self.split_names, self.subset, self.cache_dir)
        return split_tables(tables, self.text_column, self.label_column, self.given_names, self.split_seed)
