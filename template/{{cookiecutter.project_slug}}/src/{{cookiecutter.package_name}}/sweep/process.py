"""A trial as a process of its own."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from {{cookiecutter.package_name}}.errors import FULL_ERROR
from {{cookiecutter.package_name}}.sweep.report import PATIENCE, SOCKET


class TrialProcess:
    """A running trial: it writes into its folder, and talks to the sweep over a socket.

    Args:
        command: what to execute.
        folder: gets stdout.log and stderr.log.
        variables: added to the environment.
    """

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self.started = time.monotonic()
        folder.mkdir(parents=True)
        self.connection, theirs = Pipe()
        environment = {**os.environ, **variables, SOCKET: str(theirs.fileno())}
        if not FULL_ERROR:  # the sweep's own Hydra set it; the trial is to end in a sentence
            environment["HYDRA_FULL_ERROR"] = "0"
        with open(folder / "stdout.log", "wb") as out, open(folder / "stderr.log", "wb") as err, theirs:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=environment,
                pass_fds=[theirs.fileno()],
                # Ctrl-C goes to the sweep alone, which ends its trials and writes down what became of them.
                start_new_session=True,
            )

    def messages(self) -> list[dict[str, Any]]:
        """What the trial has said since the last call."""
        said = []
        try:
            while self.connection.poll():
                said.append(self.connection.recv())
        except (EOFError, OSError):  # it has ended
            pass
        return said

    def answer(self, stop: bool) -> None:
        """Tell a trial that has reported whether to stop."""
        with suppress(OSError):  # if it has ended in the meantime, its exit status tells the rest
            self.connection.send(stop)

    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def seconds(self) -> float:
        """How long the trial has been running."""
        return time.monotonic() - self.started

    def end(self) -> None:
        """End the process and all that it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.connection.close()

    def fault(self) -> str | None:
        """Why an ended process failed, in one line; None if it did not."""
        status = self.process.returncode
        if status == 0:
            return None
        text = (self.folder / "stderr.log").read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if status < 0:
            name = signal.Signals(-status).name
            cause = ", as the system does when memory runs out" if -status == signal.SIGKILL else ""
            return f"killed by {name}{cause}"
        return lines[-1] if lines else f"exit status {status}, and nothing on stderr"
