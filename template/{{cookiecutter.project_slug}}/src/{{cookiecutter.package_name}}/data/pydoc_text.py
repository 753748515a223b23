"""The Python documentation that every Python carries in `pydoc_data.topics`, as sections, without repeats."""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pydoc_data import topics

from {{cookiecutter.package_name}}.data.base import SPLITS

#: Shares of the text for validation and testing; the rest is for training.
VAL, TEST = 0.1, 0.15

#: A title underlined with one repeated mark; table borders look alike but begin with + or |.
_HEADING = re.compile(r'^(?![\s+|]).+\n([=*\-~^"])\1{2,}$', re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """The text between two headings.

    Args:
        topic: the name of the documentation topic it stands in.
        paragraphs: its paragraphs in order, without the heading.
    """

    topic: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        """All paragraphs, with blank lines between them."""
        return "\n\n".join(self.paragraphs)


def load_sections() -> list[Section]:
    """All sections of the documentation; a paragraph that stands in several of them is kept once.

    Many topics repeat parts of longer ones (`if` is a section of `compound`), so the longest topics come first.
    """
    seen: set[str] = set()
    sections = []
    for topic, text in sorted(topics.topics.items(), key=lambda item: (-len(item[1]), item[0])):
        for body in split_at_headings(text):
            paragraphs = tuple(new_paragraphs(re.split(r"\n\s*\n", body), seen))
            if paragraphs:
                sections.append(Section(topic, paragraphs))
    return sections


def split_at_headings(text: str) -> list[str]:
    """The texts between the headings, which themselves are left out."""
    parts, start = [], 0
    for heading in _HEADING.finditer(text):
        parts.append(text[start : heading.start()])
        start = heading.end()
    return [*parts, text[start:]]


def new_paragraphs(paragraphs: Iterable[str], seen: set[str]) -> list[str]:
    """The paragraphs whose normal form is not in `seen`, which then holds them."""
    fresh = []
    for paragraph in paragraphs:
        key = normal_form(paragraph)
        if key and key not in seen:
            seen.add(key)
            fresh.append(paragraph.strip("\n"))
    return fresh


def normal_form(paragraph: str) -> str:
    """What makes two paragraphs the same text: letters and digits, whatever the case, wrapping and footnote numbers."""
    without_footnotes = re.sub(r"\[\d+\]", "", paragraph)
    return re.sub(r"[\W_]+", "", without_footnotes).casefold()


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
