"""Predictions on disk, example by example."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from {{cookiecutter.package_name}}.whole_file import whole_file

#: Examples that one process collects before it writes; a row group of the file.
ROWS = 4096


class PredictionFile(Callback):
    """Write the columns that `test_step` or `predict_step` returns to a parquet file, as they come.

    The column `index` is the example's position in the split, on any number of processes: these deal the examples out
    like cards, fill up with repeats, which are dropped here, and each writes its own part; the first one joins them.

    Args:
        path: the file; it appears as a whole at the end.
        class_names: written beside the column `prediction` as `class`, if the data have names for their classes.
    """

    def __init__(self, path: str | Path, class_names: Sequence[str] | None = None) -> None:
        self.path, self.class_names = Path(path), class_names
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._seen = 0

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._writer, self._waiting, self._seen = None, [], 0

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take a batch's columns, if there are any."""
        loader: Any = trainer.test_dataloaders if trainer.testing else trainer.predict_dataloaders
        if isinstance(outputs, dict) and outputs:
            self._add(columns_of(outputs, batch, self.class_names), len(loader.dataset), trainer)
        if not trainer.testing and trainer.received_sigterm:  # Lightning's loop for predictions is the one that goes on
            raise SIGTERMException

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rest, and move the file into place."""
        self._write()
        if self._writer is not None:
            self._writer.close()
        trainer.strategy.barrier()
        if trainer.is_global_zero and self._writer is not None:
            parts = [self._part(rank) for rank in range(trainer.world_size)]
            join(parts, self.path)
        trainer.strategy.barrier()

    on_predict_start = on_test_start
    on_predict_batch_end = on_test_batch_end
    on_predict_end = on_test_end

    def _add(self, columns: dict[str, pa.Array], total: int, trainer: Trainer) -> None:
        rows = len(next(iter(columns.values())))
        index = trainer.global_rank + trainer.world_size * torch.arange(self._seen, self._seen + rows)
        self._seen += rows
        table = pa.table({"index": index.numpy(), **columns}).slice(0, int((index < total).sum()))
        self._waiting.append(table)
        if self._writer is None:
            part = self._part(trainer.global_rank)
            part.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(part, table.schema)
        # The same number of batches in each process, so that the parts' row groups belong together.
        if len(self._waiting) * rows >= ROWS:
            self._write()

    def _write(self) -> None:
        if self._writer is not None and self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting = []

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f".{self.path.name}.{rank}")


def columns_of(outputs: dict[str, Any], batch: Any, class_names: Sequence[str] | None) -> dict[str, pa.Array]:
    """Columns of the file from what a step returned.

    Args:
        outputs: equally long tensors; anything else is left out.
        batch: for a user's own files, inputs with the examples' names.
        class_names: by class number.
    """
    columns = {name: array(values) for name, values in outputs.items() if isinstance(values, Tensor)}
    names = batch[1] if isinstance(batch, list | tuple) and len(batch) == 2 else None
    if isinstance(names, list | tuple) and names and isinstance(names[0], str):
        columns = {"name": pa.array(names, pa.string()), **columns}
    if class_names is not None and "prediction" in outputs:
        classes = [str(class_names[number]) for number in outputs["prediction"].tolist()]
        columns["class"] = pa.array(classes, pa.string())
    return columns


def array(values: Tensor) -> pa.Array:
    """A tensor of shape [batch] or [batch, ...] as numbers or lists of numbers; half precision becomes single."""
    plain = values.detach().cpu()
    if plain.is_floating_point() and plain.dtype != torch.float64:
        plain = plain.float()
    if plain.ndim == 1:
        return pa.array(plain.numpy())
    flat = pa.array(plain.flatten().numpy())
    width = plain[0].numel()
    return pa.ListArray.from_arrays(torch.arange(0, len(flat) + 1, max(1, width)).to(torch.int32).numpy(), flat)


def join(parts: Sequence[Path], path: Path) -> None:
    """Bring the parts of all processes into one file, ordered by index, a row group at a time; the parts go."""
    if len(parts) == 1:
        with whole_file(path) as partial:
            parts[0].replace(partial)
        return
    readers = [pq.ParquetFile(part) for part in parts]
    with whole_file(path) as partial, pq.ParquetWriter(partial, readers[0].schema_arrow) as writer:
        for number in range(max(reader.num_row_groups for reader in readers)):
            groups = [reader.read_row_group(number) for reader in readers if number < reader.num_row_groups]
            writer.write_table(pa.concat_tables(groups).sort_by("index"))
    for reader, part in zip(readers, parts, strict=True):
        reader.close()
        part.unlink()


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a prediction file, read a row group at a time."""
    with pq.ParquetFile(path) as reader:
        for batch in reader.iter_batches(batch_size=ROWS):
            yield from batch.to_pylist()
