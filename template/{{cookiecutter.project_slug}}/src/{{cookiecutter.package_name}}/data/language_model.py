"""The Python documentation for a language model."""

from {{cookiecutter.package_name}}.data.causal_text import CausalTextDataModule
from {{cookiecutter.package_name}}.data.pydoc_text import load_sections
from {{cookiecutter.package_name}}.data.sections import Section, split_sections


class LanguageModelDataModule(CausalTextDataModule):
    """The Python documentation, as bytes unless another tokenizer is asked for.

    Every section of the text is in one split, and no paragraph is in two.
    """

    def read_splits(self) -> dict[str, list[Section]]:
        """The sections of each split."""
        return split_sections(load_sections(), self.split_seed)
