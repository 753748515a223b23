"""A csv log that outlives a kill."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import csv_logs

from {{cookiecutter.package_name}}.whole_file import whole_file


class CSVLogger(csv_logs.CSVLogger):
    """Lightning's logger, which removes the log that it finds in its directory; this one can keep it.

    It keeps the rows before the step at which a run goes on, as named by `go_on_from`.
    """

    _from_step: int | None = None

    def go_on_from(self, step: int) -> None:
        """Keep what was logged before a step; to be called before anything else."""
        self._from_step = step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file, made when it is first asked for."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = Writer(self.log_dir, self._from_step)
        return self._experiment


class Writer(csv_logs.ExperimentWriter):
    """Rows of metrics in a file that is never without those of before.

    Args:
        log_dir: where metrics.csv lies.
        from_step: keep the rows before this step; None for none.
    """

    def __init__(self, log_dir: str, from_step: int | None = None) -> None:
        path = Path(log_dir) / self.NAME_METRICS_FILE
        kept = [row for row in read_rows(path) if int(row["step"]) < from_step] if from_step is not None else []
        super().__init__(log_dir)
        if kept:
            self.metrics_keys = list(kept[0])
            write_rows(path, self.metrics_keys, kept)
        else:
            path.unlink(missing_ok=True)

    def _check_log_dir_exists(self) -> None:
        """Nothing to warn of: a run's directory is its own."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        write_rows(path, fieldnames, read_rows(path))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a csv file, without one that was cut off by a kill; none where there is no file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as stream:
        text = stream.read()
    whole = text[: text.rfind("\n") + 1]
    return list(csv.DictReader(whole.splitlines()))


def write_rows(path: Path, fieldnames: list[str], rows: list[dict[str, str]]) -> None:
    """Write a csv file as a whole."""
    with whole_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames)
        writer.writeheader()
        writer.writerows(rows)
