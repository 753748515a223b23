"""What a comparison says of a precision, in one sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from mp_plugin.compare.cost import Cost, Ratio
from mp_plugin.compare.metrics import Metric
from mp_plugin.compare.statistics import CONFIDENCE, SIGNIFICANCE, Difference, Line, Method
from mp_plugin.report.verdict import Severity

MINUS = "\N{MINUS SIGN}"
NEARLY_ONE = 0.05
"""Ratios this near to 1 are told as the same."""


class Kind(str, Enum):
    """What is shown of a group's metric."""

    reference = "reference"
    equivalent = "equivalent"
    worse = "worse"
    better = "better"
    unclear = "unclear"
    """Neither equivalent nor different."""
    same = "same"
    """Every run has the result of the reference."""
    untested = "untested"
    """There are too few runs for a test, or the differences have no spread."""
    broken = "broken"
    """A run ended with a metric that is NaN or infinite."""
    empty = "empty"
    """No run finished."""


SEVERITIES = {
    Kind.reference: Severity.good,
    Kind.equivalent: Severity.good,
    Kind.better: Severity.good,
    Kind.same: Severity.good,
    Kind.unclear: Severity.watch,
    Kind.untested: Severity.watch,
    Kind.worse: Severity.bad,
    Kind.broken: Severity.bad,
    Kind.empty: Severity.bad,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The verdict on one precision."""

    kind: Kind
    sentence: str

    @property
    def severity(self) -> Severity:
        """How much it should alarm."""
        return SEVERITIES[self.kind]


def kind_of(difference: Difference, p: float | None, metric: Metric, margin: float) -> Kind:
    """Say what is shown: equivalent if both one-sided tests say so, else different if the interval is off zero."""
    if difference.method is Method.same:
        return Kind.same
    if p is None or difference.low is None or difference.high is None:
        return Kind.untested
    if p < SIGNIFICANCE:
        return Kind.equivalent
    if difference.low <= 0 <= difference.high:
        return Kind.unclear
    return Kind.better if (difference.mean > 0) == metric.higher_is_better else Kind.worse


def metric_words(
    kind: Kind, difference: Difference, p: float | None, metric: Metric, margin: float, reference: str
) -> str:
    """Return what is shown of the metric, in words."""
    within = f"within {amount(margin, metric)}"
    size = amount(abs(difference.mean), metric)
    if kind is Kind.equivalent:
        return f"equivalent to {reference} {within} ({p_words(p)})"
    if kind is Kind.same:
        return f"the same {metric.name} as {reference} in every run, so that there is nothing to test"
    if kind is Kind.untested:
        apart = f"{size} {_direction(difference.mean, metric)} than {reference}"
        found = apart if difference.mean else f"the same as {reference}"
        if difference.count == 1:
            return f"{found} in one pair of seeds; a test needs 2 seeds or more"
        return f"{found}, untested; a test needs 2 runs or more of each, and differences that have a spread"
    if kind is Kind.unclear:
        found = f"{amount(difference.mean, metric, signed=True)}, {interval(difference, metric)}"
        return f"not shown to be equivalent to {reference} {within} ({p_words(p)}): {found}"
    assert difference.low is not None
    assert difference.high is not None
    is_beyond = min(abs(difference.low), abs(difference.high)) > margin
    limit = f"more than the margin of {amount(margin, metric)}" if is_beyond else f"not shown to be {within}"
    return f"{kind.value} than {reference} by {size} ({interval(difference, metric)}), {limit}"


def cost_words(cost: Cost) -> list[str]:
    """Return what was saved, in a few words each."""
    words = []
    if cost.speed is not None:
        words.append(speed_words(cost.speed))
    if cost.memory is not None:
        is_same = abs(cost.memory.middle - 1) < NEARLY_ONE
        words.append("the same memory" if is_same else f"{ratio_words(cost.memory.middle)} memory")
    if cost.energy is not None:
        words.append(f"{ratio_words(cost.energy.middle)} energy")
    return words


def speed_words(ratio: Ratio) -> str:
    """Return a ratio of speeds as a reader would put it.

    Example:
        >>> speed_words(Ratio(middle=2.94, low=2.8, high=3.1, pairs=5))
        '2.9× faster'
        >>> speed_words(Ratio(middle=0.5, low=0.4, high=0.6, pairs=5))
        '2.0× slower'
        >>> speed_words(Ratio(middle=1.2, low=0.8, high=1.6, pairs=5))
        'speed not told apart (0.80× to 1.6×)'
    """
    if ratio.pairs > 1 and ratio.low < 1 < ratio.high:
        apart = max(ratio.high, 1 / ratio.low) - 1
        return (
            "as fast"
            if apart < NEARLY_ONE
            else (f"speed not told apart ({ratio_words(ratio.low)} to {ratio_words(ratio.high)})")
        )
    if abs(ratio.middle - 1) < NEARLY_ONE:
        return "as fast"
    return f"{ratio_words(ratio.middle)} faster" if ratio.middle > 1 else f"{ratio_words(1 / ratio.middle)} slower"


def ratio_words(ratio: float) -> str:
    """Return a ratio with two digits.

    Example:
        >>> ratio_words(2.94), ratio_words(0.538), ratio_words(12.3)
        ('2.9×', '0.54×', '12×')
    """
    digits = 0 if ratio >= 9.95 else 1 if ratio >= 0.995 else 2
    return f"{ratio:,.{digits}f}×"


def line_words(line: Line, difference: Difference | None, margin: float, metric: Metric, reference: str) -> str:
    """Return how a group stands to the line of `--fail-if-worse`."""
    bound = (
        f"{amount(margin, metric)} below {reference}"
        if metric.higher_is_better
        else (f"{amount(margin, metric)} above {reference}")
    )
    untested = difference is not None and difference.low is None
    by_number = " by the number alone, without a test" if untested else ""
    if line is Line.holds:
        return f"holds the line of {bound}{by_number}"
    if line is Line.worse:
        return f"worse than the line of {bound}{by_number}"
    return f"not shown to hold the line of {bound}"


def amount(value: float, metric: Metric, *, signed: bool = False) -> str:
    """Return a difference in the unit of a metric, shares in points.

    Example:
        >>> acc = Metric(name="test/acc", higher_is_better=True, is_share=True)
        >>> amount(0.005, acc), amount(0.01, acc), amount(-0.0123, acc, signed=True)
        ('0.5 points', '1 point', '−1.23 points')
    """
    (text,) = amounts([value], metric, signed=signed)
    if not metric.is_share:
        return text
    return f"{text} point" if text.lstrip(f"+{MINUS}") == "1" else f"{text} points"


def amounts(values: Sequence[float], metric: Metric, *, signed: bool = False) -> list[str]:
    """Return differences that stand side by side, without their unit: three digits of the largest one.

    Example:
        >>> acc = Metric(name="test/acc", higher_is_better=True, is_share=True)
        >>> amounts([-0.00092, 0.00112], acc, signed=True)
        ['−0.092', '+0.112']
        >>> amounts([-0.0212, -0.0188], acc, signed=True)
        ['−2.12', '−1.88']
    """
    scaled = [100 * value if metric.is_share else value for value in values]
    largest = max(map(abs, scaled))
    decimals = min(12, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0
    found = []
    for value in scaled:
        text = f"{value:{'+' if signed else ''},.{decimals}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        found.append("0" if text in ("+0", "-0") else text.replace("-", MINUS))
    return found


def interval(difference: Difference, metric: Metric) -> str:
    """Return the confidence interval of a difference, as candidate minus reference."""
    assert difference.low is not None
    assert difference.high is not None
    low, high = amounts([difference.low, difference.high], metric, signed=True)
    return f"{CONFIDENCE:.0%} CI {low} to {high}"


def p_words(p: float | None) -> str:
    """Return a p value with two digits.

    Example:
        >>> p_words(0.0123), p_words(0.00002), p_words(0.43)
        ('p = 0.012', 'p < 0.001', 'p = 0.43')
    """
    if p is None:
        return "no p value"
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _direction(difference: float, metric: Metric) -> str:
    if difference == 0:
        return "better or worse"
    return "better" if (difference > 0) == metric.higher_is_better else "worse"
