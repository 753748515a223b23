"""Keep the samples of a run on disk, a Parquet part at a time."""

import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from mp_plugin.telemetry.layer_sample import LayerSample

log = logging.getLogger(__name__)

SECONDS_AT_RISK = 60.0
"""Of a run of 2 to 100 minutes: what a killed process loses at most."""
FIRST_SECONDS_AT_RISK = 2.0
"""Of a run that has just begun. Then it is half of the run, so that there is something to see from the start."""
SHARE_AT_RISK = 0.01
"""Of a longer run. The number of parts grows with the logarithm of its length then."""
ROWS_AT_RISK = 20_000
"""Rows that wait at most, as each takes a few kB of memory."""

_PART = re.compile(r"part-(\d+)\.parquet|\.part-(\d+)\.partial")
"""Complete, or reserved: hidden, as tools that read a folder read all files in it but those."""


class StatsFiles:
    """Write samples to `telemetry/stats/part-*.parquet`, a part at a time.

    A part appears when it is complete, and never in the place of another: sessions may share a directory, even at the
    same time. The first samples are written at once, those of the first two minutes within half of the run so far,
    later ones within a minute, or within the last hundredth of a longer run, as long as samples come regularly. Trouble
    with the disk, or a missing pyarrow, never stops a run: it is told once, and nothing more is kept.

    Args:
        directory: of the run; the folders below it are created by the first part.
        run: tells the sessions that write to one directory apart: the time when this one began.
        clock: seconds that only grow.

    Example:
        >>> StatsFiles("runs/7", run="2026-02-03T04:05:06.789+00:00").directory.as_posix()
        'runs/7/telemetry/stats'
    """

    def __init__(
        self, directory: str | os.PathLike[str], *, run: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.directory = Path(directory) / "telemetry" / "stats"
        self._run = run
        self._clock = clock
        self._began = self._appended = clock()
        self._flushed: float | None = None
        self._waiting: list[LayerSample] = []
        self._is_broken = False

    def append(self, samples: Sequence[LayerSample]) -> None:
        """Take samples of one step, and write what waits when it is time.

        Args:
            samples: in the order of the model.
        """
        if self._is_broken or not samples:
            return
        now = self._clock()
        self._waiting.extend(samples)
        if len(self._waiting) >= ROWS_AT_RISK or self._flushed is None or self._is_due(now, self._flushed):
            self.flush()
        self._appended = now

    def flush(self) -> None:
        """Write what waits as the next part; at the end of a run, and before whatever may end it."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        try:
            self._write(waiting)
        except Exception as error:  # a run must not end because its numbers cannot be kept
            self._is_broken = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("%s cannot be written (%s); samples are no longer recorded there.", self.directory, reason)
        self._flushed = self._clock()

    def _is_due(self, now: float, flushed: float) -> bool:
        """Whether what waits would be at risk too long if it waited for the next samples."""
        until_next, age = now - self._appended, now - self._began
        at_risk = max(FIRST_SECONDS_AT_RISK, min(SECONDS_AT_RISK, age / 2), SHARE_AT_RISK * age)
        return now + until_next - flushed >= at_risk

    def _write(self, samples: Sequence[LayerSample]) -> None:
        from pyarrow import parquet  # here, as only a run with samples needs it

        from mp_plugin.telemetry.stats_files import rows_of

        self.directory.mkdir(parents=True, exist_ok=True)
        partial, part = self._reserve()
        try:
            # Checksums, as a flipped bit may leave a number that looks like any other.
            parquet.write_table(rows_of(samples, self._run), partial, compression="zstd", write_page_checksum=True)
            partial.replace(part)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def _reserve(self) -> tuple[Path, Path]:
        """Create the file that becomes the next part; returns it, and its later name, which nobody else has."""
        names = map(_PART.fullmatch, os.listdir(self.directory))
        number = max((int(found[1] or found[2]) for found in names if found), default=-1) + 1
        while True:
            partial = self.directory / f".part-{number:05d}.partial"
            part = self.directory / f"part-{number:05d}.parquet"
            number += 1
            try:
                partial.touch(exist_ok=False)
            except FileExistsError:
                continue
            # Another session may have completed its part since the directory was listed. From here on it cannot.
            if not part.exists():
                return partial, part
            partial.unlink()
