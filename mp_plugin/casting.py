"""Casts for models that are wholly in a half format."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None, None, None]:
    """Create floating-point tensors in this dtype within the block, and restore the default after it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def cast_floating(data: Any, dtype: torch.dtype) -> Any:
    """Cast the floating-point tensors of a nested collection; integers, booleans and complex numbers stay."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return apply_to_collection(data, Tensor, cast)
