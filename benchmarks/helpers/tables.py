"""Results as tables in Markdown: what a benchmark prints, and what docs/performance.md shows of its file.

Pure functions from what `results/*.json` holds; they need neither torch nor a device.
"""

import statistics
from collections.abc import Sequence
from typing import Any

Result = dict[str, Any]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns line up.

    Example:
        >>> print(markdown(["a", "long"], [["1", "2"]]))
        | a | long |
        |---|------|
        | 1 | 2    |
    """
    widths = [max(len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]

    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |"

    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([line(headings), f"|{rule}|", *map(line, rows)])


def step_time_table(result: Result) -> str:
    """Return step times beside stock Lightning's, by telemetry."""
    telemetry = ("none", "light", "full")
    headings = ["model", "precision", "optimizer", "clipping", "stock, ms", *(f"{name} ÷ stock" for name in telemetry)]
    rows = []
    for cell in result["cells"]:
        differs = cell["optimizer"] != cell["stock_optimizer"]
        rows.append(
            [
                f"{cell['model']}, {cell['size']}",
                cell["precision"],
                cell["optimizer"] + (f" (stock: {cell['stock_optimizer']})" if differs else ""),
                "yes" if cell["clips"] else "no",
                milliseconds(cell["seconds"]["stock"]),
                *(ratio(cell["spread"][name], digits=3) for name in telemetry),
            ]
        )
    return markdown(headings, rows)


def kernel_bandwidth_table(result: Result) -> str:
    """Return how near `grad_stats` comes to a copy, and what torch's own operations take beside it."""
    others = {"counting": "grad_stats, counting flushed"}
    others |= {name: name for name in ("check and unscale", "norm 2", "norm inf")}
    headings = ["gradients", "dtype", "MB", "tensors", "grad_stats, ms", "share of copy", *(f"{o} ÷" for o in others)]
    with_launches = any("launches" in row for row in result["rows"])
    rows = []
    for row in result["rows"]:
        cells = [
            row["shapes"],
            row["dtype"],
            f"{row['bytes'] / 1e6:,.1f}",
            f"{row['tensors']:,}",
            milliseconds(row["seconds"]["grad_stats"]),
            share(row["share_of_copy"]["grad_stats"]),
            *(ratio(row["time_beside_grad_stats"][other]) for other in others.values()),
        ]
        if with_launches:
            launches = row["launches"]["grad_stats"]
            cells.append(f"{launches['kernels']} + {launches['copies']}")
        rows.append(cells)
    left_out = [f"{each['shapes']} in {each['dtype']}" for each in result["left_out"]]
    remark = f"\n\nLeft out for want of memory: {', '.join(left_out)}." if left_out else ""
    return markdown([*headings, "kernels + copies"] if with_launches else headings, rows) + remark


def growth_tables(result: Result) -> dict[str, str]:
    """Return how a step's own work grows: with parameters, with tensors, and in bytes with ranks."""
    tables = {name: _own_work(result[name]) for name in ("parameters", "tensors")}
    if result["ranks"]:
        tables["ranks"] = _bytes_sent(result["ranks"])
    return tables


def precisions_table(result: Result) -> str:
    """Return what each precision takes, and whether it is 3 times as fast as FP32 at half the memory."""
    rows = result["rows"]
    medians = {_what(row): (statistics.median(row["seconds"]), row["peak_bytes"]) for row in rows}
    headings = ["model", "precision", "step, ms", "per second", "peak, MB", "joules each"]
    cells = []
    for row in rows:
        seconds, peak = medians[_what(row)]
        fp32, tf32 = (medians.get(_what({**row, "precision": other})) for other in ("fp32", "tf32"))
        joules = row["joules_per_item"]
        is_beside = fp32 is not None and row["precision"] != "fp32"
        cells.append(
            [
                f"{row['model']}, {row['size']}, batch of {row['batch_size']}",
                row["precision"],
                milliseconds(row["seconds"]),
                f"{row['items'] / seconds:,.0f} {row['unit']}",
                f"{peak / 1e6:,.0f}",
                "not measured" if joules is None else f"{joules:.3g}",
                *(f"{other[0] / seconds:.2f}" if other else "-" for other in (fp32, tf32)),
                f"{peak / fp32[1]:.2f}" if fp32 else "-",
                ("yes" if fp32[0] >= 3 * seconds and 2 * peak <= fp32[1] else "no") if is_beside else "-",
            ]
        )
    headings += ["speed ÷ fp32", "speed ÷ tf32", "memory ÷ fp32", "3 × at half"]
    return markdown(headings, cells)


def _what(row: Result) -> tuple[Any, ...]:
    return row["model"], row["size"], row["batch_size"], row["precision"]


def _own_work(rows: Sequence[Result]) -> str:
    kinds = ("floor", "stock", "ours", "ours, fused")
    headings = ["parameters", "tensors", *(f"{kind}, ms" for kind in kinds), "ours ÷ stock", "ours, fused ÷ stock"]
    return markdown(
        headings,
        [
            [
                f"{row['values']:,}",
                f"{row['tensors']:,}",
                *(milliseconds(row["seconds"][kind]) for kind in kinds),
                *(ratio(row["beside_stock"][kind]) for kind in kinds[2:]),
            ]
            for row in rows
        ],
    )


def _bytes_sent(rows: Sequence[Result]) -> str:
    headings = [
        "ranks",
        "gradients, bytes",
        "stock: collectives",
        "bytes",
        "ours: collectives",
        "bytes",
        "added, bytes",
    ]
    cells = []
    for row in rows:
        stock, ours = (row[plugin]["calls"] for plugin in ("stock", "ours"))
        numbers = (row["ours"]["gradients"], len(stock), sum(stock), len(ours), sum(ours), sum(ours) - sum(stock))
        cells.append([str(row["ranks"]), *(f"{number:,}" for number in numbers)])
    return markdown(headings, cells)


def milliseconds(seconds: Sequence[float]) -> str:
    """Return the median, to three digits."""
    value = 1000 * statistics.median(seconds)
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}"


def ratio(spread: Result, digits: int = 2) -> str:
    """Return a median and its quartiles."""
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} ({low} to {high})"


def share(spread: Result) -> str:
    """Return a median and its quartiles as percentages."""
    low, middle, high = (f"{100 * spread[key]:.0f}" for key in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} % ({low} to {high})"
