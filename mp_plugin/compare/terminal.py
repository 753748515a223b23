"""A comparison in the terminal: the verdicts, the metrics, the cost, and what to know besides."""

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mp_plugin.compare.comparison import Comparison
from mp_plugin.compare.table import cost_rows, metric_rows
from mp_plugin.report.terminal import COLOURS
from mp_plugin.report.words import printable, shown_name
from mp_plugin.telemetry.panel import WIDEST_TEXT

LISTED_UNFINISHED = 10


def comparison_view(comparison: Comparison) -> RenderableType:
    """Lay out a comparison for a terminal. Names of groups and metrics are text, never markup."""
    verdicts = [
        Text(printable(each.verdict.sentence), style=f"bold {COLOURS[each.verdict.severity]}")
        for each in comparison.groups[1:] or comparison.groups
    ]
    labels = [f"{shown_name(each.group.label)}\n{_runs(len(each.group.finished))}" for each in comparison.groups]
    parts: list[RenderableType] = [
        Group(*verdicts),
        _table(
            "Metrics: mean ± standard deviation over runs, difference with its 95% CI", labels, metric_rows(comparison)
        ),
        _table("Cost: medians over runs, and as a multiple of the reference", labels, cost_rows(comparison)),
    ]
    unfinished = [run for run in comparison.runs if not run.is_finished]
    if unfinished:
        lines = [f"{shown_name(str(run.directory), WIDEST_TEXT)}: {printable(run.status)}" for run in unfinished]
        more = len(lines) - LISTED_UNFINISHED
        lines[LISTED_UNFINISHED:] = [f"and {more:,} more"] if more > 0 else []
        parts.append(Group(Text("Left out, as they did not finish", style="bold yellow"), *map(Text, lines)))
    if comparison.notes:
        parts.append(Group(Text("Notes", style="bold"), *(Text(f"- {printable(each)}") for each in comparison.notes)))
    return Group(*(each if place == 0 else Padding(each, (1, 0, 0, 0)) for place, each in enumerate(parts)))


def _table(title: str, labels: list[str], rows: list[tuple[str, list[str]]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", overflow="fold")
    for label in labels:
        table.add_column(Text(label), justify="right", overflow="fold")
    for name, cells in rows:
        table.add_row(Text(printable(name)), *(Text(printable(each)) for each in cells))
    return table


def _runs(number: int) -> str:
    return f"{number} run{'' if number == 1 else 's'}"
