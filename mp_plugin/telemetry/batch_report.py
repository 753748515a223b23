"""Which parts of a batch, and which of its samples, are not finite."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
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
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from tensors_by_path(part, f"{path}[{key!r}]")
    elif isinstance(value, list | tuple):
        for place, part in enumerate(value):
            yield from tensors_by_path(part, f"{path}[{place}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for name, part in vars(value).items() if hasattr(value, "__dict__") else ():
            yield from tensors_by_path(part, f"{path}.{name}")
    elif type(value).__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "") == "f":
        yield path, torch.as_tensor(value)
