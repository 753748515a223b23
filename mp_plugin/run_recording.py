"""What a fit leaves behind of its samples: files, curves in the trackers, and what the run says of itself."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import import_module
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from mp_plugin.environment import environment
from mp_plugin.layer_metrics import TrackedLayers
from mp_plugin.run_directory import run_directory
from mp_plugin.scaling.verdict import gather
from mp_plugin.telemetry.layer_sample import LayerSample
from mp_plugin.telemetry.run_info import RunInfo
from mp_plugin.telemetry.write_samples import StatsFiles

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision

log = logging.getLogger(__name__)

SECONDS_BETWEEN_INFOS = 30.0
"""`run.json` is as old as that at most while samples are taken; in the first minute, as half of the run."""


class RunRecording:
    """Write down the samples of a fit and how it goes; the first rank writes, trouble is told once.

    Where nobody asked for samples and the trainer logs nothing, nothing is written, nor sampled. All ranks together.

    Args:
        trainer: that fits.
        plugin: whose samples and summary.
    """

    def __init__(self, trainer: "pl.Trainer", plugin: "AdaptivePrecision") -> None:
        self.run = _now()
        """Tells the sessions that write to one directory apart: when this one began, UTC."""
        # Some give a logger to the first rank only, and samples are taken by all.
        self.is_wanted = any(gather(bool(trainer.loggers) or plugin.telemetry.asks_for_samples))
        self._trainer = trainer
        self._plugin = plugin
        self._tracked = TrackedLayers(plugin.telemetry.layer_metrics)
        self._disconnect_tracked: Callable[[], None] = _do_nothing
        self._directory: str | None = None
        self._files: StatsFiles | None = None
        self._is_broken = False
        self._began = self._newest_info = time.monotonic()

    def start(self) -> None:
        """Begin, before the first step; all ranks together."""
        if not self.is_wanted:
            return
        self._disconnect_tracked = self._tracked.connect(self._trainer)
        self._directory = run_directory(self._trainer, self._plugin.telemetry)
        if self._directory is None or not self._trainer.is_global_zero:
            return
        if self._plugin.sampler.is_on:
            # Here, and not with the first sample, whose time is counted; without pyarrow that one tells of it.
            with suppress(ImportError):
                import_module("pyarrow.parquet")
            self._files = StatsFiles(self._directory, run=self.run)
        self._save("running")

    def take(self, samples: list[LayerSample], tracker_step: int) -> None:
        """Take the samples of a step, and where Lightning logs the metrics of this step."""
        self._tracked.log(self._trainer, samples, tracker_step)
        if self._files is not None:
            self._files.append(samples)
        now = time.monotonic()
        if now - self._newest_info >= min(SECONDS_BETWEEN_INFOS, (now - self._began) / 2):
            self._save("running")

    def end(self, status: str) -> None:
        """Complete the files.

        Args:
            status: `finished`, or `stopped` by an exception.
        """
        self._disconnect_tracked()
        if self._files is not None:
            self._files.flush()
        self._save(status)

    def _save(self, status: str) -> None:
        if self._directory is None or self._is_broken or not self._trainer.is_global_zero:
            return
        self._newest_info = time.monotonic()
        try:
            self._info(status).save(self._directory)
        except Exception as error:  # a run must not end because it cannot be described
            self._is_broken = True
            log.warning("telemetry/run.json cannot be written to %s (%s).", self._directory, error)

    def _info(self, status: str) -> RunInfo:
        trainer, plugin = self._trainer, self._plugin
        strategy = trainer.strategy
        return RunInfo(
            run=self.run,
            status=status,
            updated=_now(),
            precision=plugin.mode.name,
            compute_dtype=plugin.mode.compute,
            environment=environment(strategy.root_device, ranks=trainer.world_size, strategy=type(strategy).__name__),
            telemetry=asdict(plugin.telemetry),
            summary=plugin.summary(),
        )


def _do_nothing() -> None:
    pass


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
