"""Which parts of a batch, and which of its samples, are not finite."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import is_finite, non_finite_counts, non_finite_samples


def non_finite_parts(batch: Any) -> list[dict[str, Any]]:
    """Describe every tensor of a batch that holds a NaN or an Inf; syncs once per tensor.

    -Inf alone is no fault: attention masks are made of it.

    Args:
        batch: tensors and NumPy arrays in mappings, sequences and dataclasses, nested.

    Returns:
        Plain values for each of them: `path`, how many `nan` and `inf`, and the first few `samples` by index.

    Example:
        >>> non_finite_parts({"image": torch.tensor([[1.0], [float("nan")]]), "label": torch.tensor([0, 1])})
        [{'path': "batch['image']", 'nan': 1, 'inf': 0, 'samples': [1]}]
    """
    found = []
    for path, tensor in tensors_by_path(batch):
        if is_finite(tensor) is not False:
            continue
        nan, inf, negative_inf = non_finite_counts(tensor)
        if nan or inf:
            samples = non_finite_samples(tensor)
            found.append({"path": path, "nan": nan, "inf": inf + negative_inf, "samples": samples})
    return found


def tensors_by_path(value: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor of a batch, NumPy arrays as tensors that share their memory, with the expression that finds it.

    Example:
        >>> [path for path, _ in tensors_by_path([torch.ones(1), {"mask": torch.zeros(1)}])]
        ['batch[0]', "batch[1]['mask']"]
    """
    yield from _walk(value, path, ())


def _walk(value: Any, path: str, around: tuple[int, ...]) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    if type(value).__module__ == "numpy":
        tensor = _from_numpy(value)
        if tensor is not None:
            yield path, tensor
        return
    if id(value) in around:  # a container that holds itself
        return
    around = (*around, id(value))
    if isinstance(value, Mapping):
        parts = ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"[{place}]", part) for place, part in enumerate(value))
    elif is_dataclass(value) and not isinstance(value, type):
        parts = ((f".{each.name}", getattr(value, each.name, None)) for each in fields(value))
    else:
        return
    for step, part in parts:
        yield from _walk(part, path + step, around)


def _from_numpy(value: Any) -> Tensor | None:
    """Return an array or a number of NumPy as a tensor; None if it holds none that can be NaN, or torch has no such."""
    if getattr(getattr(value, "dtype", None), "kind", "") not in "fc":
        return None
    try:
        # torch warns of memory that it must not write to.
        return torch.as_tensor(value if value.flags.writeable else value.copy())
    except (TypeError, ValueError):  # 80 bits, another byte order
        return None
