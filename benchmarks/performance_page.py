"""Put the results into docs/performance.md: each table between its markers, and nothing else.

Needs nothing but Python. A result that is not there is said to be missing, with the command that would measure it.

    python benchmarks/performance_page.py
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from helpers.bytes_moved import FUSED_ADAMW, SETTINGS, Parts, total
from helpers.goals import GOALS
from helpers.tables import growth_tables, kernel_bandwidth_table, markdown, precisions_table, step_time_table

Result = dict[str, Any]
Results = dict[str, dict[str, Result]]
"""By the name of the benchmark, then by device: `cpu`, or the name of a GPU."""

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKED = re.compile(r"<!-- table: (?P<name>\w+) -->\n.*?<!-- end -->", re.DOTALL)
COMMANDS = {"cpu": "make bench", "gpu": "make bench-gpu"}

TABLES: dict[str, tuple[str, Callable[[Result], str | None]]] = {
    "step_time": ("step_time", step_time_table),
    "kernel_bandwidth": ("kernel_bandwidth", kernel_bandwidth_table),
    "growth_parameters": ("growth", lambda result: growth_tables(result).get("parameters")),
    "growth_tensors": ("growth", lambda result: growth_tables(result).get("tensors")),
    "growth_ranks": ("growth", lambda result: growth_tables(result).get("ranks")),
    "precisions": ("precisions", precisions_table),
}
"""By the name in a marker: the benchmark, and what makes a table of its result, if it has one."""
CPU_ONLY = {"growth_ranks"}


def load(folder: Path = RESULTS) -> Results:
    """Read the results that the tables are made of."""
    found: Results = {}
    for name in sorted({benchmark for benchmark, _ in TABLES.values()}):
        for path in sorted(folder.glob(f"{name}.*.json")):
            found.setdefault(name, {})[path.name.split(".")[1]] = json.loads(path.read_text())
    return found


def render(page: str, results: Results) -> str:
    """Return the page with its tables made anew.

    Raises:
        ValueError: for a marker that names no table.
    """
    return MARKED.sub(
        lambda found: f"<!-- table: {found['name']} -->\n\n{_part(found['name'], results)}\n\n<!-- end -->", page
    )


def _part(name: str, results: Results) -> str:
    if name == "bytes":
        return _bytes_table()
    if name == "goals":
        return _goals_table(results)
    if name not in TABLES:
        raise ValueError(f"There is no table {name!r}; accepted: {', '.join(['bytes', 'goals', *TABLES])}.")
    benchmark, make_table = TABLES[name]
    by_device = results.get(benchmark, {})
    parts = []
    for kind in ("cpu",) if name in CPU_ONLY else ("cpu", "gpu"):
        measured = {slug: result for slug, result in by_device.items() if _kind(slug) == kind}
        tables = {slug: table for slug, result in measured.items() if (table := make_table(result)) is not None}
        parts += [f"{_heading(by_device[slug])}\n\n{table}" for slug, table in tables.items()]
        if not tables:
            parts.append(_missing(kind))
    return "\n\n".join(parts)


def _kind(slug: str) -> str:
    return "cpu" if slug == "cpu" else "gpu"


def _heading(result: Result) -> str:
    versions = ", ".join(f"{name} {result['versions'][name]}" for name in ("torch", "lightning"))
    cores = f", {result['cores']} cores" if result["device"] == result["processor"] else ""
    return f"`{result['command']}` on {result['device']}{cores}, with {versions}:"


def _missing(kind: str) -> str:
    return f"On a {kind.upper()}: not measured yet: `{COMMANDS[kind]}`."


def _bytes_table() -> str:
    headings = ["precision", "clipping", "optimizer", "stock", "bytes", "ours", "bytes", "route"]
    rows = []
    for each in SETTINGS:
        stock = ("refused", "-") if each.stock is None else (_names(each.stock), str(total(each.stock)))
        clips = "yes" if each.clips else "no"
        ours = (_names(each.ours), str(total(each.ours)), each.route)
        rows.append([each.precision, clips, each.optimizer, *stock, *ours])
    own = (
        f"Fused AdamW itself moves {FUSED_ADAMW}: it reads gradient, weight and two moments, and writes three of them."
    )
    return f"{markdown(headings, rows)}\n\n{own}"


def _names(parts: Parts) -> str:
    return " + ".join(part.name for part in parts) or "nothing"


def _goals_table(results: Results) -> str:
    return markdown(
        ["goal", "bound", "device", "measured", "met"], [row for goal in GOALS for row in _goal_rows(goal, results)]
    )


def _goal_rows(goal: Any, results: Results) -> Iterator[list[str]]:
    by_device = results.get(goal.benchmark, {})
    for kind, is_judged in (("gpu", goal.on_gpu), ("cpu", goal.on_cpu)):
        if not is_judged:
            continue
        measured = {slug: result for slug, result in by_device.items() if _kind(slug) == kind}
        for result in measured.values():
            yield [goal.what, goal.bound_text(), result["device"], *goal.judge(result)]
        if not measured:
            yield [goal.what, goal.bound_text(), kind.upper(), f"not measured yet: `{COMMANDS[kind]}`", "-"]


def main() -> None:
    """Write the page."""
    PAGE.write_text(render(PAGE.read_text(), load()))


if __name__ == "__main__":
    main()
