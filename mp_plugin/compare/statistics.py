"""Differences between two groups of numbers, and what can be said of them.

Differences are candidate minus reference. Where runs share their seeds they are paired: Student's t on the differences
of the pairs. Where they do not: Welch's t, which lets the two groups have spreads of their own.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mp_plugin.errors import UnsupportedError

CONFIDENCE = 0.95
"""Of all intervals. A line is held by one of its ends, which is a one-sided test at 2.5%."""
SIGNIFICANCE = 0.05
"""Of the equivalence test: each of its two one-sided tests at 5%, as is usual."""

DIGITS = 1e-4
"""Differences are the same if they agree to four digits: of metrics in float32, near 1, the others are rounding."""


class Method(str, Enum):
    """How two groups were compared."""

    paired = "paired by seed"
    """Student's t on the differences of pairs."""
    welch = "unpaired"
    """Welch's t."""
    same = "all the same"
    """The same result in every pair, or in every run of both groups: there is nothing to test."""
    point = "no test"
    """Too few runs for a test, or differences without a spread: only the difference itself is known."""


class Line(str, Enum):
    """Whether a group holds the line of `--fail-if-worse`."""

    holds = "holds"
    worse = "worse"
    """Shown to be worse than the line."""
    not_shown = "not shown"
    """Neither shown to be worse than the line, nor shown not to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How far a candidate lies from the reference."""

    mean: float
    method: Method
    count: int
    """Pairs, or runs of both groups together."""
    standard_error: float | None = None
    """None without a test, as are the others."""
    degrees: float | None = None
    """Of freedom, of Student's t."""
    low: float | None = None
    """The lower end of the 95% confidence interval."""
    high: float | None = None


def spread(values: Sequence[float]) -> float | None:
    """Return the standard deviation of a sample, with n - 1 in the denominator; None of fewer than two values.

    Example:
        >>> spread([1.0, 3.0]), spread([1.0])
        (1.4142135623730951, None)
    """
    return statistics.stdev(values) if len(values) > 1 else None


def paired(differences: Sequence[float]) -> Difference:
    """Return the mean of the pairs' differences with its interval by Student's t.

    Without one if there is one pair, or if the differences are all the same to four digits: a spread of 0, or of
    rounding, would make them certain.

    Example:
        >>> found = paired([0.1, 0.2, 0.3])
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (0.2, -0.048, 0.448)
    """
    mean = statistics.fmean(differences)
    count, deviation = len(differences), spread(differences)
    if count > 1 and not any(differences):
        return Difference(mean=0.0, method=Method.same, count=count)
    if deviation is None or deviation <= DIGITS * abs(mean):
        return Difference(mean=mean, method=Method.point, count=count)
    return _with_interval(mean, deviation / math.sqrt(count), count - 1, Method.paired, count)


def unpaired(candidate: Sequence[float], reference: Sequence[float]) -> Difference:
    """Return the difference of the means with its interval by Welch's t.

    Without one if a group has one value, or if neither has a spread but that of rounding. The degrees of freedom are
    Welch's and Satterthwaite's.
    """
    mean = statistics.fmean(candidate) - statistics.fmean(reference)
    count, fewest = len(candidate) + len(reference), min(len(candidate), len(reference))
    if fewest > 1 and len({*candidate, *reference}) == 1:  # whose means may differ in rounding
        return Difference(mean=0.0, method=Method.same, count=count)
    if fewest < 2:
        return Difference(mean=mean, method=Method.point, count=count)
    parts = [statistics.variance(each) / len(each) for each in (candidate, reference)]
    total = sum(parts)
    if math.sqrt(total) <= DIGITS * abs(mean):
        return Difference(mean=mean, method=Method.point, count=count)
    shares = [part / total for part in parts]  # not their squares, which may underflow
    degrees = 1 / sum(share**2 / (len(each) - 1) for share, each in zip(shares, (candidate, reference), strict=True))
    return _with_interval(mean, math.sqrt(total), degrees, Method.welch, count)


def _with_interval(mean: float, error: float, degrees: float, method: Method, count: int) -> Difference:
    reach = error * float(_special().stdtrit(degrees, (1 + CONFIDENCE) / 2))
    return Difference(
        mean=mean,
        method=method,
        count=count,
        standard_error=error,
        degrees=degrees,
        low=mean - reach,
        high=mean + reach,
    )


def equivalence_p(difference: Difference, margin: float) -> float | None:
    """Return the p value of two one-sided tests: how well the difference is shown to lie within the margin, either way.

    Small is equivalent: it is the larger of the two p values of "lower than -margin" and "higher than margin".

    Returns:
        None where there is no test.

    Example:
        >>> round(equivalence_p(paired([0.1, 0.2, 0.3]), 0.5), 4)
        0.0175
    """
    if difference.standard_error is None:
        return None
    return max(_above(difference, -margin), _above(_mirrored(difference), -margin))


def equivalence_interval(difference: Difference) -> tuple[float, float] | None:
    """Return the 90% interval: two one-sided tests at 5% show equivalence where the whole of it is within the margin.

    Returns:
        None where there is no test.

    Example:
        >>> low, high = equivalence_interval(paired([0.1, 0.2, 0.3]))
        >>> round(low, 3), round(high, 3)
        (0.031, 0.369)
    """
    if difference.standard_error is None:
        return None
    reach = difference.standard_error * float(_special().stdtrit(difference.degrees, 1 - SIGNIFICANCE))
    return difference.mean - reach, difference.mean + reach


def line(difference: Difference, margin: float, *, higher_is_better: bool) -> Line:
    """Say whether a candidate is no worse than a margin below the reference.

    It holds the line if the whole 95% confidence interval lies above it, and is worse if the whole interval lies below
    it. With an interval across the line neither is shown. Without a test the difference itself is judged. What lies
    on the line to four digits holds it: 0.75 - 0.745 is more than 0.005 in floating point.
    """
    benefit = difference if higher_is_better else _mirrored(difference)
    low = benefit.mean if benefit.low is None else benefit.low
    high = benefit.mean if benefit.high is None else benefit.high
    if low >= -margin or math.isclose(low, -margin, rel_tol=DIGITS):
        return Line.holds
    return Line.worse if high < -margin else Line.not_shown


def _mirrored(difference: Difference) -> Difference:
    low, high = difference.low, difference.high
    return Difference(
        mean=-difference.mean,
        method=difference.method,
        count=difference.count,
        standard_error=difference.standard_error,
        degrees=difference.degrees,
        low=None if high is None else -high,
        high=None if low is None else -low,
    )


def _above(difference: Difference, bound: float) -> float:
    """Return the p value against: the true difference is no higher than the bound."""
    distance = difference.mean - bound
    assert difference.standard_error is not None
    return float(_special().stdtr(difference.degrees, -distance / difference.standard_error))


def _special() -> Any:
    try:
        from scipy import special
    except ImportError as error:
        raise UnsupportedError("Comparing runs needs scipy, which is not installed: pip install scipy.") from error
    return special
