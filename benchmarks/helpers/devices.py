"""The device that a benchmark runs on: choose it, wait for it, and say what it is.

As a script it only says whether there is such a device, with the options of a benchmark.
"""

import argparse
import platform
import re
from pathlib import Path

import torch


def parser_of(about: str | None) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that runs on every device: `--device` and `--quick`, and what it is about."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models, few rounds: does it run? Writes no result")
    return parser


def check_device(device: str) -> None:
    """Leave with one sentence where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            f"--device cuda needs a GPU, and torch {torch.__version__} finds none here; accepted: --device cpu."
        )


def synchronize(device: str) -> None:
    """Wait until the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def name_of(device: str) -> str:
    """Return what the device calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else processor()


def slug(device: str) -> str:
    """Return how files name the device: `cpu`, or the name of the GPU in lower case with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name_of(device).lower()).strip("-") if device == "cuda" else "cpu"


def processor() -> str:
    """Return the name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def allocated_bytes(device: str) -> int | None:
    """Return the device memory that tensors hold now; None where nobody counts."""
    return torch.cuda.memory_allocated() if device == "cuda" else None


def peak_bytes(device: str) -> int | None:
    """Return the most that tensors held since `forget_peak`; None where nobody counts."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def forget_peak(device: str) -> None:
    """Start to look for a new peak."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


if __name__ == "__main__":
    check_device(parser_of(__doc__).parse_args().device)
