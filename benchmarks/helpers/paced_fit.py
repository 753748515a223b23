"""A training that runs a few steps at a time, so that several of them alternate in one process.

Each is a real `Trainer.fit` in a thread of its own, of which one runs at a time: it stands still between two batches,
until it is given a turn. So nothing is set up again between two turns, and what slows the machine down for a second
slows down all of them.
"""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from threading import Semaphore, Thread
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.devices import synchronize
from helpers.models import Model, loss
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

NO_END = 10**9


class PacedFit(pl.Callback):
    """Train in a thread, a turn at a time.

    Args:
        model: the network and its batch.
        plugin: the precision to train in.
        device: `cpu` or `cuda`.
        optimizer: options of AdamW.
        trainer: options of the trainer.
    """

    def __init__(
        self, model: Model, plugin: Any, *, device: str, optimizer: dict[str, Any], trainer: dict[str, Any]
    ) -> None:
        self.plugin, self.device = plugin, device
        self.training = Training(model, device, optimizer)
        self._trainer = pl.Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            plugins=[plugin],
            callbacks=[self],
            max_steps=NO_END,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            benchmark=device == "cuda",
            **trainer,
        )
        self._may_go, self._has_stopped = Semaphore(0), Semaphore(0)
        self._left, self._seconds = 0, 0.0
        self._within: AbstractContextManager[Any] = nullcontext()
        self._error: BaseException | None = None
        self._thread = Thread(target=self._fit, daemon=True)
        self._thread.start()
        self._wait()

    def run(self, steps: int, within: AbstractContextManager[Any] | None = None) -> float:
        """Train for some steps and return the seconds that they took, until the device was done with them.

        Args:
            steps: at least one.
            within: entered by the thread of the training for the time of the turn.
        """
        self._left, self._within = steps, within or nullcontext()
        self._may_go.release()
        self._wait()
        return self._seconds

    def finish(self) -> None:
        """End the training, with one more step."""
        self._trainer.should_stop = True
        self._left, self._within = 1, nullcontext()
        with contextlib.redirect_stdout(io.StringIO()):  # the summary of the plugin
            self._may_go.release()
            self._wait()
        self._thread.join()

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the training."""
        return self._trainer.optimizers[0]

    # In the thread.

    def on_train_batch_start(self, *_: Any) -> None:
        """Stand still where a turn is over: with the start of the next batch."""
        if self._left == 0:
            if self._trainer.global_step > 0:
                self._end_turn()
            self._has_stopped.release()
            self._may_go.acquire()
            self._within.__enter__()
            self._start = time.perf_counter()
        self._left -= 1

    def _end_turn(self) -> None:
        synchronize(self.device)
        self._seconds = time.perf_counter() - self._start
        self._within.__exit__(None, None, None)
        # The budget of samples is a share of the training time, which goes on with the next forward pass.
        if hasattr(self.plugin, "sampler"):
            self.plugin.sampler.clock.stop()

    def _fit(self) -> None:
        try:
            self._trainer.fit(self.training)
        except BaseException as error:
            self._error = error
        self._has_stopped.release()

    def _wait(self) -> None:
        self._has_stopped.acquire()
        if self._error is not None:
            raise self._error


class Training(pl.LightningModule):
    """A network that trains on one batch for ever."""

    def __init__(self, model: Model, device: str, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.net = model.build(device)
        self._batch = model.batch(device)
        self._options = optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return loss(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, **self._options)

    def train_dataloader(self) -> DataLoader[list[Tensor]]:
        return DataLoader(_Forever(self._batch), batch_size=None)


class _Forever(IterableDataset[list[Tensor]]):
    def __init__(self, batch: list[Tensor]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[list[Tensor]]:
        while True:
            yield self._batch


def be_quiet() -> None:
    """Say nothing and use one CPU thread from now on."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "mp_plugin"):
        logging.getLogger(name).setLevel(logging.ERROR)
