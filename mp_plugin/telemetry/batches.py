"""The batches of incidents on disk, each with what it takes to run it again."""

import logging
import os
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from mp_plugin.random_state import RandomState
from mp_plugin.telemetry.plain import to_plain

log = logging.getLogger(__name__)

FILE_VERSION = 1
"""What a file means; a release that changes that counts it up."""


class BatchFolder:
    """Save batches below `telemetry/batches/`, so that `torch.load(weights_only=True)` reads them.

    A file appears when it is complete. Whatever goes wrong never stops a run: it is told once, and nothing more is
    saved.

    Args:
        directory: of the run; the folders below it are created by the first batch.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = Path(directory) / "telemetry" / "batches"
        self._is_broken = False

    def save(
        self,
        batch: Any,
        *,
        batch_idx: int,
        step: int,
        rank: int,
        random_state: RandomState | None,
        plugin_state: dict[str, Any],
    ) -> str | None:
        """Save a batch, beside what another run has left there. Copies from the device, a sync.

        Args:
            batch: what `training_step` was given.
            batch_idx: its index in the epoch.
            step: optimizer steps tried before this one.
            rank: whose batch it is.
            random_state: of the process when the step began; None if that is not known.
            plugin_state: the plugin's `state_dict()`.

        Returns:
            The file's name relative to `telemetry/`, for the incident's line; None if nothing was saved.
        """
        if self._is_broken:
            return None
        file = self._unused(f"step-{step:06d}-rank{rank}")
        temporary = file.with_suffix(".tmp")
        try:
            plain_batch, not_saved = to_plain(batch, "batch")
            content = {
                "version": FILE_VERSION,
                "step": step,
                "batch_idx": batch_idx,
                "rank": rank,
                "batch": plain_batch,
                "random_state": None if random_state is None else random_state.state_dict(),
                "plugin_state": to_plain(plugin_state, "plugin_state")[0],
                "not_saved": not_saved,
            }
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                torch.save(content, temporary)
                temporary.replace(file)
            finally:
                temporary.unlink(missing_ok=True)
        except Exception as error:  # a batch can be anything, and a run must not end because it cannot be saved
            self._is_broken = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("The batch of step %d cannot be saved (%s); no more batches of this run are.", step, reason)
            return None
        return file.relative_to(self.path.parent).as_posix()

    def _unused(self, name: str) -> Path:
        names = chain([name], (f"{name}-{number}" for number in count(2)))
        return next(file for each in names if not (file := self.path / f"{each}.pt").exists())
