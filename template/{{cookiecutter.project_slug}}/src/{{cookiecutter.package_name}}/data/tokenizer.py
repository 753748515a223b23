"""From text to ids: bytes, hashed words, or the tokens of a tokenizer."""

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from {{cookiecutter.package_name}}.checks import require_positive
from {{cookiecutter.package_name}}.packages import import_extra

NUM_BYTES = 256
NUM_HASHED_WORDS = 16384

Ids = NDArray[np.int32]
#: For each token of a text, where it ends, in bytes of UTF-8.
Ends = NDArray[np.int64]


class Tokenizer(ABC):
    """Turns text into ids from 0 to `vocab_size` - 1.

    Args:
        vocab_size: number of ids.
        pad_id: fills up the shorter sequences of a batch; None if there is no such id.
        eos_id: stands after each document; None if there is no such id.
    """

    def __init__(self, vocab_size: int, pad_id: int | None, eos_id: int | None) -> None:
        self.vocab_size, self.pad_id, self.eos_id = vocab_size, pad_id, eos_id

    @abstractmethod
    def encode(self, texts: Sequence[str], with_special: bool, max_tokens: int | None = None) -> list[tuple[Ids, Ends]]:
        """The ids of each text, and where in the text each of them ends.

        Args:
            texts: any strings.
            with_special: add what the tokenizer puts around a text, such as [CLS] and [SEP].
            max_tokens: cut longer texts to so many ids, those around the text included.
        """

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """All that `tokenizer_from_kept` needs, as plain values."""


class ByteTokenizer(Tokenizer):
    """Every byte of UTF-8 is an id. Padding is 0, which stands in no text that this project reads."""

    def __init__(self) -> None:
        super().__init__(NUM_BYTES, pad_id=0, eos_id=None)

    def encode(self, texts: Sequence[str], with_special: bool, max_tokens: int | None = None) -> list[tuple[Ids, Ends]]:
        """The bytes of each text."""
        found = [np.frombuffer(text.encode()[:max_tokens], dtype=np.uint8).astype(np.int32) for text in texts]
        return [(ids, np.arange(1, len(ids) + 1)) for ids in found]

    def kept(self) -> dict[str, Any]:
        """Nothing but the kind."""
        return {"kind": "bytes"}


class WordHasher(Tokenizer):
    """Words and word pairs, hashed, so that there is no vocabulary to keep; for models that ignore their order.

    Args:
        vocab_size: number of ids; 0 is padding.
    """

    def __init__(self, vocab_size: int) -> None:
        require_positive(vocab_size=vocab_size)
        super().__init__(vocab_size, pad_id=0, eos_id=None)

    def encode(self, texts: Sequence[str], with_special: bool, max_tokens: int | None = None) -> list[tuple[Ids, Ends]]:
        """The words of each text, then its word pairs; a word does not tell where it ends."""
        found = [np.array(word_ids(text, self.vocab_size)[:max_tokens], dtype=np.int32) for text in texts]
        return [(ids, np.zeros(len(ids), dtype=np.int64)) for ids in found]

    def kept(self) -> dict[str, Any]:
        """The number of ids."""
        return {"kind": "words", "vocab_size": self.vocab_size}


class SubwordTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        json: the text of its tokenizer.json.
        pad_id: its padding token.
        eos_id: its end of a text.
    """

    def __init__(self, json: str, pad_id: int | None, eos_id: int | None) -> None:
        self._tokenizer = import_extra("tokenizers", "tokenizers").Tokenizer.from_str(json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # Some vocabularies have gaps, so their size is not the number of their tokens.
        super().__init__(max(self._tokenizer.get_vocab().values()) + 1, pad_id, eos_id)

    def encode(self, texts: Sequence[str], with_special: bool, max_tokens: int | None = None) -> list[tuple[Ids, Ends]]:
        """The tokens of each text."""
        if max_tokens is not None:
            self._tokenizer.enable_truncation(max_tokens)
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=with_special)
        self._tokenizer.no_truncation()
        return [
            (np.array(encoding.ids, dtype=np.int32), byte_ends(text, [end for _, end in encoding.offsets]))
            for text, encoding in zip(texts, found, strict=True)
        ]

    def kept(self) -> dict[str, Any]:
        """The whole tokenizer, so that a prediction needs no file of its own."""
        return {"kind": "subwords", "json": self._tokenizer.to_str(), "pad_id": self.pad_id, "eos_id": self.eos_id}


def tokenizer_from_kept(kept: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer whose `kept` this is."""
    if kept["kind"] == "bytes":
        return ByteTokenizer()
    if kept["kind"] == "words":
        return WordHasher(kept["vocab_size"])
    return SubwordTokenizer(kept["json"], kept["pad_id"], kept["eos_id"])


def byte_ends(text: str, ends: Sequence[int]) -> Ends:
    """Places in a text, in bytes of UTF-8 instead of characters.

    Tokens that share one character all end behind it, so the first of them counts all of its bytes.
    """
    places = np.array(ends, dtype=np.int64)
    if not text.isascii():
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        lengths = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)
        places = np.concatenate([[0], np.cumsum(lengths)])[places]
    # A special token at the end of a text claims to stand at its start.
    return np.maximum.accumulate(places)


def word_ids(text: str, num_buckets: int) -> list[int]:
    """Hash the words of a text, then its word pairs, to ids from 1 to `num_buckets` - 1."""
    words = re.findall(r"\w+", text.lower())
    pairs = [" ".join(pair) for pair in zip(words, words[1:], strict=False)]
    return [1 + zlib.crc32(token.encode()) % (num_buckets - 1) for token in words + pairs]
