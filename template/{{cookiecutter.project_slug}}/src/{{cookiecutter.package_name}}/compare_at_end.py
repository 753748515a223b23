"""What a sweep over precisions found, at its end."""

from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from mp_plugin.compare import build_comparison_page, compare_runs, comparison_view, precisions_below
from mp_plugin.errors import MpPluginError
from omegaconf import DictConfig
from rich.console import Console

PAGE = "compare.html"

#: Directory of the sweep that is under way in this process.
_begun: list[Path] = []


class CompareAtEnd(Callback):
    """Compare the runs of a sweep that has two precisions or more: a table here, and a page in the sweep's directory.

    The runs are over by then, so nothing that goes wrong here may count against them.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the sweep: Hydra does not call `on_multirun_end` where a job has failed."""
        _begun.append(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the page."""
        _begun.clear()
        compare(Path(config.hydra.sweep.dir))


def compare_unfinished_sweep() -> None:
    """Compare the runs of a sweep in which a job has failed; to be called once the others are over."""
    while _begun:
        if has_runs(directory := _begun.pop()):
            compare(directory)


def has_runs(directory: Path) -> bool:
    """Whether a sweep came as far as its first run."""
    return directory.is_dir() and any(each.is_dir() for each in directory.iterdir())


def compare(directory: Path) -> None:
    """Compare the runs in a sweep's directory, if it is over precisions."""
    try:
        if len(precisions_below(directory)) < 2:
            return
        comparison = compare_runs([directory])
        Console().print(comparison_view(comparison))
        (directory / PAGE).write_text(build_comparison_page(comparison), encoding="utf-8")
    except (MpPluginError, OSError) as error:
        print(f"The runs are not compared: {error}")
        return
    print(f"Page: {directory / PAGE}")
