"""A comparison as rows of text, for the terminal and the page alike."""

from mp_plugin.compare.comparison import Comparison, GroupResult
from mp_plugin.compare.cost import NOT_MEASURED, Cost, Ratio
from mp_plugin.compare.judge import MetricResult
from mp_plugin.compare.likeness import Likeness
from mp_plugin.compare.verdict import amount, amounts, p_words, ratio_words
from mp_plugin.report.words import percent
from mp_plugin.telemetry.table import in_seconds

NOTHING = "-"
KILOBYTE = 1000


def metric_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return what is known of the metrics: names, and a cell for each group."""
    rows = []
    for place, first in enumerate(comparison.groups[0].results):
        results = [group.results[place] for group in comparison.groups]
        rows.append((first.metric.name, [mean_words(each) for each in results]))
        if len(results) > 1:
            unit = ", points" if first.metric.is_share else ""
            name = f"  difference from {comparison.reference}{unit}"
            rows.append((name, [difference_words(each) for each in results]))
        if place == 0 and len(results) > 1:
            rows.append((f"  equivalent within {amount(comparison.margin, comparison.metric)}", _tests(comparison)))
    if any(group.likeness for group in comparison.groups):
        cells = [likeness_words(group.likeness) for group in comparison.groups]
        if cells[0] != NOTHING:  # the reference is compared with itself under another seed
            cells[0] += ", own seeds"
        rows.append((f"same predictions as {comparison.reference}", cells))
    return rows


def cost_rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return what is known of the cost: names, and a cell for each group."""
    groups = comparison.groups
    rows = [
        ("step, median", [_milliseconds(each.cost.step_ms) for each in groups]),
        ("samples per second", [_speed(each.cost) for each in groups]),
        (
            "training time",
            [in_seconds(each.cost.train_seconds) if each.cost.train_seconds else NOTHING for each in groups],
        ),
        (
            "waiting for data",
            [NOTHING if each.cost.waiting_share is None else percent(each.cost.waiting_share) for each in groups],
        ),
        ("peak memory", [_memory(each.cost) for each in groups]),
        ("energy", [energy_words(each.cost) for each in groups]),
    ]
    if comparison.price_per_hour is not None:
        rows.append(("money per run", [_money(each.cost) for each in groups]))
    rows.append(("incidents", [_count(each.incidents) for each in groups]))
    rows.append(("skipped steps", [_skipped(each) for each in groups]))
    rows.append(("layers in FP32", [_count(None if each.islands is None else len(each.islands)) for each in groups]))
    return rows


def mean_words(result: MetricResult) -> str:
    """Return a mean with its spread over seeds."""
    if result.mean is None:
        return "not finite" if result.values else NOTHING
    deviation = "" if result.deviation is None else f" ± {_digits(result.deviation, 2)}"
    return f"{_decimals(result.mean)}{deviation}"


def difference_words(result: MetricResult) -> str:
    """Return a difference from the reference with its interval, without its unit."""
    found = result.difference
    if found is None:
        return NOTHING
    if found.low is None or found.high is None:
        return amounts([found.mean], result.metric, signed=True)[0]
    mean, low, high = amounts([found.mean, found.low, found.high], result.metric, signed=True)
    return f"{mean} ({low} to {high})"


def likeness_words(likeness: Likeness | None) -> str:
    """Return how much alike predictions are."""
    if likeness is None:
        return NOTHING
    if not likeness.is_share:
        return f"{_digits(likeness.mean, 3)} apart"
    return f"{100 * likeness.mean:.4g}%{' of tokens' if likeness.of_tokens else ''}"


def energy_words(cost: Cost) -> str:
    """Return the energy of a run, or that it was not measured."""
    if cost.energy_joules is None:
        return NOT_MEASURED
    return _with(f"{_digits(cost.energy_joules / KILOBYTE, 3)} kJ", cost.energy)


def size_words(size: float) -> str:
    """Return a number of bytes.

    Example:
        >>> size_words(540_000_000), size_words(12_300_000_000)
        ('540 MB', '12.3 GB')
    """
    for unit in ("B", "kB", "MB"):
        if size < KILOBYTE:
            return f"{_digits(size, 3)} {unit}"
        size /= KILOBYTE
    return f"{_digits(size, 3)} GB"


def _tests(comparison: Comparison) -> list[str]:
    cells = []
    for place, group in enumerate(comparison.groups):
        cells.append(NOTHING if not place else f"{group.verdict.kind.value}, {p_words(group.p)}")
    return cells


def _speed(cost: Cost) -> str:
    if cost.samples_per_second is None:
        return NOTHING
    return _with(_digits(cost.samples_per_second, 4), cost.speed)


def _memory(cost: Cost) -> str:
    if cost.peak_memory_bytes is None:
        return NOTHING
    return _with(size_words(cost.peak_memory_bytes), cost.memory)


def _money(cost: Cost) -> str:
    return NOTHING if cost.money is None else _digits(cost.money, 3)


def _skipped(group: GroupResult) -> str:
    if group.skipped_steps is None:
        return NOTHING
    return f"{group.skipped_steps:,}" + (f" of {group.steps:,}" if group.steps else "")


def _count(number: int | None) -> str:
    return NOTHING if number is None else f"{number:,}"


def _with(text: str, ratio: Ratio | None) -> str:
    """Add the multiple of the reference, but to the reference itself."""
    return text if ratio is None or ratio.low == ratio.high == 1 else f"{text} ({ratio_words(ratio.middle)})"


def _milliseconds(value: float | None) -> str:
    return NOTHING if value is None else f"{_digits(value, 3)} ms"


def _decimals(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 100 else f"{value:,.6g}"


def _digits(value: float, digits: int) -> str:
    text = f"{value:,.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text
