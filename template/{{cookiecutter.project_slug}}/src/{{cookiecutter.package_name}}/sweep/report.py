"""How a trial tells its sweep how it is doing, and hears whether to go on."""

import os
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

#: The environment variable with the number of the socket to the sweep.
SOCKET = "SWEEP_SOCKET"
#: Seconds that a process has to end itself before it is killed.
PATIENCE = 10.0


class ReportToSweep(Callback):
    """Report a metric at each validation, and stop the training when the sweep says so.

    The run then ends as any other: its best checkpoint is tested, and its files are whole. A trial whose sweep is
    gone ends itself, so that nothing goes on training unseen.

    Args:
        metric: name of a logged metric.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.num_validations = 0
        self.connection: Connection[Any, Any] | None = None
        self.answers: queue.Queue[bool] = queue.Queue()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take up the connection that the sweep left open for this process."""
        # The first of several processes talks for all; the others do not inherit the socket.
        if stage == "fit" and trainer.is_global_zero and self.connection is None:
            self.connection = Connection(int(os.environ[SOCKET]))
            threading.Thread(target=self._listen, args=(self.connection,), daemon=True).start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report, and wait for the answer, which comes at once.

        Raises:
            ValueError: if the run does not log the metric.
        """
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self.num_validations += 1
        logged = trainer.callback_metrics
        if self.metric not in logged:
            sentence = f"metric={self.metric} is not logged at validation; logged are {', '.join(sorted(logged))}."
            self._send({"unknown_metric": sentence})
            raise ValueError(sentence)
        self._send({"validation": self.num_validations, "value": float(logged[self.metric])})
        stop = self.answers.get() if self.connection is not None else False
        # All processes of a trial stop together.
        trainer.should_stop |= bool(trainer.strategy.broadcast(stop))

    def _send(self, message: dict[str, Any]) -> None:
        if self.connection is not None:
            self.connection.send(message)

    def _listen(self, connection: "Connection[Any, Any]") -> None:
        try:
            while True:
                self.answers.put(connection.recv())
        except (EOFError, OSError):
            self.answers.put(True)
            # The trial leads a process group of its own; this reaches its other ranks and workers, too.
            os.killpg(os.getpgrp(), signal.SIGTERM)
            # Lightning takes SIGTERM as a wish, to be granted at the end of a batch.
            time.sleep(PATIENCE)
            os.killpg(os.getpgrp(), signal.SIGKILL)
