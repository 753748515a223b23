"""The end-of-fit table."""

from collections import Counter
from typing import Any

from rich.markup import escape
from rich.table import Table

LISTED_ORIGINS = 3
LISTED_LAYERS = 5
LISTED_PARAMETERS = 5
"""An overflow usually reaches every parameter above it: the few most frequent tell as much as all of them."""

TELLING_SECONDS = 10.0
"""The first sample of a run is taken at any cost; of a shorter training its share tells nothing."""

WHY_UNTRACED = {
    "repeat": "of a known origin",
    "budget": "beyond max_traced",
    "off": "beyond max_traced",
    "no closure": "in steps that cannot be run again",
    "not reproduced": "finite when run again",
    "seen late": "seen when their batch was over",
}
"""What the evidence of an untraced incident says, in words for the table."""


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
    if summary.get("gradients") is not None:
        table.add_row("gradients", summary["gradients"])
    scale = summary["loss_scale"]
    if scale is not None:
        table.add_row("loss scale", f"{scale['now']:,.15g} (min {scale['min']:,.15g}, max {scale['max']:,.15g})")
    if summary.get("scale_window") is not None:
        table.add_row("  that fit sampled gradients", _window(summary["scale_window"]))
    fp32_layers = summary.get("fp32_layers", {})
    if fp32_layers:
        table.add_row("layers in fp32", f"{len(fp32_layers):,}")
    for name, why in list(fp32_layers.items())[:LISTED_LAYERS]:
        table.add_row(f"  {escape(name)}", escape(why))
    if len(fp32_layers) > LISTED_LAYERS:
        table.add_row(f"  and {len(fp32_layers) - LISTED_LAYERS:,} more", "")
    telemetry = summary.get("telemetry")
    if telemetry is not None and telemetry["taken"]:
        table.add_row("samples of layers", _samples(telemetry))
    incidents = summary["incidents"]
    table.add_row("incidents", f"{incidents['total']:,}")
    if incidents["by_cause"]:
        table.add_row("  by cause", ", ".join(f"{cause} {count:,}" for cause, count in incidents["by_cause"].items()))
    if incidents["untraced"]:
        table.add_row("  traced", _traced(incidents))
    for origin, count in list(incidents["origins"].items())[:LISTED_ORIGINS]:
        table.add_row(f"  origin of {count:,}", escape(origin))
    by_parameter = list(incidents["by_parameter"].items())
    # A line that says "and 1 more" could as well name it.
    listed = LISTED_PARAMETERS if len(by_parameter) > LISTED_PARAMETERS + 1 else len(by_parameter)
    for name, count in by_parameter[:listed]:
        table.add_row(f"  {escape(name)}", f"{count:,}")
    if listed < len(by_parameter):
        table.add_row(f"  and {len(by_parameter) - listed:,} more parameters", "")
    return table


def in_seconds(seconds: float) -> str:
    """Return a time in words.

    Example:
        >>> [in_seconds(each) for each in (0.0123, 1.0, 12.34, 1204.0)]
        ['0.012 s', '1.0 s', '12.3 s', '1,204.0 s']
    """
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds:.2g} s"


def _samples(telemetry: dict[str, Any]) -> str:
    taken = f"{telemetry['taken']:,} in {in_seconds(telemetry['seconds'])}"
    if telemetry["training_seconds"] >= TELLING_SECONDS:
        taken += f", {telemetry['share']:.2%} of the training time"
    return taken + (
        f"; {telemetry['left_out']:,} left out to stay within max_overhead" if telemetry["left_out"] else ""
    )


def _window(window: dict[str, Any]) -> str:
    if window["lowest"] <= window["highest"]:
        return f"{window['lowest']:,.15g} to {window['highest']:,.15g}"
    names = window["emptied_by"]
    more = f" and {len(names) - LISTED_LAYERS:,} more" if len(names) > LISTED_LAYERS else ""
    return f"[yellow]none[/]: {escape(', '.join(names[:LISTED_LAYERS]))}{more} and the others need different ones"


def _traced(incidents: dict[str, Any]) -> str:
    """Say how many incidents were traced, and why the others were not."""
    reasons: Counter[str] = Counter()
    for why, count in incidents["untraced"].items():
        reasons[WHY_UNTRACED.get(why, "that could not be traced")] += count
    listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    return f"{incidents['traced']:,} of {incidents['total']:,}: {listed}"
