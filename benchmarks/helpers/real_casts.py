"""What number formats really lose: values cast by torch, and looked at one by one."""

from typing import NamedTuple

import torch
from torch import Tensor

from mp_plugin.formats import FORMATS

DTYPES = {
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}
LAST_BEFORE_OVERFLOW = {"fp16": 65519.999, "bf16": 3.3961775e38, "e4m3": 464.0, "e5m2": 61439.999}
"""The largest magnitude that is rounded to a finite value: written down, as torch's e4m3 saturates instead."""


class Lost(NamedTuple):
    """Fractions of the values that are not zero."""

    overflow: float
    flushed: float
    subnormal: float


def lost(values: Tensor, name: str, scale: float = 1.0) -> Lost:
    """Cast values to a format and count; overflow before the cast, the rest after it."""
    scaled = values.detach().double().flatten() * scale
    scaled = scaled[scaled != 0]
    if not scaled.numel():
        return Lost(0.0, 0.0, 0.0)
    magnitudes = _cast(scaled, name).abs()
    flushed = magnitudes == 0
    subnormal = ~flushed & (magnitudes < FORMATS[name].smallest_normal)
    overflow = scaled.abs() > LAST_BEFORE_OVERFLOW[name]
    return Lost(*(float(each.double().mean()) for each in (overflow, flushed, subnormal)))


def _cast(scaled: Tensor, name: str) -> Tensor:
    # By way of fp32 a value could be rounded twice; the tests' values are fp32 numbers times a power of two.
    return scaled.to(DTYPES[name]).double()
