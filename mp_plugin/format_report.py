"""Look at what each layer of a run really runs in, and write it down."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from mp_plugin.all_ranks import AllRanks
from mp_plugin.fallback.precision_map import FILE_NAME, PrecisionMap, precision_map
from mp_plugin.run_directory import run_directory
from mp_plugin.take_census import take_census
from mp_plugin.telemetry.census import NOT_BY_ITSELF, NOT_RUN, merged, write_census

if TYPE_CHECKING:
    from mp_plugin.precision import AdaptivePrecision

log = logging.getLogger(__name__)


class FormatReport:
    """Keep `precision_map.yaml` in the run's directory true: one forward pass more whenever the layers in FP32 change.

    The first look is after the first step. Where a step cannot be run again, the map says which layers were to be in
    FP32, and that nobody has looked. All ranks together; rank 0 writes. Trouble is only warned about.
    """

    def __init__(self, trainer: "pl.Trainer", plugin: "AdaptivePrecision") -> None:
        self._trainer = trainer
        self._plugin = plugin
        self._known: tuple[str, ...] | None = None
        self._all_ranks = AllRanks("What each layer runs in could not be observed")

    def look(self) -> None:
        """Call at the end of each step, while its batches are still held; free of charge if nothing has changed."""
        fallback, start = self._plugin.layer_fallback, self._plugin.start
        if fallback.names == self._known or start is None:
            return
        self._known = fallback.names
        missing: dict[str, list[str]] = {}
        censuses = self._all_ranks.each(lambda: take_census(start), missing) if start.can_run_again else []
        seen = [each for each in censuses if each is not None]
        self._plugin.census = merged(seen) if seen else None
        census = self._plugin.census
        formats = census.formats(start.module) if census is not None else {}
        observed = precision_map(start.module, formats, fallback.reasons, self._plugin.mode.name)
        self._plugin.precision_map = observed
        self._tell_of_idle(observed)
        directory = run_directory(self._trainer, self._plugin.telemetry)
        if directory is None or not self._trainer.is_global_zero:
            return
        if census is not None and self._plugin.telemetry.census:
            write_census(census, directory)
        path, given = Path(directory) / FILE_NAME, self._plugin.fallback.map
        if given is not None and path.resolve() == Path(given).resolve():
            return  # a user's own file, which says the same
        try:
            observed.save(path)
        except OSError as error:  # a run must not end because its map cannot be written
            log.warning("%s cannot be written to %s (%s).", FILE_NAME, directory, error)

    def _tell_of_idle(self, observed: PrecisionMap) -> None:
        islands = {name: observed.layers[name] for name in observed.islands}
        idle = [name for name, each in islands.items() if each.format in (NOT_RUN, NOT_BY_ITSELF)]
        if idle and self._trainer.is_global_zero:
            message = (
                "%s did not run in this step, so that having it in FP32 changes nothing: name what uses its weights."
            )
            log.warning(message, ", ".join(idle))
