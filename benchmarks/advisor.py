"""What the advisor predicts from exponent histograms, beside what real casts to fp16, bf16, e4m3 and e5m2 lose.

Random tensors, and activations and gradients of two small trainings in fp32. Overflow is counted before the cast, as
torch's e4m3 saturates without a trace; what is flushed or subnormal after it. The table is in Markdown, as in
docs/advisor.md: predicted / observed, in per cent of the values that are not zero, all tensors of a row together.

    python benchmarks/advisor.py
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from helpers.harness import circumstances, write
from helpers.real_casts import DTYPES, Lost, lost
from helpers.recorded_tensors import random_tensors, recorded_tensors
from helpers.trainings import Training, be_quiet
from torch import Tensor

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.format_fit import FormatFit, Share, best_scale, format_fit
from mp_plugin.telemetry.stats_row import gradient_ranges

RANDOM = ("normal", "heavy-tailed", "log-normal")
TRAININGS = ("digits", "text")
SHOWN = ("fp16", "e4m3", "e5m2")
"""In the table: bf16 loses nothing of any of them."""
COLUMNS = (
    ("plain", "overflow"),
    ("plain", "flushed"),
    ("plain", "subnormal"),
    ("best", "flushed"),
    ("best", "subnormal"),
)


@dataclass(frozen=True)
class Pair:
    """A prediction and the truth, for one tensor in one format at one scale."""

    source: str
    name: str
    scaled: str
    num: int
    predicted: FormatFit
    observed: Lost


def sources() -> Iterator[tuple[str, list[Tensor]]]:
    """Yield what the tensors are, and the tensors."""
    for kind in RANDOM:
        yield f"random, {kind}", random_tensors(kind)
    for name in TRAININGS:
        for kind, tensors in recorded_tensors(Training(name, steps=100)).items():
            yield f"{name}, {kind}", tensors


def pairs() -> Iterator[Pair]:
    """Yield a pair for every tensor, format and scale."""
    for source, tensors in sources():
        for values in tensors:
            found = gradient_ranges([("x", values)])["x"]
            num = int((values != 0).sum())
            for name in DTYPES if num else ():
                number_format = FORMATS[name]
                scales = {"plain": 1.0, "best": best_scale(found.exponents, found.amax, number_format)}
                for scaled, scale in scales.items():
                    predicted = format_fit(found.exponents, found.amax, number_format, scale=scale)
                    yield Pair(source, name, scaled, num, predicted, lost(values, name, scale))


def is_right(pair: Pair, field: str) -> bool:
    """Whether the truth is within the bounds, but for the rounding of a share in double precision."""
    low, high = getattr(pair.predicted, field)
    return bool(low - 1e-12 <= getattr(pair.observed, field) <= high + 1e-12)


def together(chosen: Iterable[Pair], field: str) -> tuple[Share, float]:
    """Return prediction and truth for the values of several tensors."""
    chosen = list(chosen)
    total = sum(each.num for each in chosen)
    low, high = (sum(each.num * getattr(each.predicted, field)[side] for each in chosen) / total for side in (0, 1))
    return Share(low, high), sum(each.num * getattr(each.observed, field) for each in chosen) / total


def main() -> None:
    be_quiet()
    around = circumstances()
    everything = list(pairs())
    rows: list[dict[str, Any]] = []
    print("| tensors | format | overflow | flushed | subnormal | scaled: flushed | scaled: subnormal |")
    print("|---|---|---|---|---|---|---|")
    for source in dict.fromkeys(each.source for each in everything):
        for name in DTYPES:
            here = [each for each in everything if (each.source, each.name) == (source, name)]
            cells = {
                f"{scaled} {field}": together((each for each in here if each.scaled == scaled), field)
                for scaled, field in COLUMNS
            }
            rows.append({"tensors": source, "format": name, **cells})
            if name in SHOWN:
                print(f"| {source} | {name} | {' | '.join(_cell(*each) for each in cells.values())} |")
    told = {field: _told(everything, field) for field in ("overflow", "flushed", "subnormal")}
    for field, each in told.items():
        print(f"{field}: {each['right']:,} of {each['of']:,} within the bounds, {each['exact']:,} told exactly")
    write("advisor", {"circumstances": around, "told": told, "rows": rows})


def _told(everything: list[Pair], field: str) -> dict[str, int]:
    return {
        "of": len(everything),
        "right": sum(is_right(each, field) for each in everything),
        "exact": sum(getattr(each.predicted, field).is_exact for each in everything),
    }


def _cell(predicted: Share, observed: float) -> str:
    low, high = (f"{100 * bound:.2f}" for bound in predicted)
    return f"{low if low == high else f'{low} to {high}'} / {100 * observed:.2f}"


if __name__ == "__main__":
    main()
