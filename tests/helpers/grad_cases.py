"""Gradients of every awkward kind, and what is true of them by float64 arithmetic in plain Python."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

INF, NAN = math.inf, math.nan
FLUSHED_AT = 2.0**-25
"""Half of the smallest number of fp16: what is not above it rounds to zero."""

EDGES: dict[str, list[float]] = {
    "zero": [0.0],
    "negative zero": [-0.0, 0.0],
    "one": [-1.5],
    "subnormals of fp32": [2.0**-149, -(2.0**-127), 2.0**-126],
    "subnormals of fp16": [2.0**-24, -(2.0**-15), 2.0**-14],
    "around the flushing limit": [FLUSHED_AT, -FLUSHED_AT, FLUSHED_AT * (1 + 2.0**-7), FLUSHED_AT * (1 - 2.0**-8)],
    "largest fp16": [65504.0, -1.0],
    "large, with a sum of squares in range": [1e18, -1e18, 1.0],
    "inf": [1.0, INF],
    "negative inf": [-INF, -2.0],
    "nan": [NAN, 1.0],
    "all kinds": [INF, NAN, 0.0, -3.0, -INF, NAN, 1e-30],
    "nothing finite": [NAN, INF],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (1, 2, 3, 7, 8, 9, 63, 1000, 1023, 1025, 4095, 4096, 4097, 4104, 16383, 16385, 40001)


@dataclass(frozen=True)
class Truth:
    amax: float
    square_sum: float
    num_nan: int
    num_inf: int
    num_flushed: int


def truth(grad: Tensor, flushed_at: float) -> Truth:
    magnitudes = [abs(value) for value in grad.double().flatten().tolist()]
    finite = [value for value in magnitudes if math.isfinite(value)]
    return Truth(
        amax=max(finite, default=0.0),
        square_sum=math.fsum(value * value for value in finite),
        num_nan=sum(map(math.isnan, magnitudes)),
        num_inf=magnitudes.count(INF),
        num_flushed=sum(0.0 < value <= flushed_at for value in magnitudes),
    )


def edge(name: str, dtype: torch.dtype) -> Tensor:
    return torch.tensor(EDGES[name], dtype=torch.float64).to(dtype)


def nan_payloads() -> Tensor:
    """Quiet and signalling NaNs of both signs, and their neighbours Inf and the largest finite number."""
    bits = [0x7FC00000, 0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF, 0x7F800000, -0x800000, 0x7F7FFFFF, 0x00000001]
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


def gradients(dtype: torch.dtype) -> list[Tensor]:
    """Return dense gradients of many sizes and layouts, some with NaN, Inf and tiny values at awkward places."""
    torch.manual_seed(0)
    grads = [_spread(size) for size in SIZES]
    grads[5][-1] = NAN
    grads[9][0] = -INF
    grads[12][4096] = NAN
    grads[16][-1], grads[16][16384] = INF, NAN
    base = _spread(9000)
    grads += [base[start:] for start in (1, 2, 3, 5)]  # misaligned by their storage's offset
    grads += [
        _spread(60).view(3, 4, 5).permute(2, 0, 1),
        _spread(72).view(1, 2, 6, 6).to(memory_format=torch.channels_last),
    ]
    grads += [_spread(400).view(20, 20)[:, ::3], _spread(400).view(20, 20)[:, 3:5], _spread(1).expand(7, 9)]
    grads += [_spread(400).view(20, 20)[3:].t(), _spread(2).view(2, 1, 1)[:1], torch.tensor(-2.5)]
    # Not `grad.to(dtype)`, which would forget the layout.
    return [_same_layout(grad, dtype) for grad in grads]


def _spread(size: int) -> Tensor:
    """Return random values of many orders of magnitude, a tenth of them zero."""
    values = torch.randn(size) * torch.exp2(torch.randint(-40, 8, (size,)).float())
    return values * (torch.rand(size) > 0.1)


def _same_layout(grad: Tensor, dtype: torch.dtype) -> Tensor:
    numbers = torch.empty(0).set_(grad.untyped_storage()).to(dtype)
    return numbers.as_strided(grad.shape, grad.stride(), grad.storage_offset())
