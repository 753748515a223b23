"""A run never writes into the directory of another."""

import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class RefuseExistingRun(Callback):
    """Claim the run's directory before Hydra writes into it.

    Hydra turns exceptions of callbacks into warnings, hence SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the run's own subdirectory, the mark of a run; only one process can.

        Raises:
            SystemExit: if the directory already holds a run.
        """
        # The other processes of a multi-device run share the directory that the first one claimed.
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            return
        run_dir = Path(config.hydra.run.dir)
        mark = run_dir / (config.hydra.output_subdir or ".hydra")
        _claim(mark, f"hydra.run.dir={run_dir}")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the directory that the runs of a sweep share.

        Raises:
            SystemExit: if the directory exists.
        """
        sweep_dir = Path(config.hydra.sweep.dir)
        _claim(sweep_dir, f"hydra.sweep.dir={sweep_dir}")


def _claim(directory: Path, setting: str) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(directory)
    except FileExistsError:
        raise SystemExit(
            f"{setting} already holds a run, and runs are never overwritten: choose a new directory, or none."
        ) from None
