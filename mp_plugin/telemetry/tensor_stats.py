r"""How the values of a tensor lie in a number format: counts, extremes, and a histogram of exponents.

A value counts for the exponent $e$ with $2^{e-1} < |x| \le 2^e$. Closed at the upper end, as rounding is: at a scale
$2^k$ a format flushes exactly those values to zero whose exponent is at most $\log_2(\mathrm{tiny} / 2) - k$, where
tiny is its smallest subnormal. So what a format or a loss scale would flush can be read off the histogram without an
error.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

LOWEST_EXPONENT, HIGHEST_EXPONENT = -149, 128
"""Of fp32, subnormals included. What lies beyond, in fp64, is counted at the nearer end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorStats:
    """The magnitudes of many values, of one tensor or of several.

    Example:
        >>> small = TensorStats(numel=3, zeros=1, amax=1.0, smallest=0.5, sum_of_squares=1.25, exponents={-1: 1, 0: 1})
        >>> both = small.merged(TensorStats(numel=1, amax=3.0, smallest=3.0, sum_of_squares=9.0, exponents={2: 1}))
        >>> both.numel, both.amax, both.smallest, round(both.rms, 3), both.exponents
        (4, 3.0, 0.5, 1.601, {-1: 1, 0: 1, 2: 1})
    """

    numel: int = 0
    """Values in all."""
    zeros: int = 0
    """Values that are zero, of either sign."""
    nans: int = 0
    infs: int = 0
    """Values that are Inf, of either sign."""
    amax: float = 0.0
    """Largest finite magnitude; 0 without one."""
    smallest: float | None = None
    """Smallest magnitude of a finite value that is not zero; None without one."""
    sum_of_squares: float = 0.0
    """Of the finite values."""
    flushed: int = 0
    """Finite values, not zero, that would be rounded to zero in the compute dtype, multiplied by the loss scale."""
    subnormal: int = 0
    """Values that would come out subnormal there: not zero, but with fewer digits."""
    saturated: int = 0
    """Finite values that would be rounded beyond its largest finite value."""
    exponents: Mapping[int, int] = field(default_factory=dict)
    """Number of finite values that are not zero, by exponent, smallest first; empty if nobody counted."""

    @property
    def non_finite(self) -> int:
        """Values that are NaN or Inf."""
        return self.nans + self.infs

    @property
    def rms(self) -> float:
        """Root mean square of the finite values; 0 without one."""
        num_finite = self.numel - self.non_finite
        return math.sqrt(self.sum_of_squares / num_finite) if num_finite else 0.0

    def merged(self, other: "TensorStats") -> "TensorStats":
        """Return the statistics of the values of both."""
        smallest = [each for each in (self.smallest, other.smallest) if each is not None]
        return TensorStats(
            numel=self.numel + other.numel,
            zeros=self.zeros + other.zeros,
            nans=self.nans + other.nans,
            infs=self.infs + other.infs,
            amax=max(self.amax, other.amax),
            smallest=min(smallest, default=None),
            sum_of_squares=self.sum_of_squares + other.sum_of_squares,
            flushed=self.flushed + other.flushed,
            subnormal=self.subnormal + other.subnormal,
            saturated=self.saturated + other.saturated,
            exponents=dict(sorted((Counter(self.exponents) + Counter(other.exponents)).items())),
        )
