"""Passages of the Python documentation, to be told apart by chapter."""

from typing import Any

from {{cookiecutter.package_name}}.checks import require_positive
from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.labelled_text import LabelledSplits, LabelledTextDataModule
from {{cookiecutter.package_name}}.data.pydoc_text import load_sections
from {{cookiecutter.package_name}}.data.sections import Section, split_sections

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


class TopicsDataModule(LabelledTextDataModule):
    """Passages of the Python documentation, labelled with their chapter.

    A passage is one or more neighbouring paragraphs of one section. The sections of each chapter are divided among the
    splits, so every class is in every split, neighbours stay together, and no paragraph is in two splits. By default an
    example is a row of word ids: words and word pairs, hashed, so that there is no vocabulary to keep with the model.

    Args:
        batch_size: passages per batch.
        num_buckets: number of word ids, 0 (no word) included.
        max_tokens: ids per passage; longer ones are cut.
        split_seed: decides which section falls into which split.
        **settings: the others of `LabelledTextDataModule`.
    """

    def __init__(
        self,
        batch_size: int = 32,
        num_buckets: int = 16384,
        max_tokens: int = 512,
        split_seed: int = 0,
        **settings: Any,
    ) -> None:
        require_positive(num_buckets=num_buckets)
        super().__init__(batch_size, split_seed, vocab_size=num_buckets, max_tokens=max_tokens, **settings)

    def read_examples(self) -> LabelledSplits:
        """Passages and chapters of each split."""
        passages = labelled_passages(load_sections(), self.split_seed)
        return LabelledSplits(
            {split: [text for text, _ in found] for split, found in passages.items()},
            {split: [label for _, label in found] for split, found in passages.items()},
            list(CHAPTERS),
        )


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
