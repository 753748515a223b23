"""Byte sequences for a language model."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.baselines.bigram import bigram_bits_per_byte
from {{cookiecutter.package_name}}.checks import require_positive, require_seed
from {{cookiecutter.package_name}}.data.base import DataModule
from {{cookiecutter.package_name}}.data.pydoc_text import load_sections, split_sections


class LanguageModelDataModule(DataModule):
    """The Python documentation as sequences of `block_size` + 1 bytes (each byte but the first is to be predicted).

    Every section of the text is in one split, and no paragraph is in two.

    Args:
        block_size: bytes that the model reads; a sequence has one more.
        batch_size: sequences per batch.
        split_seed: decides which section falls into which split.
    """

    def __init__(self, block_size: int = 128, batch_size: int = 32, split_seed: int = 0) -> None:
        super().__init__(batch_size)
        require_seed(split_seed=split_seed)
        require_positive(block_size=block_size)
        self.block_size, self.split_seed = block_size, split_seed

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Integer tensors of shape [block_size + 1], as many as each split's text fills."""
        splits = split_sections(load_sections(), self.split_seed)
        texts = {name: "\n\n".join(section.text for section in sections) for name, sections in splits.items()}
        return {name: Sequences(cut(text.encode(), self.block_size)) for name, text in texts.items()}

    def baselines(self) -> dict[str, float]:
        """Bits per byte of a byte bigram model."""
        self.setup()
        train, test = (self.datasets[split].sequences for split in ("train", "test"))  # type: ignore[attr-defined]
        return {"byte bigrams": bigram_bits_per_byte(train, test)}


class Sequences(Dataset[torch.Tensor]):
    """Byte sequences, handed out as the int64 tensors that an embedding takes.

    Args:
        sequences: byte values of shape [sequences, time].
    """

    def __init__(self, sequences: NDArray[np.uint8]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.sequences[index].astype(np.int64))


def cut(text: bytes, block_size: int) -> NDArray[np.uint8]:
    """Cut a text into sequences of `block_size` + 1 bytes that overlap by one, so that each byte is predicted once.

    Raises:
        ValueError: if the text does not fill one sequence.
    """
    num_sequences = (len(text) - 1) // block_size
    if num_sequences < 1:
        raise ValueError(f"block_size={block_size} is out of range: a split's text has only {len(text)} bytes.")
    starts = np.arange(num_sequences)[:, None] * block_size
    return np.frombuffer(text, dtype=np.uint8)[starts + np.arange(block_size + 1)]
