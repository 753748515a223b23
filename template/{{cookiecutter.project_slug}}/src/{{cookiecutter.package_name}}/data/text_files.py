"""A folder or a file of text, for a language model."""

from collections.abc import Sequence
from typing import Any

from {{cookiecutter.package_name}}.data.causal_text import CausalTextDataModule
from {{cookiecutter.package_name}}.data.sections import Section, document_of, split_documents
from {{cookiecutter.package_name}}.data.text_reading import (
    TEXT_PATTERNS,
    find_files,
    read_text,
)


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
        documents = [document_of(str(file), read_text(file, self.encoding)) for file in files]
        if not any(document.paragraphs for document in documents):
            raise ValueError(f"data.path={self.path} is empty: no file holds anything but blanks; files: {len(files)}.")
        try:
            return split_documents(documents, self.split_seed)
        except ValueError as error:
            raise ValueError(f"data.path={self.path} holds too little text: {error}") from error
