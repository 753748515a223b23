"""The samples of a run, read from its Parquet parts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.stats_files import SCHEMA, SCHEMA_VERSION, VERSION_KEY

NEVER_NULL = tuple(
    name for name in SCHEMA.names if name not in ("smallest", "headroom_bits", "lowest_exponent", "exponent_counts")
)


class _LaterRelease(TelemetryError):
    """A part says more than this release understands."""


def read_samples(directory: Path) -> tuple[pa.Table, list[tuple[Path, str]]]:
    """Read all parts, in the order in which they were taken.

    Args:
        directory: that holds `part-*.parquet`; without one there are no samples.

    Returns:
        The rows, of a step that several sessions have sampled only those of the newest; and the parts that could not
        be read, each with the reason.

    Raises:
        TelemetryError: if no part can be read, and one is of a later release.
    """
    parts: list[pa.Table] = []
    damaged: list[tuple[Path, str]] = []
    later: list[str] = []
    with _thrifty():
        for path in sorted(directory.glob("part-*.parquet")):
            try:
                parts.append(_read_part(path))
            except _LaterRelease as error:
                later.append(f"{path} {error}")
                damaged.append((path, str(error)))
            except TelemetryError as error:
                damaged.append((path, str(error)))
            except Exception as error:  # what a damaged file makes of its reader is not ours to know
                reason = " ".join(str(error).split())[:200]
                damaged.append((path, f"cannot be read ({type(error).__name__}: {reason})"))
        if later and not parts:
            raise TelemetryError(f"{later[0]}.")
        return _in_order(_newest(pa.concat_tables([SCHEMA.empty_table(), *parts]))), damaged


@contextmanager
def _thrifty() -> Iterator[None]:
    """Have pyarrow ask the system for memory: its own allocator keeps as much again as the samples take."""
    usual = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(usual)


def _read_part(path: Path) -> pa.Table:
    if not path.is_file():  # to open a named pipe would wait for ever
        raise TelemetryError("is not a file")
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(VERSION_KEY, b"none").decode(errors="replace")
        if version.isdecimal() and int(version) > SCHEMA_VERSION:
            raise _LaterRelease(
                f"is of a later release of mp_plugin: it has schema version {version}; accepted: {SCHEMA_VERSION}"
            )
        if version != str(SCHEMA_VERSION):
            raise TelemetryError(f"has schema version {version}; accepted: {SCHEMA_VERSION}")
        if missing := [name for name in SCHEMA.names if name not in schema.names]:
            raise TelemetryError(f"lacks the columns {', '.join(missing)}")
        table = file.read(columns=SCHEMA.names).cast(SCHEMA)
    table.validate(full=True)
    if without := [name for name in NEVER_NULL if table[name].null_count]:
        raise TelemetryError(f"has rows without {', '.join(without)}")
    return table


def _newest(rows: pa.Table) -> pa.Table:
    """Leave out the rows of steps that a newer session has sampled too."""
    sessions = pc.unique(rows["run"]).sort()
    if len(sessions) < 2:
        return rows
    keys = pa.table({"step": rows["step"], "session": pc.index_in(rows["run"], sessions)})
    newest = keys.group_by("step").aggregate([("session", "max")])
    newest_of_row = newest["session_max"].take(pc.index_in(keys["step"], newest["step"].combine_chunks()))
    return rows.filter(pc.equal(keys["session"], newest_of_row))


def _in_order(rows: pa.Table) -> pa.Table:
    """Sort by step, if need be; in a step the rows stay as they were written."""
    steps = rows["step"].combine_chunks()
    if pc.all(pc.less_equal(steps[:-1], steps[1:])).as_py() in (True, None):
        return rows
    return rows.take(pc.sort_indices(steps))
