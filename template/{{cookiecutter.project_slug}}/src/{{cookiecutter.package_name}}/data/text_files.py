"""A folder or a file of text, for a language model."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from {{cookiecutter.package_name}}.data.causal_text import CausalTextDataModule
from {{cookiecutter.package_name}}.data.sections import Section, split_sections, without_repeats
from {{cookiecutter.package_name}}.data.text_reading import TEXT_PATTERNS, find_files, hash_files, read_text

#: With fewer files than these, parts of files are dealt out to the splits instead of whole files.
MANY_FILES = 20
#: How many parts a text is cut into then.
PARTS = 200


class TextFilesDataModule(CausalTextDataModule):
    """Text files, whole in one split where there are at least 20, and in parts of neighbouring paragraphs otherwise.

    A paragraph of the training split that is repeated in another one is left out there, so that none is tested on that
    was trained on.

    Args:
        path: a file, or a folder, with all folders below it.
        patterns: what the names of a folder's text files look like.
        **settings: those of `CausalTextDataModule`.
    """

    def __init__(self, path: str | None = None, patterns: Sequence[str] = TEXT_PATTERNS, **settings: Any) -> None:
        super().__init__(**settings)
        self.path, self.patterns = path, list(patterns)

    def read_splits(self) -> dict[str, list[Section]]:
        """Files, or parts of files, in the order of their names.

        Raises:
            ValueError: names the file that cannot be read, or says that there is too little text.
        """
        files = find_files(self.path, self.patterns)
        documents = [document_of(file, read_text(file, self.encoding)) for file in files]
        documents = [document for document in documents if document.paragraphs]
        if not documents:
            raise ValueError(f"data.path={self.path} is empty: its {len(files)} files hold nothing but blanks.")
        if len(documents) < MANY_FILES:
            size = sum(document.size for document in documents) // PARTS
            documents = [part for document in documents for part in parts_of_document(document, size)]
        try:
            splits = split_sections(documents, self.split_seed)
        except ValueError as error:
            raise ValueError(f"data.path={self.path} holds too little text: {error}") from error
        place = {id(document): number for number, document in enumerate(documents)}
        in_order = {name: sorted(found, key=lambda part: place[id(part)]) for name, found in splits.items()}
        return without_repeats(in_order)

    def fingerprint(self) -> str:
        """A hash of the files' names and contents."""
        files = find_files(self.path, self.patterns)
        return hash_files(files, Path(str(self.path)).expanduser())


def document_of(file: Path, text: str) -> Section:
    """The paragraphs of a text; its lines, where hardly any blank line divides it."""
    paragraphs, separator = re.split(r"\n(?:[^\S\n]*\n)+", text.strip()), "\n\n"
    if len(paragraphs) < MANY_FILES:
        lines = text.strip().split("\n")
        if len(lines) > 10 * len(paragraphs):
            paragraphs, separator = lines, "\n"
    return Section(str(file), tuple(paragraph for paragraph in paragraphs if paragraph.strip()), separator)


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
