"""Pieces of text that stay whole when a text is split."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from {{cookiecutter.package_name}}.data.base import SHARES, SPLITS

#: With fewer documents than these, parts of documents are dealt out to the splits instead of whole ones.
MANY = 20
#: How many parts a text is cut into then.
PARTS = 200


@dataclass(frozen=True)
class Section:
    """Neighbouring paragraphs: a file, a part of one, or the text between two headings.

    Args:
        topic: where it stands.
        paragraphs: its paragraphs in order, without a heading.
        separator: what stands between two paragraphs.
    """

    topic: str
    paragraphs: tuple[str, ...]
    separator: str = "\n\n"

    @property
    def text(self) -> str:
        """All paragraphs, with blank lines between them."""
        return self.separator.join(self.paragraphs)

    @property
    def size(self) -> int:
        """Characters of its paragraphs."""
        return sum(map(len, self.paragraphs))

    def pieces(self, size: int) -> Iterator[str]:
        """The text in pieces of whole paragraphs; none but the last has fewer than `size` characters."""
        start = length = 0
        for i, paragraph in enumerate(self.paragraphs):
            length += len(paragraph)
            if length >= size and i + 1 < len(self.paragraphs):
                yield self.separator.join(self.paragraphs[start : i + 1]) + self.separator
                start, length = i + 1, 0
        yield self.separator.join(self.paragraphs[start:])


def normal_form(paragraph: str) -> str:
    """What makes two paragraphs the same text: letters and digits, whatever the case, wrapping and footnote numbers."""
    without_footnotes = re.sub(r"\[\d+\]", "", paragraph)
    return re.sub(r"[\W_]+", "", without_footnotes).casefold()


def text_key(text: str) -> bytes:
    """A short stand-in for the normal form of a text; of the text itself where that has no letter or digit."""
    return blake2b((normal_form(text) or text.strip()).encode(), digest_size=16).digest()


def split_sections(
    sections: list[Section], split_seed: int, shares: Mapping[str, float] = SHARES
) -> dict[str, list[Section]]:
    """Whole sections to splits, so that neighbouring paragraphs stay together.

    In random order, a section goes to the test split or else the validation split while there is room for it.

    Args:
        sections: at least three.
        split_seed: decides the order.
        shares: of the text, for the splits other than "train".

    Raises:
        ValueError: if there are fewer sections than splits.
    """
    if len(sections) < len(SPLITS):
        raise ValueError(f"{len(sections)} sections of text came in; three splits need at least {len(SPLITS)}.")
    total = sum(len(section.text) for section in sections)
    room = {name: share * total for name, share in shares.items()}
    splits: dict[str, list[Section]] = {name: [] for name in ("train", *shares)}
    for section in random.Random(split_seed).sample(sections, len(sections)):
        split = next((name for name, left in room.items() if len(section.text) <= left), "train")
        splits[split].append(section)
        if split != "train":
            room[split] -= len(section.text)
    return splits


def split_documents(
    documents: list[Section], split_seed: int, shares: Mapping[str, float] = SHARES
) -> dict[str, list[Section]]:
    """Whole documents to splits, where there are many, else parts of them; each split in the order of the text.

    A paragraph of one split that is repeated in another one is left out there: "train" keeps it, then "val".

    Args:
        documents: in order; those without paragraphs do not count.
        split_seed: decides which document falls into which split.
        shares: of the text, for the splits other than "train".

    Raises:
        ValueError: if there is too little text.
    """
    documents = [document for document in documents if document.paragraphs]
    if len(documents) < MANY:
        size = sum(document.size for document in documents) // PARTS
        documents = [part for document in documents for part in parts_of_document(document, size)]
    splits = split_sections(documents, split_seed, shares)
    place = {id(document): number for number, document in enumerate(documents)}
    return without_repeats({name: sorted(found, key=lambda part: place[id(part)]) for name, found in splits.items()})


def document_of(name: str, text: str) -> Section:
    """The paragraphs of a text; its lines, where hardly any blank line divides it."""
    paragraphs, separator = re.split(r"\n(?:[^\S\n]*\n)+", text.strip()), "\n\n"
    if len(paragraphs) < MANY:
        lines = text.strip().split("\n")
        if len(lines) > 10 * len(paragraphs):
            paragraphs, separator = lines, "\n"
    return Section(name, tuple(paragraph for paragraph in paragraphs if paragraph.strip()), separator)


def parts_of_document(document: Section, size: int) -> list[Section]:
    """A document's paragraphs in parts of at least `size` characters; a shorter rest is a part of its own."""
    parts: list[list[str]] = [[]]
    length = 0
    for paragraph in document.paragraphs:
        if parts[-1] and length >= size:
            parts.append([])
            length = 0
        parts[-1].append(paragraph)
        length += len(paragraph)
    return [Section(document.topic, tuple(part), document.separator) for part in parts]


def without_repeats(splits: dict[str, list[Section]]) -> dict[str, list[Section]]:
    """The same splits, where no paragraph of an earlier split is in a later one."""
    seen: set[bytes] = set()
    result = {}
    for split in (name for name in SPLITS if name in splits):
        keys = [[text_key(paragraph) for paragraph in section.paragraphs] for section in splits[split]]
        kept = [_without(section, found, seen) for section, found in zip(splits[split], keys, strict=True)]
        result[split] = [section for section in kept if section.paragraphs]
        seen.update(key for found in keys for key in found)
    return result


def _without(section: Section, keys: Iterable[bytes], seen: set[bytes]) -> Section:
    pairs = zip(section.paragraphs, keys, strict=True)
    return replace(section, paragraphs=tuple(paragraph for paragraph, key in pairs if key not in seen))
