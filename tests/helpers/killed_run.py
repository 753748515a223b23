"""Train in a generated project and kill the training at given moments: `python killed_run.py KILLS OVERRIDES...`.

A moment is a number: of the things that a run does to its files (open, rename, remove; a checkpoint half written) and
to its weights (before and after each optimizer step), the one at which the process kills itself with SIGKILL. KILLS are
moments, one per attempt, joined by commas; each attempt is a fork of this process, so that imports happen once. After
the last one the run is left to finish. Prints one line per attempt: `killed`, or `finished` with the number of moments.
"""

import io
import os
import runpy
import signal
import sys
from pathlib import Path

import torch

MOMENT = 0
KILL_AT = -1


def moment() -> None:
    """Count, and die if the time has come."""
    global MOMENT
    if KILL_AT == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)
    MOMENT += 1


def watch(run_dir: Path) -> None:
    """Make everything that a run does to its files and weights a moment."""

    def audit(event: str, arguments: tuple) -> None:
        files = {"open": 1, "os.rename": 2, "os.remove": 1, "os.mkdir": 1}.get(event, 0)
        names = [os.fsdecode(name) for name in arguments[:files] if isinstance(name, (str, bytes))]
        if any(name.startswith(str(run_dir)) for name in names):
            moment()

    save, step = torch.save, torch.optim.AdamW.step

    def half_then_whole(content: object, file: object, *args: object, **kwargs: object) -> None:
        if KILL_AT == MOMENT:
            buffer = io.BytesIO()
            save(content, buffer)
            Path(file).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
        moment()
        save(content, file, *args, **kwargs)

    def watched_step(optimizer: torch.optim.AdamW, closure: object = None) -> object:
        moment()
        result = step(optimizer, closure)
        moment()
        return result

    sys.addaudithook(audit)
    torch.save, torch.optim.AdamW.step = half_then_whole, watched_step


def attempt(kill_at: int, overrides: list[str]) -> bool:
    """Run train.py in a fork; whether it lived."""
    global KILL_AT
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        KILL_AT = kill_at
        run_dir = next(word.partition("=")[2] for word in overrides if word.startswith("hydra.run.dir="))
        watch(Path(run_dir))
        sys.argv = ["train.py", *overrides]
        runpy.run_path("train.py", run_name="__main__")
        print("finished", MOMENT, flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        print("killed", flush=True)
        return False
    assert status == 0, status
    return True


def main() -> None:
    import lightning.pytorch  # noqa: F401  # slow to import, and the same for all attempts
    import pyarrow.parquet  # noqa: F401
    import torchmetrics  # noqa: F401

    kills, overrides = sys.argv[1], sys.argv[2:]
    for kill_at in [int(number) for number in kills.split(",") if number]:
        if attempt(kill_at, overrides):
            return
    assert attempt(-1, overrides)


if __name__ == "__main__":
    main()
