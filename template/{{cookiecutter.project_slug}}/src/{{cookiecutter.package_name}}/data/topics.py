"""Passages of the Python documentation, to be told apart by chapter."""

import re
import zlib
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, TensorDataset

from {{cookiecutter.package_name}}.baselines.majority import majority_accuracy
from {{cookiecutter.package_name}}.baselines.tfidf import tfidf_accuracy
from {{cookiecutter.package_name}}.checks import require_positive, require_seed
from {{cookiecutter.package_name}}.data.base import SPLITS, DataModule
from {{cookiecutter.package_name}}.data.pydoc_text import Section, load_sections, split_sections

#: The classes: chapters of the documentation, with the topics that belong to each. A topic that this Python does not
#: have, or whose text is repeated from a longer one, contributes nothing; topics of no chapter are left out.
CHAPTERS = {
    "data model": "specialnames types objects typesfunctions typesmethods typesmodules specialattrs bltin-code-objects "
    "bltin-type-objects bltin-ellipsis-object bltin-null-object",
    "statements and execution": "compound assignment import raise global nonlocal assert return del yield break "
    "continue pass execmodel",
    "strings and containers": "string-methods formatstrings typesseq typesmapping",
    "expressions and names": "comparisons operator-summary calls binary subscriptions slicings dict lists power unary "
    "bitwise shifting conversions booleans truth lambda await exprlists attribute-references atom-identifiers "
    "atom-literals identifiers strings numbers integers floating imaginary",
}

#: Paragraphs of a section are joined until a passage has this many characters, as single lines say little.
MIN_CHARACTERS = 300


class TopicsDataModule(DataModule):
    """Passages of the Python documentation, labelled with their chapter.

    A passage is one or more neighbouring paragraphs of one section. The sections of each chapter are divided among the
    splits, so every class is in every split, neighbours stay together, and no paragraph is in two splits. An example
    is a row of word ids: words and word pairs, hashed, so that there is no vocabulary to keep with the model.

    Args:
        batch_size: passages per batch.
        num_buckets: number of word ids, 0 (no word) included.
        max_tokens: ids per passage; longer ones are cut.
        split_seed: decides which section falls into which split.
    """

    def __init__(
        self, batch_size: int = 32, num_buckets: int = 16384, max_tokens: int = 512, split_seed: int = 0
    ) -> None:
        super().__init__(batch_size)
        require_seed(split_seed=split_seed)
        require_positive(num_buckets=num_buckets, max_tokens=max_tokens)
        self.num_buckets, self.max_tokens, self.split_seed = num_buckets, max_tokens, split_seed
        self.passages: dict[str, list[tuple[str, int]]] = {}

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Word ids and labels of each split."""
        self.passages = labelled_passages(load_sections(), self.split_seed)
        return {split: self._encode(passages) for split, passages in self.passages.items()}

    def _encode(self, passages: list[tuple[str, int]]) -> TensorDataset:
        ids = torch.zeros(len(passages), self.max_tokens, dtype=torch.long)
        for row, (text, _) in zip(ids, passages, strict=True):
            found = torch.tensor(word_ids(text, self.num_buckets)[: self.max_tokens], dtype=torch.long)
            row[: len(found)] = found
        return TensorDataset(ids, torch.tensor([label for _, label in passages]))

    def baselines(self) -> dict[str, float]:
        """Accuracy of the majority class, and of TF-IDF with logistic regression on the same passages."""
        self.setup()
        train_texts, train_labels = zip(*self.passages["train"], strict=True)
        test_texts, test_labels = zip(*self.passages["test"], strict=True)
        return {
            "majority class": majority_accuracy(np.array(train_labels), np.array(test_labels)),
            "TF-IDF + logistic regression": tfidf_accuracy(train_texts, train_labels, test_texts, test_labels),
        }


def labelled_passages(sections: list[Section], split_seed: int) -> dict[str, list[tuple[str, int]]]:
    """Passages with the number of their chapter, by split."""
    splits: dict[str, list[tuple[str, int]]] = {name: [] for name in SPLITS}
    for label, names in enumerate(CHAPTERS.values()):
        chapter = [section for section in sections if section.topic in names.split()]
        for split, members in split_sections(chapter, split_seed).items():
            splits[split] += [(passage, label) for section in members for passage in passages_of(section)]
    return splits


def passages_of(section: Section) -> list[str]:
    """A section's paragraphs, joined to passages of at least `MIN_CHARACTERS`; a shorter rest joins the last one."""
    passages: list[list[str]] = [[]]
    for paragraph in section.paragraphs:
        if sum(map(len, passages[-1])) >= MIN_CHARACTERS:
            passages.append([])
        passages[-1].append(paragraph)
    if len(passages) > 1 and sum(map(len, passages[-1])) < MIN_CHARACTERS:
        rest = passages.pop()
        passages[-1] += rest
    return ["\n\n".join(passage) for passage in passages]


def word_ids(text: str, num_buckets: int) -> list[int]:
    """Hash the words of a text, then its word pairs, to ids from 1 to `num_buckets` - 1."""
    words = re.findall(r"\w+", text.lower())
    pairs = [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
    return [1 + zlib.crc32(token.encode()) % (num_buckets - 1) for token in words + pairs]
