"""Arrow arrays made without `pyarrow.array`, which imports pandas where there is one: a second of the first sample."""

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pyarrow as pa


def arrow_array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return what `pyarrow.array(values, kind)` does, for numbers, strings and lists of numbers; None is null.

    Args:
        values: of the type, or None.
        kind: an integer, floating-point, string or list type.

    Example:
        >>> arrow_array([1, None], pa.int64()).to_pylist()
        [1, None]
    """
    validity = None
    if any(value is None for value in values):
        is_valid = np.array([value is not None for value in values], dtype=bool)
        validity = pa.py_buffer(np.packbits(is_valid, bitorder="little").tobytes())
    if pa.types.is_list(kind):
        lists = [() if value is None else value for value in values]
        items = arrow_array([*chain.from_iterable(lists)], kind.value_type)
        return pa.Array.from_buffers(kind, len(values), [validity, _offsets(lists)], children=[items])
    if pa.types.is_string(kind):
        texts = [b"" if value is None else value.encode() for value in values]
        return pa.Array.from_buffers(kind, len(values), [validity, _offsets(texts), pa.py_buffer(b"".join(texts))])
    numbers = np.array([0 if value is None else value for value in values], dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [validity, pa.py_buffer(numbers.tobytes())])


def _offsets(values: Sequence[Sequence[Any]]) -> pa.Buffer:
    """Return where each value begins, and the last one ends."""
    return pa.py_buffer(np.fromiter(accumulate(map(len, values), initial=0), dtype=np.int32).tobytes())
