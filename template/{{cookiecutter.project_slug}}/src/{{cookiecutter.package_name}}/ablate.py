"""Does lower precision cost accuracy here? The whole study in one command, from the project's root.

    python -m {{cookiecutter.package_name}}.ablate [precisions=fp32,bf16] [seeds=0,1,2] [OVERRIDE ...]

OVERRIDE is any that train.py takes. The study trains each precision with each seed, prints the comparison, and writes
compare.html beside the runs. By default precisions=fp32,bf16, with fp16 where there is a GPU, as a CPU computes in fp16
very slowly; and seeds=0,1,2,3,4. The other settings are those of `mp-plugin compare`: margin, metric, reference,
price_per_hour; and fail_if_worse=0.01, with which the exit status is 3 if a precision is worse than fp32 by more than
that, and 4 if it is not shown to be no worse.
"""

import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from mp_plugin.compare import build_comparison_page, compare_runs, comparison_view
from rich.console import Console

from {{cookiecutter.package_name}}.compare_at_end import PAGE, has_runs
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing

NUMBERS = ("margin", "fail_if_worse", "price_per_hour")
TEXTS = ("precisions", "seeds", "metric", "reference")


def main(arguments: Sequence[str]) -> int:
    """Run the study.

    Args:
        arguments: of the command line: this study's settings, and overrides of train.py.

    Returns:
        The exit status: that of the training if it failed, else that of the comparison.

    Raises:
        Refusal: before training, if a setting is not acceptable.
    """
    if "--help" in arguments or "-h" in arguments:
        print(__doc__)
        return 0
    with refusing(*BAD_REQUEST):
        own, overrides = split(arguments)
        numbers = {name: at_least_zero(name, own[name]) for name in NUMBERS if name in own}
        precisions = own.get("precisions", "fp32,bf16,fp16" if torch.cuda.is_available() else "fp32,bf16")
        if not {",", "("} & set(precisions):
            raise ValueError(f"precisions={precisions} names one precision; accepted: two or more, as in fp32,bf16.")
        seeds = own.get("seeds", "0,1,2,3,4")
        if len(set(seeds.split(","))) < len(seeds.split(",")):
            raise ValueError(f"seeds={seeds} names a seed twice, which would train the same twice: name each once.")
        if not Path("train.py").is_file() or not Path("conf/train.yaml").is_file():
            raise ValueError(f"There is no train.py with its conf/ in {Path.cwd()}: start this in the project's root.")
    directory = Path("outputs/ablations") / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    sweep = [f"precision={precisions}", f"seed={seeds}", f"hydra.sweep.dir={directory}"]
    # The comparison below has settings of its own.
    command = [sys.executable, "train.py", "-m", *sweep, "~hydra.callbacks.compare_at_end", *overrides]
    status = subprocess.call(command)
    if not has_runs(directory):  # refused before the first
        return status
    with refusing(*BAD_REQUEST):
        comparison = compare_runs(
            [directory],
            metric=own.get("metric"),
            reference=own.get("reference"),
            margin=numbers.get("margin"),
            fail_if_worse=numbers.get("fail_if_worse"),
            price_per_hour=numbers.get("price_per_hour"),
        )
        Console().print(comparison_view(comparison))
        (directory / PAGE).write_text(build_comparison_page(comparison), encoding="utf-8")
    print(f"Page: {directory / PAGE}")
    return status or comparison.exit_status


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Separate this study's settings from the overrides of train.py.

    Raises:
        ValueError: if one of them is given twice.
    """
    own: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in NUMBERS + TEXTS:
            overrides.append(argument)
        elif name in own:
            raise ValueError(f"{name} is given twice, as {own[name]} and as {value}: give it once.")
        else:
            own[name] = value
    return own, overrides


def at_least_zero(name: str, text: str) -> float:
    """Return a setting as a number.

    Raises:
        ValueError: if it is none, or negative.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={text} is not accepted; accepted: a number of at least 0, such as {name}=0.01.")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
