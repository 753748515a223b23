"""Where a run leaves its files."""

import logging

import lightning.pytorch as pl

from mp_plugin.config import Telemetry

log = logging.getLogger(__name__)


def run_directory(trainer: "pl.Trainer", telemetry: Telemetry) -> str | None:
    """Return the directory of a run, None where nothing is written: in a `fast_dev_run`, and far from this machine.

    All ranks together, as Lightning asks rank 0 for its log directory.
    """
    directory = telemetry.directory or trainer.log_dir or trainer.default_root_dir
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    if "://" in directory:
        log.warning("Telemetry cannot be written to %s; Telemetry.directory takes a local path.", directory)
        return None
    return directory
