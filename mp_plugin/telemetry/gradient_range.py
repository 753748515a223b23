r"""How large and how small the gradients of a layer are: the largest magnitude, and a histogram of exponents.

A value counts for the exponent $e$ with $2^{e-1} < |g| \le 2^e$. Closed at the upper end, as rounding is: at a scale
$2^k$ a format flushes exactly those values to zero whose exponent is at most $\log_2(\mathrm{tiny} / 2) - k$, where
tiny is its smallest subnormal. So what a loss scale would flush can be read off the histogram without an error.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.grad_stats import local_values, settled

LOWEST_EXPONENT, HIGHEST_EXPONENT = -149, 128
"""Of fp32, subnormals included."""

_CHUNK = 2**22
"""Values that are looked at together: bounds the memory for their exponents, 16 bytes a value."""
_ZERO, _NON_FINITE, _FIRST = 0, 1, 2
_NUM_BINS = _FIRST + HIGHEST_EXPONENT - LOWEST_EXPONENT + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientRange:
    """The magnitudes of many gradient values.

    Example:
        >>> GradientRange(amax=3.0, exponents={2: 5}).merged(GradientRange(amax=1.0, exponents={0: 1}, zeros=2))
        GradientRange(amax=3.0, exponents={0: 1, 2: 5}, zeros=2, non_finite=0)
    """

    amax: float = 0.0
    """Largest finite magnitude; 0 without one."""
    exponents: Mapping[int, int] = field(default_factory=dict)
    """Number of values by exponent, smallest exponent first; without zeros, NaN and Inf."""
    zeros: int = 0
    """Values that are zero."""
    non_finite: int = 0
    """Values that are NaN or Inf."""

    def merged(self, other: "GradientRange") -> "GradientRange":
        """Return the range of the values of both."""
        return GradientRange(
            amax=max(self.amax, other.amax),
            exponents=dict(sorted((Counter(self.exponents) + Counter(other.exponents)).items())),
            zeros=self.zeros + other.zeros,
            non_finite=self.non_finite + other.non_finite,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"exponents": {str(exponent): count for exponent, count in self.exponents.items()}}


def gradient_ranges(named_grads: Iterable[tuple[str, Tensor]]) -> dict[str, GradientRange]:
    """Return the range of the gradients under each name, such as that of a layer; several may share one.

    One read and one host sync for all of them. Values are read as fp32.

    Args:
        named_grads: floating-point gradients in any mix of devices, dtypes and layouts. Of a sparse one the values that
            are stored count, of a distributed one the local part, of a complex one real and imaginary parts.

    Example:
        >>> gradient_ranges([("head", torch.tensor([0.5, -3.0, 0.0]))])
        {'head': GradientRange(amax=3.0, exponents={-1: 1, 2: 1}, zeros=1, non_finite=0)}
    """
    rows: list[tuple[str, Tensor]] = []
    for name, grad in named_grads:
        rows.extend((name, _row(chunk)) for chunk in _chunks(grad))
    if not rows:
        return {}
    device = rows[0][1].device
    ranges: dict[str, GradientRange] = {}
    for (name, _), numbers in zip(rows, torch.stack([row.to(device) for _, row in rows]).tolist(), strict=True):
        ranges[name] = ranges.get(name, GradientRange()).merged(_range_of(numbers))
    return ranges


def _chunks(grad: Tensor) -> Iterator[Tensor]:
    grad = grad.detach()
    # Values of a sparse row that appears twice are summed; the parts of a distributed one stay where they are.
    values = local_values(settled(grad) if grad.is_sparse else grad)
    yield from torch.split(values.reshape(-1), _CHUNK)


def _row(values: Tensor) -> Tensor:
    """Return the counts of each bin, and the bits of the largest finite magnitude as the last number."""
    magnitudes = values.float().abs()
    is_finite = torch.isfinite(magnitudes)
    mantissas, exponents = torch.frexp(magnitudes)
    # Mantissas begin at 1/2: that of a power of two, which belongs to the exponent below.
    exponents = exponents - (mantissas == 0.5).to(exponents.dtype)
    bins = (exponents - LOWEST_EXPONENT + _FIRST).long()
    bins = torch.where(magnitudes == 0, _ZERO, torch.where(is_finite, bins, _NON_FINITE))
    counts = bins.new_zeros(_NUM_BINS + 1)
    # Not bincount: it waits for the device.
    counts.scatter_add_(0, bins, bins.new_ones(1).expand_as(bins))
    if magnitudes.numel():
        counts[-1] = torch.where(is_finite, magnitudes, 0.0).amax().view(torch.int32)
    return counts


def _range_of(numbers: list[int]) -> GradientRange:
    *counts, amax_bits = numbers
    return GradientRange(
        amax=torch.tensor(amax_bits, dtype=torch.int32).view(torch.float32).item(),
        exponents={place + LOWEST_EXPONENT: count for place, count in enumerate(counts[_FIRST:]) if count},
        zeros=counts[_ZERO],
        non_finite=counts[_NON_FINITE],
    )
