"""What all texts for a language model share: a tokenizer, sequences, and a count of bytes."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.baselines.bigram import bigram_bits_per_byte
from {{cookiecutter.package_name}}.checks import require_positive, require_seed
from {{cookiecutter.package_name}}.data.base import SPLITS, DataModule
from {{cookiecutter.package_name}}.data.make_tokenizer import make_tokenizer, require_token
from {{cookiecutter.package_name}}.data.sections import Section
from {{cookiecutter.package_name}}.data.text_reading import (
    TEXT_PATTERNS,
    find_files,
    hash_texts,
    read_text,
)
from {{cookiecutter.package_name}}.data.token_sequences import Blocks, NamedSequences
from {{cookiecutter.package_name}}.data.tokenizer import (
    ByteTokenizer,
    Ends,
    Ids,
    Tokenizer,
    tokenizer_from_kept,
)

#: Characters that are tokenized at a time: a whole book at once would take a hundred times its size of memory.
PIECE = 1 << 12
#: Pieces that go to the tokenizer together.
PIECES = 1 << 10

PREDICT_BY = ("line", "file")


class CausalTextDataModule(DataModule):
    """Text as sequences of `block_size` + 1 tokens (each token but the first is to be predicted).

    Args:
        block_size: tokens that the model reads; a sequence has one more.
        batch_size: sequences per batch.
        split_seed: decides which part of the text falls into which split.
        tokenizer: "bytes", "train", a tokenizer.json, or a Hugging Face tokenizer by name or folder.
        vocab_size: tokens of a tokenizer that is trained here, on the training split.
        eos_token: the token between two documents, for a tokenizer that does not say which of its tokens that is.
        encoding: of text files.
        predict_by: "line" or "file": what is an example in a user's own files.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster from; None: where there is a GPU.
    """

    def __init__(
        self,
        block_size: int = 128,
        batch_size: int = 32,
        split_seed: int = 0,
        tokenizer: str = "bytes",
        vocab_size: int | None = None,
        eos_token: str | None = None,
        encoding: str = "utf-8",
        predict_by: str = "line",
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        require_seed(split_seed=split_seed)
        require_positive(block_size=block_size)
        if predict_by not in PREDICT_BY:
            raise ValueError(f"predict_by={predict_by} is unknown; accepted: {', '.join(PREDICT_BY)}.")
        if tokenizer == "words":
            raise ValueError("tokenizer=words forgets the order of words, which a language model predicts: use train.")
        self.block_size, self.split_seed, self.predict_by = block_size, split_seed, predict_by
        self.choice, self.vocab_size, self.eos_token, self.encoding = tokenizer, vocab_size, eos_token, encoding
        self.tokenizer: Tokenizer = ByteTokenizer()
        self.splits: dict[str, list[Section]] = {}

    @abstractmethod
    def read_splits(self) -> dict[str, list[Section]]:
        """The text of each split, in documents."""

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Sequences of tokens, as many as each split's text fills."""
        self.splits = self.read_splits()
        self.tokenizer = make_tokenizer(
            self.choice, pieces_of(self.splits["train"]), self.vocab_size, eos_token=self.eos_token
        )
        if not isinstance(self.tokenizer, ByteTokenizer):
            require_token(self.tokenizer, "eos_token", self.choice)
        return {split: self._blocks(split) for split in SPLITS}

    def _blocks(self, split: str) -> Blocks:
        ids, ends = encode_documents(self.tokenizer, self.splits[split])
        blocks = Blocks(ids, ends, self.block_size)
        if not len(blocks):
            raise ValueError(
                f"block_size={self.block_size} is out of range: the {split} split's text has only {len(ids)} tokens; "
                "give more text, or a smaller data.block_size."
            )
        return blocks

    def facts(self) -> dict[str, Any]:
        """Size of the vocabulary, tokens per sequence, and the ids of special tokens."""
        return {
            "vocab_size": self.tokenizer.vocab_size,
            "block_size": self.block_size,
            "eos_token_id": self.tokenizer.eos_id,
        }

    def settings_to_keep(self) -> dict[str, Any]:
        """The tokenizer, and how long a sequence may be."""
        return {"tokenizer": self.tokenizer.kept(), "block_size": self.block_size}

    def fingerprint(self) -> str:
        """A hash of the texts of each split."""
        self.setup()
        return hash_texts(sorted(f"{split}\0{section.text}" for split in SPLITS for section in self.splits[split]))

    def files_dataset(self, paths: Sequence[Path], kept: Mapping[str, Any]) -> Dataset[Any]:
        """The lines of text files that are not blank, or whole files; a long one in parts, each named by its tokens.

        Raises:
            ValueError: if there is no such file, or it is no text.
        """
        tokenizer = tokenizer_from_kept(kept["tokenizer"])
        names, sequences = [], []
        for name, text in named_texts(paths, self.predict_by, self.encoding):
            for place, part, num_bytes in parts_of(tokenizer, text, kept["block_size"]):
                names.append(name + place)
                sequences.append((part, num_bytes))
        if not names:
            raise ValueError(f"{', '.join(map(str, paths))}: there is no text in it.")
        return NamedSequences(sequences, names)

    def baselines(self) -> dict[str, float]:
        """Bits per byte of a byte bigram model, whatever the tokens are."""
        self.setup()
        train, test = (as_bytes(self.splits[split]) for split in ("train", "test"))
        return {"byte bigrams": bigram_bits_per_byte(train[None], test[None])}


def pieces_of(sections: Iterable[Section]) -> Iterator[str]:
    """Documents in pieces that a tokenizer can take."""
    for section in sections:
        yield from section.pieces(PIECE)


def as_bytes(sections: Iterable[Section]) -> NDArray[np.uint8]:
    """Documents as one text, with blank lines between them."""
    return np.frombuffer("\n\n".join(section.text for section in sections).encode(), dtype=np.uint8)


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Section]) -> tuple[Ids, Ends]:
    """The ids of documents in a row, and where each ends, in bytes of text.

    After each document stands the end-of-text token, which counts as no byte; where there is none, as with bytes, blank
    lines stand between documents.
    """
    if tokenizer.eos_id is None:
        ids = as_bytes(documents).astype(np.int32)
        return ids, np.arange(1, len(ids) + 1)
    all_ids: list[Ids] = []
    all_ends: list[Ends] = []
    position = 0
    pieces = [(piece, last) for document in documents for piece, last in with_last(list(document.pieces(PIECE)))]
    for start in range(0, len(pieces), PIECES):
        some = pieces[start : start + PIECES]
        encoded = tokenizer.encode([piece for piece, _ in some], with_special=False)
        for (piece, last), (ids, ends) in zip(some, encoded, strict=True):
            all_ids.append(ids)
            all_ends.append(ends + position)
            position += len(piece.encode())
            if last:
                all_ids.append(np.array([tokenizer.eos_id], dtype=np.int32))
                all_ends.append(np.array([position]))
    return np.concatenate(all_ids), np.concatenate(all_ends)


def with_last(pieces: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Each piece with whether it is the last one."""
    for i, piece in enumerate(pieces):
        yield piece, i + 1 == len(pieces)


def named_texts(paths: Sequence[Path], by: str, encoding: str) -> Iterator[tuple[str, str]]:
    """The lines of files that are not blank, named file:line, or whole files."""
    for path in paths:
        for file in find_files(path, TEXT_PATTERNS, setting="input"):
            text = read_text(file, encoding)
            if by == "line":
                lines = enumerate(text.split("\n"), start=1)
                yield from ((f"{file}:{number}", line) for number, line in lines if line.strip())
            elif text.strip():
                yield str(file), text


def parts_of(tokenizer: Tokenizer, text: str, block_size: int) -> Iterator[tuple[str, Ids, int]]:
    """Sequences that cover a text: what to add to its name, ids, and the bytes of all ids but the first.

    In front stands what stands before a document in training, so that its first token is predicted, too.
    """
    start = ord("\n") if tokenizer.eos_id is None else tokenizer.eos_id
    [(ids, ends)] = tokenizer.encode([text], with_special=False)
    ids, ends = np.concatenate([np.array([start], dtype=np.int32), ids]), np.concatenate([[0], ends])
    for first in range(0, len(ids) - 1, block_size):
        last = min(first + block_size, len(ids) - 1)
        place = "" if len(ids) - 1 <= block_size else f" (tokens {first + 1} to {last})"
        yield place, ids[first : last + 1], int(ends[last] - ends[first])
