"""Pieces of text that stay whole when a text is split."""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b

from {{cookiecutter.package_name}}.data.base import SPLITS

#: Shares of the text for validation and testing; the rest is for training.
VAL, TEST = 0.1, 0.15


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


def split_sections(sections: list[Section], split_seed: int) -> dict[str, list[Section]]:
    """Whole sections to splits, so that neighbouring paragraphs stay together.

    In random order, a section goes to the test split or else the validation split while there is room for it.

    Args:
        sections: at least three.
        split_seed: decides the order.

    Raises:
        ValueError: if there are fewer sections than splits.
    """
    if len(sections) < len(SPLITS):
        raise ValueError(f"{len(sections)} sections of text came in; three splits need at least {len(SPLITS)}.")
    total = sum(len(section.text) for section in sections)
    room = {"test": TEST * total, "val": VAL * total}
    splits: dict[str, list[Section]] = {name: [] for name in SPLITS}
    for section in random.Random(split_seed).sample(sections, len(sections)):
        split = next((name for name, left in room.items() if len(section.text) <= left), "train")
        splits[split].append(section)
        if split != "train":
            room[split] -= len(section.text)
    return splits


def without_repeats(splits: dict[str, list[Section]]) -> dict[str, list[Section]]:
    """The same splits, where a paragraph of the training split is in no other one, and one of "val" not in "test"."""
    seen: set[bytes] = set()
    result = {}
    for split in SPLITS:
        keys = [[text_key(paragraph) for paragraph in section.paragraphs] for section in splits[split]]
        kept = [_without(section, found, seen) for section, found in zip(splits[split], keys, strict=True)]
        result[split] = [section for section in kept if section.paragraphs]
        seen.update(key for found in keys for key in found)
    return result


def _without(section: Section, keys: Iterable[bytes], seen: set[bytes]) -> Section:
    pairs = zip(section.paragraphs, keys, strict=True)
    return replace(section, paragraphs=tuple(paragraph for paragraph, key in pairs if key not in seen))
