"""The end-of-fit table."""

from typing import Any

from rich.markup import escape
from rich.table import Table

LISTED_PARAMETERS = 5
"""An overflow usually reaches every parameter above it: the few most frequent tell as much as all of them."""


def summary_table(summary: dict[str, Any]) -> Table:
    """Lay out a run's summary, as `AdaptivePrecision.summary()` returns it, as a rich table."""
    table = Table(title="Precision summary", title_justify="left", show_header=False, expand=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("precision", summary["precision"])
    table.add_row("optimizer steps", f"{summary['steps']:,}")
    table.add_row("  effective", f"{summary['effective_steps']:,}")
    if summary["retried_steps"]:
        table.add_row("  of these retried", f"{summary['retried_steps']:,}")
    skipped = summary["skipped_steps"]
    table.add_row("  skipped", f"[yellow]{skipped:,}[/]" if skipped else "0")
    scale = summary["loss_scale"]
    if scale is not None:
        table.add_row("loss scale", f"{scale['now']:,.15g} (min {scale['min']:,.15g}, max {scale['max']:,.15g})")
    incidents = summary["incidents"]
    table.add_row("incidents", f"{incidents['total']:,}")
    by_parameter = list(incidents["by_parameter"].items())
    # A line that says "and 1 more" could as well name it.
    listed = LISTED_PARAMETERS if len(by_parameter) > LISTED_PARAMETERS + 1 else len(by_parameter)
    for name, count in by_parameter[:listed]:
        table.add_row(f"  {escape(name)}", f"{count:,}")
    if listed < len(by_parameter):
        table.add_row(f"  and {len(by_parameter) - listed:,} more parameters", "")
    return table
