"""A run in the terminal: the verdict, its worst layers, its incidents, and what it was like."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mp_plugin.report.incident_groups import IncidentGroup, incident_groups
from mp_plugin.report.outcome_words import outcomes
from mp_plugin.report.run_facts import run_facts
from mp_plugin.report.verdict import Severity, verdict
from mp_plugin.report.words import counted, listed, percent, shown_name
from mp_plugin.report.worst_layers import TIGHT_BITS, WorstLayer, worst_layers
from mp_plugin.telemetry.events import Cause
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.panel import MEANING, WIDEST_TEXT
from mp_plugin.telemetry.store import Run

LISTED_LAYERS = 10
LISTED_ORIGINS = 10
LISTED_DAMAGED = 10

COLOURS = {Severity.good: "green", Severity.watch: "yellow", Severity.bad: "red"}

KINDS = {
    TensorKind.activation: "output",
    TensorKind.activation_gradient: "gradient",
    TensorKind.parameter_gradient: "weight grad",
}


def terminal_report(run: Run, *, now: datetime | None = None) -> RenderableType:
    """Lay out a run for a terminal, 80 columns or wider. Names of layers and files are text, never markup.

    Args:
        run: whatever is left of it.
        now: when it is looked at, with a time zone; None for the clock.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from rich.console import Console
        >>> from mp_plugin.telemetry.run_info import RunInfo
        >>> from mp_plugin.telemetry.store import open_run
        >>> with TemporaryDirectory() as directory:
        ...     RunInfo(run="2026-02-03T04:05:06+00:00", status="finished", updated="2026-02-03T05:05:06+00:00",
        ...         precision="bf16-mixed", compute_dtype="bf16", summary={"steps": 900}).save(directory)
        ...     Console(width=80).print(terminal_report(open_run(directory)))  # doctest: +ELLIPSIS
        bf16 fits: 900 steps, none skipped; without samples its headroom is not known.
        ...
          steps      900, none skipped
        ...
    """
    found = verdict(run, now=now)
    parts: list[RenderableType] = [Text(found.sentence, style=f"bold {COLOURS[found.severity]}")]
    layers = worst_layers(run, LISTED_LAYERS)
    if layers:
        parts.append(_layers(run, layers))
    groups = incident_groups(run.incidents)
    if groups:
        parts.append(_incidents(groups))
    parts.append(_facts(run))
    if run.damaged:
        parts.append(_damaged(run))
    return Group(*(each if place == 0 else Padding(each, (1, 0, 0, 0)) for place, each in enumerate(parts)))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)


# Layers.


def _layers(run: Run, layers: Sequence[WorstLayer]) -> Table:
    table = _table("Layers closest to the ends of the number format")
    table.add_column("layer", overflow="fold")
    table.add_column("values", no_wrap=True)
    for heading in ("headroom", "at step", "underflow"):
        table.add_column(heading, justify="right", no_wrap=True)
    has_broken = any(_broken(each) for each in layers)
    if has_broken:
        table.add_column("not finite", overflow="fold")
    for each in layers:
        cells = [
            Text(shown_name(each.layer)),
            Text(KINDS[each.kind]),
            Text(
                _headroom(each), style=_alarm(each.headroom_bits is not None and each.headroom_bits < TIGHT_BITS, each)
            ),
            Text(f"{each.headroom_step:,}" if each.is_at_risk and each.headroom_step is not None else "-"),
            Text(percent(each.underflow) if each.is_at_risk else "-", style=_alarm(each.vanishes, each)),
            Text(_broken(each), style="red"),
        ]
        table.add_row(*cells[: 5 + has_broken], style="" if each.is_at_risk else "dim")
    return table


def _alarm(is_wrong: bool, layer: WorstLayer) -> str:
    return "yellow" if is_wrong and layer.is_at_risk else ""


def _headroom(layer: WorstLayer) -> str:
    if not layer.is_at_risk:
        return f"in {layer.dtype}"
    return "-" if layer.headroom_bits is None else f"{layer.headroom_bits:,.1f} bits"


def _broken(layer: WorstLayer) -> str:
    counts = {"NaN": layer.nans, "Inf": layer.infs, "saturated": layer.saturated if layer.is_at_risk else 0}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


# Incidents.


def _incidents(groups: Sequence[IncidentGroup]) -> Table:
    table = _table("Incidents by origin")
    table.add_column("count", justify="right", no_wrap=True)
    table.add_column("steps", no_wrap=True)
    table.add_column("origin", overflow="fold", max_width=WIDEST_TEXT, ratio=2)
    table.add_column("what was done", overflow="fold", ratio=1)
    for group in groups[:LISTED_ORIGINS]:
        first, last = f"{group.first_step:,}", f"{group.last_step:,}"
        table.add_row(
            f"{len(group.incidents):,}",
            first if first == last else f"{first} to\n{last}",
            Text("\n".join(_origin(group))),
            Text("\n".join(outcomes(group))),
        )
    if len(groups) > LISTED_ORIGINS:
        rest = groups[LISTED_ORIGINS:]
        table.add_row(
            f"{sum(len(each.incidents) for each in rest):,}", "", f"of {counted(len(rest), 'origin')} more", ""
        )
    return table


def _origin(group: IncidentGroup) -> Iterator[str]:
    example = group.example
    if example.operator is None:
        yield f"{example.cause.value}: {example.kind} gradients in {listed(example.parameters)}"
        yield "origin not traced"
        return
    place = f" in {shown_name(example.layer)}" if example.layer else ""
    made = "met" if example.cause in (Cause.data, Cause.weights) else "made"
    operator = shown_name(example.operator.removesuffix(".default"))
    yield f"{example.cause.value}: {operator} {made} {example.kind}{place}"
    if example.location:
        yield shown_name(example.location, WIDEST_TEXT)
    yield shown_name(example.reason or MEANING[example.cause], 2 * WIDEST_TEXT)


# All else.


def _facts(run: Run) -> Table:
    table = Table(title="Run", title_justify="left", title_style="bold", box=None, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", max_width=WIDEST_TEXT)
    for name, lines in run_facts(run):
        table.add_row(name, Text("\n".join(lines)))
    return table


def _damaged(run: Run) -> Group:
    lines = [f"{shown_name(str(path), WIDEST_TEXT)}: {shown_name(why, 2 * WIDEST_TEXT)}" for path, why in run.damaged]
    more = len(lines) - LISTED_DAMAGED
    title = Text(f"{counted(len(lines), 'part')} of the record could not be read", style="bold yellow")
    return Group(title, *map(Text, lines[:LISTED_DAMAGED]), *[Text(f"and {more:,} more")] * (more > 0))
