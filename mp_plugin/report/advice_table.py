"""Advice on number formats for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from mp_plugin.report.words import printable, shown_name
from mp_plugin.telemetry.advice_words import percent, power
from mp_plugin.telemetry.advise import JUDGED, UNKNOWN, Advice, FormatAdvice, LayerAdvice
from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.format_fit import FormatFit
from mp_plugin.telemetry.tolerances import Tolerances

LISTED = 12
"""Rows without `show_all`: what fits on a screen."""
LISTED_SAMPLES = 3

LEGEND = (
    "Share of the non-zero values that are flushed or lose digits; ok: tolerated; over: overflow. Before the arrow "
    "without a scale, behind it with the best one, for fp16 backward the loss scale; no arrow: the same."
)
BROKEN = "inf: NaN or Inf came from there; ?: nothing but NaN or Inf, from elsewhere."


def advice_view(advice: Advice, *, show_all: bool = False) -> RenderableType:
    """Return what `mp-plugin advise` prints: the summary, a table, and what the run cannot tell.

    Args:
        advice: on a run.
        show_all: whether the table has every layer, in the order of the model; else the worst ones, those first.
    """
    rows = list(advice.layers) if show_all else sorted(advice.layers, key=_fitness)[:LISTED]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("layer", overflow="fold", min_width=8)
    for name in ("", "largest", *JUDGED, "use"):
        table.add_column(name, no_wrap=True)
    for each in rows:
        cells = (_cell(each, name, advice.tolerances) for name in JUDGED)
        largest = f"{each.histogram.stats.amax:.1e}" if each.histogram.samples else "-"
        direction = "fwd" if each.direction is Direction.forward else "bwd"
        table.add_row(Text(_shown(each.layer)), direction, largest, *cells, Text(each.cheapest, style="bold"))
    parts: list[RenderableType] = [Text(printable(advice.summary), style="bold"), "", table]
    if more := len(advice.layers) - len(rows):
        parts.append(Text(f"and {more:,} more rows: --all", style="dim"))
    broken = [BROKEN] * any(not each.is_known or each.histogram.broke_at is not None for each in rows)
    parts += ["", Text(" ".join([LEGEND, *broken]), style="dim"), *_worst_samples(advice)]
    return Group(*parts, *(Text(limit, style="dim") for limit in advice.limits))


def _fitness(row: LayerAdvice) -> tuple[int, float]:
    """Return what sorts the worst rows first: dear formats, then much that fp16 would lose."""
    return -[*JUDGED, UNKNOWN, "fp32"].index(row.cheapest), -_lost(row.formats["fp16"].used)


def _cell(row: LayerAdvice, name: str, tolerances: Tolerances) -> Text:
    found = row.formats[name]
    if not row.is_known:
        return Text("?", style="dim")
    if row.histogram.broke_at is not None:
        return Text("inf", style="red")
    scaled = found.used if name == "fp16" and row.direction is Direction.backward else found.scaled
    words = dict.fromkeys(_word(fit, tolerances) for fit in (found.plain, scaled))
    return Text("→".join(words), style="green" if found.fits else "red")


def _word(fit: FormatFit, tolerances: Tolerances) -> str:
    if tolerances.accept(fit):
        return "ok"
    return "over" if fit.overflow.high > tolerances.overflow else percent(_lost(fit))


def _lost(fit: FormatFit) -> float:
    return min(fit.overflow.high + fit.flushed.high + fit.subnormal.high, 1.0)


def _worst_samples(advice: Advice) -> list[Text]:
    """Tell of layers that one step would spoil in the format that all steps together allow."""
    spoiled = []
    for each in advice.layers:
        chosen = each.formats.get(each.cheapest)
        if chosen is not None and chosen.worst_flushed > advice.tolerances.flushed:
            spoiled.append((each, chosen))
    spoiled.sort(key=lambda pair: -pair[1].worst_flushed)
    lines = [Text(_spoiled(each, chosen)) for each, chosen in spoiled[:LISTED_SAMPLES]]
    if more := len(spoiled) - len(lines):
        lines.append(Text(f"and {more:,} more such layers"))
    return lines


def _spoiled(row: LayerAdvice, chosen: FormatAdvice) -> str:
    scale = f" at scale {power(chosen.used.scale)}" if chosen.used.scale != 1 else ""
    share = percent(chosen.worst_flushed)
    layer = _shown(row.layer)
    return f"In step {chosen.worst_step:,} {row.cheapest}{scale} would flush {share} of {layer} {row.direction.value}."


def _shown(layer: str) -> str:
    """Return a layer's name as a cell holds it; the root, which has none, as such."""
    return shown_name(layer) or "(root)"
