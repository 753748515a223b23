"""What benchmarks share: turns, spreads, a plain table, and what is written down beside the figures."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from helpers.devices import name_of, processor, slug

from mp_plugin import __version__

FOLDER = Path(__file__).parents[1]


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Return what a reader needs to judge a figure; call it before the measurement, for the load of others."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "platform": platform.platform(),
        "device": name_of(device),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {**versions("torch", "lightning", "triton"), "mp-plugin": __version__},
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Return the version of each package; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def write(name: str, result: dict[str, Any], device: str = "cpu") -> None:
    """Write a result to `results/<name>.<device>.json`."""
    path = FOLDER / "results" / f"{name}.{slug(device)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each round and the names in its order, which rotates: nobody is always first."""
    for index in range(rounds):
        first = index % len(names)
        yield index, [*names[first:], *names[:first]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def show_spread(values: Sequence[float], digits: int = 3) -> str:
    """Return `median (quartile to quartile)`."""
    low, middle, high = (f"{spread(values)[key]:.{digits}f}" for key in ("lower_quartile", "median", "upper_quartile"))
    return f"{middle} ({low} to {high})"


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table in plain text, numbers as they come; needs no package."""
    widths = [max(len(row[index]) for row in (headings, *rows)) for index in range(len(headings))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (headings, *rows)]
    print(title, lines[0], "-" * max(map(len, lines)), *lines[1:], sep="\n", end="\n\n", flush=True)
