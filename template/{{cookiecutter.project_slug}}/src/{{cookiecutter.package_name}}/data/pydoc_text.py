"""The Python documentation that every Python carries in `pydoc_data.topics`, as sections, without repeats."""

import re
from collections.abc import Iterable
from pydoc_data import topics

from {{cookiecutter.package_name}}.data.sections import Section, normal_form

#: A title underlined with one repeated mark; table borders look alike but begin with + or |.
_HEADING = re.compile(r'^(?![\s+|]).+\n([=*\-~^"])\1{2,}$', re.MULTILINE)


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
