"""A batch as it was when its step began."""

from collections.abc import Mapping, MutableMapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor


class BatchStart:
    """Undo what a training step does to the batch that it is given, as far as that can be undone.

    The containers are copied, not the tensors: dicts, lists, tuples and dataclasses, nested. What a step takes out of a
    container is put back; that it writes to a tensor in place is noticed. Walks over the batch; no sync.

    Example:
        >>> batch = {"inputs": 1, "labels": 2}
        >>> start = BatchStart(batch)
        >>> batch.pop("labels"), start.restore(), batch
        (2, True, {'inputs': 1, 'labels': 2})
    """

    def __init__(self, batch: Any) -> None:
        self._mappings: list[tuple[MutableMapping[Any, Any], dict[Any, Any]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._tensors: list[tuple[Tensor, int]] = []
        self.nbytes = 0
        """Bytes of its tensors."""
        self._look_at(batch)

    def restore(self) -> bool:
        """Fill the containers as they were; False if a tensor was written to, which nothing can undo."""
        for mapping, content in self._mappings:
            if mapping.keys() != content.keys() or any(mapping[key] is not value for key, value in content.items()):
                mapping.clear()
                mapping.update(content)
        for values, content_of_list in self._lists:
            values[:] = content_of_list
        return all(tensor._version == version for tensor, version in self._tensors)

    def _look_at(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.nbytes += value.nbytes if value.layout is torch.strided else 0
            if not value.is_inference():  # such a tensor counts no versions, and cannot be written to
                self._tensors.append((value, value._version))
        elif isinstance(value, Mapping):
            if isinstance(value, MutableMapping):
                self._mappings.append((value, dict(value)))
            for part in value.values():
                self._look_at(part)
        elif isinstance(value, list | tuple):
            if isinstance(value, list):
                self._lists.append((value, list(value)))
            for part in value:
                self._look_at(part)
        elif is_dataclass(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
            self._look_at(vars(value))
