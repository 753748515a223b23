"""What every benchmark writes down beside its figures: the machine, the versions, the load and the command."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]


def circumstances() -> dict[str, Any]:
    """Return what a reader needs to judge a figure; call it before the measurement, for the load of others."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "lightning", "mp-plugin")},
    }


def write(name: str, result: dict[str, Any]) -> None:
    """Write a result to `results/<name>.cpu.json`."""
    path = FOLDER / "results" / f"{name}.cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
