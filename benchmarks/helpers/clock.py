"""The time of each step, from the start of a batch to its end."""

import time
from typing import Any

import lightning.pytorch as pl


class Clock(pl.Callback):
    """The seconds of each step after the warm-up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up = warm_up
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, training: Any, outputs: Any, batch: Any, step: int) -> None:
        if step >= self.warm_up:
            self.seconds.append(time.perf_counter() - self._start)
