"""The tokenizer that a config asks for."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from {{cookiecutter.package_name}}.data.tokenizer import (
    NUM_BYTES,
    NUM_HASHED_WORDS,
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    WordHasher,
    tokenizer_from_kept,
)
from {{cookiecutter.package_name}}.packages import import_extra

#: Characters that a tokenizer is trained on at most: more of them take minutes, and find the same pairs.
ENOUGH = 20_000_000
#: The special tokens of a tokenizer that is trained here; padding is id 0.
PAD, EOS = "<pad>", "<eos>"
#: What other people's tokenizers call the same.
PAD_NAMES = (PAD, "[PAD]", "<|pad|>", "<|endoftext|>")
EOS_NAMES = (EOS, "</s>", "<|endoftext|>", "[SEP]", "<|end_of_text|>")


def make_tokenizer(
    choice: str,
    train_texts: Iterable[str],
    vocab_size: int | None = None,
    pad_token: str | None = None,
    eos_token: str | None = None,
) -> Tokenizer:
    """Make or load a tokenizer.

    Args:
        choice: "train" (byte-level BPE), "bytes", "words" (hashed), the path of a tokenizer.json or of one of this
            project's checkpoints, or the name or folder of a Hugging Face tokenizer.
        train_texts: texts of the training split.
        vocab_size: number of ids, for those that are made here.
        pad_token: padding of a loaded tokenizer; None: what it is usually called.
        eos_token: end of a document of a loaded tokenizer; None: what it is usually called.

    Raises:
        ValueError: if there is no such tokenizer, or it has no such token.
        ImportError: if it needs a package that is not installed.
    """
    if choice == "bytes":
        return ByteTokenizer()
    if choice == "words":
        return WordHasher(NUM_HASHED_WORDS if vocab_size is None else vocab_size)
    if choice == "train":
        return train_bpe(train_texts, 4096 if vocab_size is None else vocab_size)
    if choice.endswith(".json"):
        return load_json(Path(choice).expanduser(), pad_token, eos_token)
    if choice.endswith(".ckpt"):
        return load_checkpoint(choice)
    return load_hugging_face(choice, pad_token, eos_token)


def load_checkpoint(path: str) -> Tokenizer:
    """The tokenizer that a model was trained with, so that it can go on with other text.

    Raises:
        ValueError: if the file is not a checkpoint, or that of a model without a tokenizer.
    """
    try:
        kept = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)["data"]["tokenizer"]
    except OSError as error:
        raise ValueError(f"data.tokenizer={path} cannot be read: {error}") from error
    except Exception as error:  # whatever the reader trips over
        raise ValueError(f"data.tokenizer={path} is not a checkpoint with a tokenizer.") from error
    return tokenizer_from_kept(kept)


def train_bpe(texts: Iterable[str], vocab_size: int) -> SubwordTokenizer:
    """Train a byte-level BPE: it knows every byte, so that no text is beyond it; the same texts make the same one.

    Args:
        texts: the training split.
        vocab_size: tokens at most; fewer where the text does not hold so many pairs worth a token.

    Raises:
        ValueError: if there is no room for the bytes and the special tokens.
    """
    least = NUM_BYTES + 2
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size} is out of range: all bytes and two special tokens are {least}.")
    library = import_extra("tokenizers", "tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(spread(list(texts), ENOUGH), trainer)
    return SubwordTokenizer(tokenizer.to_str(), tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS))


def spread(texts: Sequence[str], characters: int) -> Sequence[str]:
    """Every n-th text, so that about `characters` are left; all of them where there are no more."""
    return texts[:: -(-sum(map(len, texts)) // characters) or 1]


def load_json(path: Path, pad_token: str | None, eos_token: str | None) -> SubwordTokenizer:
    """Read a tokenizer.json.

    Raises:
        ValueError: if the file is none, or lacks a token.
    """
    library = import_extra("tokenizers", "tokenizers")
    if not path.is_file():
        raise ValueError(f"data.tokenizer={path} is not a file.")
    try:
        tokenizer = library.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises nothing more special
        raise ValueError(f"data.tokenizer={path} is not a tokenizer.json: {error}") from error
    padding = (tokenizer.padding or {}).get("pad_token")
    pad = _token_id(tokenizer, "pad_token", pad_token, (padding, *PAD_NAMES) if padding else PAD_NAMES, path)
    return SubwordTokenizer(tokenizer.to_str(), pad, _token_id(tokenizer, "eos_token", eos_token, EOS_NAMES, path))


def load_hugging_face(name: str, pad_token: str | None, eos_token: str | None) -> SubwordTokenizer:
    """Load a tokenizer by name, from the hub or from its cache, or from a folder.

    Raises:
        ValueError: if there is none, or it lacks a token.
    """
    library = import_extra("transformers", "transformers")
    place = Path(name).expanduser()
    try:
        loaded = library.AutoTokenizer.from_pretrained(str(place) if place.is_dir() else name)
    except (OSError, ValueError, json.JSONDecodeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"data.tokenizer={name} is none of train, bytes and words, no .json or .ckpt file, "
            f"and no Hugging Face tokenizer: {first}"
        ) from error
    if not getattr(loaded, "is_fast", False):
        raise ValueError(f"data.tokenizer={name} has no tokenizer.json, which this project needs: choose another one.")
    tokenizer = loaded.backend_tokenizer
    own_eos = [token for token in (loaded.eos_token, loaded.sep_token) if token]
    pad = _token_id(tokenizer, "pad_token", pad_token, [loaded.pad_token] if loaded.pad_token else [], name)
    return SubwordTokenizer(tokenizer.to_str(), pad, _token_id(tokenizer, "eos_token", eos_token, own_eos, name))


def _token_id(tokenizer: Any, setting: str, asked: str | None, usual: Iterable[str], source: object) -> int | None:
    """The id of the token asked for, or else of the first usual one that there is, or None."""
    if asked is not None:
        found: int | None = tokenizer.token_to_id(asked)
        if found is None:
            raise ValueError(f"data.{setting}={asked} is not a token of {source}.")
        return found
    return next((found for token in usual if (found := tokenizer.token_to_id(token)) is not None), None)


def require_token(tokenizer: Tokenizer, setting: str, choice: str) -> None:
    """Check that a tokenizer has a token that the data need.

    Args:
        tokenizer: any.
        setting: pad_token or eos_token.
        choice: what the config calls the tokenizer.

    Raises:
        ValueError: if it has none.
    """
    if (tokenizer.pad_id if setting == "pad_token" else tokenizer.eos_id) is None:
        use = {"pad_token": "padding", "eos_token": "end of text"}[setting]
        raise ValueError(f"data.tokenizer={choice} has no {use} token: name one of its tokens with data.{setting}=...")
