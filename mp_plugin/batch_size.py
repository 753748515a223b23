"""How many samples a batch holds."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor


def batch_size(batch: Any) -> int | None:
    """Return the first dimension of a batch's tensors, None where they have none in common.

    Lightning's `extract_batch_size` warns of odd batches and guesses; whose samples cannot be told gets no number here.

    Args:
        batch: tensors, in tuples, lists, mappings and dataclasses; anything else, such as a scalar or texts, is left
            alone.

    Example:
        >>> from torch import zeros
        >>> batch_size({"image": zeros(4, 3, 8, 8), "name": ["a", "b", "c", "d"], "weight": zeros(4)})
        4
        >>> batch_size([zeros(4, 3), zeros(5)]) is None
        True
    """
    sizes = set(_first_dimensions(batch))
    return sizes.pop() if len(sizes) == 1 else None


def _first_dimensions(value: Any) -> Iterator[int]:
    if isinstance(value, Tensor):
        if value.ndim:
            yield value.shape[0]
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _first_dimensions(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _first_dimensions(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in vars(value).values():
            yield from _first_dimensions(part)
