"""The advice on number formats, as the page lists it."""

from dataclasses import dataclass

from mp_plugin.errors import TelemetryError
from mp_plugin.report.words import percent
from mp_plugin.telemetry.advise import JUDGED, Advice, FormatAdvice, LayerAdvice, advise
from mp_plugin.telemetry.store import Run

LISTED = 600
"""Rows; a layer has one for each direction."""


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """One layer in one direction."""

    layer: str
    direction: str
    cheapest: str
    verdicts: tuple[tuple[bool, str], ...]
    """By format of `JUDGED`: whether it fits, and what would be lost."""


@dataclass(frozen=True, kw_only=True)
class PageAdvice:
    """What the page says of formats; without an advice, why there is none."""

    missing: str = ""
    advice: Advice | None = None
    rows: tuple[AdviceRow, ...] = ()
    strips: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """By direction, the cheapest format of each layer, in the order of the model."""


def page_advice(run: Run) -> PageAdvice:
    """Return the advice on a run."""
    try:
        advice = advise(run)
    except TelemetryError as error:
        return PageAdvice(missing=str(error))
    directions = dict.fromkeys(each.direction for each in advice.layers)
    return PageAdvice(
        advice=advice,
        rows=tuple(_row(each) for each in advice.layers[:LISTED]),
        strips=tuple(
            (direction.value, tuple(each.cheapest for each in advice.layers if each.direction is direction))
            for direction in directions
        ),
    )


def _row(layer: LayerAdvice) -> AdviceRow:
    verdicts = tuple((layer.formats[name].fits, _lost(layer.formats[name])) for name in JUDGED)
    return AdviceRow(layer=layer.layer, direction=layer.direction.value, cheapest=layer.cheapest, verdicts=verdicts)


def _lost(advice: FormatAdvice) -> str:
    used = advice.used
    shares = {"overflow": used.overflow.high, "flushed": used.flushed.high, "subnormal": used.subnormal.high}
    lost = [f"{percent(share)} {name}" for name, share in shares.items() if share]
    return ", ".join(lost) or "nothing lost"
