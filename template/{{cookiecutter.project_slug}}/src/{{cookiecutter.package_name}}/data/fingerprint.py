"""What data are, as a short text."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor


def fingerprint(parts: Iterable[bytes]) -> str:
    """A hash of some byte strings in their order, as `sha256:<hex>`; where one ends and the next begins counts."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return f"sha256:{digest.hexdigest()}"


def parts_of(example: Any) -> Iterator[bytes]:
    """The bytes of an example made of tensors, arrays and plain values, with their types and shapes.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(example, Tensor):
        example = example.numpy()
    if isinstance(example, np.ndarray):
        yield f"{example.dtype}{list(example.shape)}".encode()
        yield np.ascontiguousarray(example).tobytes()
    elif isinstance(example, str | bytes | int | float | None):
        yield f"{type(example).__name__} {example!r}".encode()
    elif isinstance(example, Mapping):
        for name, value in sorted(example.items()):
            yield str(name).encode()
            yield from parts_of(value)
    elif isinstance(example, tuple | list):
        for value in example:
            yield from parts_of(value)
    else:
        raise TypeError(f"An example holds a {type(example).__name__}: override fingerprint() of the data module.")
