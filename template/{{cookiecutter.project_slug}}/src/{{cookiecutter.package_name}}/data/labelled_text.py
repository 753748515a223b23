"""What all labelled texts share: ids, classes, and what simple methods reach."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.baselines.majority import majority_accuracy
from {{cookiecutter.package_name}}.baselines.tfidf import tfidf_accuracy
from {{cookiecutter.package_name}}.checks import require_positive, require_seed
from {{cookiecutter.package_name}}.data.base import SPLITS, DataModule
from {{cookiecutter.package_name}}.data.make_tokenizer import make_tokenizer, require_token
from {{cookiecutter.package_name}}.data.table_reading import TABLE_SUFFIXES, read_table
from {{cookiecutter.package_name}}.data.text_reading import (
    TEXT_PATTERNS,
    find_files,
    hash_texts,
    read_text,
)
from {{cookiecutter.package_name}}.data.token_sequences import Texts
from {{cookiecutter.package_name}}.data.tokenizer import Ids, Tokenizer, WordHasher, tokenizer_from_kept

#: Texts that go to the tokenizer together.
TOGETHER = 4096


@dataclass(frozen=True)
class LabelledSplits:
    """Texts with class numbers, by split.

    Args:
        texts: of each split.
        labels: of each split, as long.
        class_names: by class number.
    """

    texts: dict[str, list[str]]
    labels: dict[str, list[int]]
    class_names: list[str]


class LabelledTextDataModule(DataModule):
    """Texts with a class each; an example is ({"input_ids", "attention_mask"}, class number).

    Args:
        batch_size: texts per batch.
        split_seed: decides which text falls into which split.
        tokenizer: "words" (hashed), "train", "bytes", a tokenizer.json, or a Hugging Face tokenizer by name or folder.
        vocab_size: ids of words, or of a tokenizer that is trained here, on the training split.
        max_tokens: ids per text; longer ones are cut.
        pad_token: padding, for a tokenizer that does not say which of its tokens that is.
        text_column: of tables.
        encoding: of text files.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster from; None: where there is a GPU.
    """

    def __init__(
        self,
        batch_size: int = 32,
        split_seed: int = 0,
        tokenizer: str = "words",
        vocab_size: int | None = None,
        max_tokens: int = 512,
        pad_token: str | None = None,
        text_column: str = "text",
        encoding: str = "utf-8",
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        require_seed(split_seed=split_seed)
        require_positive(max_tokens=max_tokens)
        self.split_seed, self.choice, self.vocab_size, self.pad_token = split_seed, tokenizer, vocab_size, pad_token
        self.max_tokens, self.text_column, self.encoding = max_tokens, text_column, encoding
        self.tokenizer: Tokenizer = WordHasher(2)
        self.examples = LabelledSplits({}, {}, [])

    @abstractmethod
    def read_examples(self) -> LabelledSplits:
        """The texts and classes of each split."""

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Ids and class numbers of each split."""
        self.examples = self.read_examples()
        texts = self.examples.texts
        self.tokenizer = make_tokenizer(self.choice, texts["train"], self.vocab_size, self.pad_token)
        require_token(self.tokenizer, "pad_token", self.choice)
        return {
            split: texts_dataset(self.tokenizer, texts[split], self.examples.labels[split], self.max_tokens)
            for split in SPLITS
        }

    def facts(self) -> dict[str, Any]:
        """The classes, the number of ids and the longest text, and the ids of special tokens."""
        return {
            "num_classes": len(self.examples.class_names),
            "class_names": self.examples.class_names,
            "vocab_size": self.tokenizer.vocab_size,
            "max_tokens": self.max_tokens,
            "pad_token_id": self.tokenizer.pad_id,
            "eos_token_id": self.tokenizer.eos_id,
        }

    def settings_to_keep(self) -> dict[str, Any]:
        """The tokenizer, the names of the classes, and what else turns a text into an example."""
        return {
            "tokenizer": self.tokenizer.kept(),
            "class_names": self.examples.class_names,
            "max_tokens": self.max_tokens,
            "text_column": self.text_column,
        }

    def fingerprint(self) -> str:
        """A hash of the texts of each split and of their classes."""
        self.setup()
        names = self.examples.class_names
        return hash_texts(
            sorted(
                f"{split}\0{names[label]}\0{text}"
                for split in SPLITS
                for text, label in zip(self.examples.texts[split], self.examples.labels[split], strict=True)
            )
        )

    def files_dataset(self, paths: Sequence[Path], kept: Mapping[str, Any]) -> Dataset[Any]:
        """The rows of tables (csv, tsv, jsonl, parquet; labels are not needed), and the lines of text files.

        Raises:
            ValueError: names the file and row that cannot be read.
        """
        names: list[str] = []
        texts: list[str] = []
        for path in paths:
            for file in find_files(path, [*TEXT_PATTERNS, *(f"*{suffix}" for suffix in TABLE_SUFFIXES)], "input"):
                if file.suffix in TABLE_SUFFIXES:
                    table = read_table(file, [kept["text_column"]], self.encoding)
                    table.require_text(kept["text_column"])
                    found = list(zip(table.lines, table.columns[kept["text_column"]], strict=True))
                else:
                    lines = enumerate(read_text(file, self.encoding).split("\n"), start=1)
                    found = [(number, line) for number, line in lines if line.strip()]
                names += [f"{file}:{number}" for number, _ in found]
                texts += [text for _, text in found]
        if not names:
            raise ValueError(f"{', '.join(map(str, paths))}: there is no text in it.")
        return texts_dataset(tokenizer_from_kept(kept["tokenizer"]), texts, names, kept["max_tokens"])

    def baselines(self) -> dict[str, float]:
        """Accuracy of the majority class, and of TF-IDF with logistic regression on the same texts."""
        self.setup()
        texts, labels = self.examples.texts, self.examples.labels
        return {
            "majority class": majority_accuracy(np.array(labels["train"]), np.array(labels["test"])),
            "TF-IDF + logistic regression": tfidf_accuracy(
                texts["train"], labels["train"], texts["test"], labels["test"]
            ),
        }


def texts_dataset(
    tokenizer: Tokenizer, texts: Sequence[str], answers: Sequence[int] | Sequence[str], max_tokens: int
) -> Texts:
    """Texts as ids, cut to `max_tokens` of them.

    What the tokenizer puts around a text stays there: what is cut is the end of the text itself.
    """
    ids: list[Ids] = []
    for start in range(0, len(texts), TOGETHER):
        some = texts[start : start + TOGETHER]
        ids += [found for found, _ in tokenizer.encode(some, with_special=True, max_tokens=max_tokens)]
    assert tokenizer.pad_id is not None  # require_token has seen to it
    return Texts(ids, answers, tokenizer.pad_id)
