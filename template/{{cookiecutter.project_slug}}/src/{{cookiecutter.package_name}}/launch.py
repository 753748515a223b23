"""A run on several processes: all of them run one config, the one that the first process composed.

Lightning would start the other processes by the command line of the first, which composes a config again: under `-m` it
is a sweep of its own, `${now:}` and random resolvers give other values, and conf/ may have changed. Here the first
process hands its config to the others: through a pipe to those that it starts, through a store to those of torchrun and
srun.
"""

import functools
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.meeting_point import attempt_key, meeting_point, wait_for
from {{cookiecutter.package_name}}.processes import this_process
from {{cookiecutter.package_name}}.shard import refuse_unsuited

Result = TypeVar("Result")

#: What Lightning leaves in the environment, and what the next run of a sweep in this process would take for its own.
LEFT_BEHIND = (
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "NODE_RANK",
    "OMP_NUM_THREADS",
    "PL_GLOBAL_SEED",
    "PL_SEED_WORKERS",
    "WORLD_SIZE",
)
#: How long a process may go on when another one has died, and how long the others may take to end after the first.
GRACE_SECONDS = 30.0


@dataclass
class _Job:
    function: str
    config: DictConfig
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    has_told: bool = False


_running: list[_Job] = []


def on_all_processes(task: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Run a function with the first process's config, and leave nothing of the run in this process.

    All interpolations of the config are resolved first. The function is one of a module, which other processes can
    import, and calls `start_other_processes` before the trainer's first work.

    Args:
        task: takes the config.
    """

    @functools.wraps(task)
    def run(cfg: DictConfig) -> Result:
        job = _Job(f"{task.__module__}:{task.__qualname__}", _config_of_the_first_process(cfg))
        _running.append(job)
        try:
            with _environment_restored(), _processes_ended(job):
                return task(job.config)
        finally:
            _running.remove(job)

    return run


def prepare_data(datamodule: LightningDataModule) -> None:
    """Call `datamodule.prepare_data` once on each machine; the other processes there wait until it is done."""
    place = this_process()
    if place.local_rank == 0:
        datamodule.prepare_data()
    if place.launcher is None:
        return  # the first process was here before it started the others
    key = attempt_key(place, f"data-prepared-{place.node}")
    if place.local_rank == 0:
        meeting_point(place).set(key, "")
    else:
        wait_for(place, key)


def start_other_processes(trainer: Trainer) -> None:
    """Let the run's other processes begin, with this config; they call the same function.

    Comes after all checks, so that a setting that is refused is refused once.

    Args:
        trainer: of this run, not yet at work.

    Raises:
        ValueError: if the trainer needs another number of processes than were started, or cannot work as asked.
    """
    refuse_unsuited(trainer)
    place, job = this_process(), _running[-1]
    asked = f"trainer.devices={trainer.num_devices} and trainer.num_nodes={trainer.num_nodes}"
    if place.launcher is not None:
        if trainer.num_devices * trainer.num_nodes != place.world_size:
            raise ValueError(f"{place.launcher} has started {place.world_size} processes, but {asked}.")
        if place.rank == 0 and place.world_size > 1:
            meeting_point(place).set(attempt_key(place, "config"), pickle.dumps(job.config).hex())
        return
    environment = getattr(trainer.strategy, "cluster_environment", None)
    starts_the_script_again = isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher)
    if place.rank > 0 or not starts_the_script_again or not isinstance(environment, LightningEnvironment):
        return
    if trainer.num_nodes > 1:
        raise ValueError(f"{asked}: start it with torchrun or srun on every machine (docs/cluster.md).")
    if trainer.num_devices == 1:
        return
    os.environ |= {
        "MASTER_ADDR": environment.main_address,
        "MASTER_PORT": str(environment.main_port),
        "NODE_RANK": "0",
        "WORLD_SIZE": str(trainer.num_devices),
        # With this Lightning takes the processes for started.
        "LOCAL_RANK": "0",
    }
    for rank in range(1, trainer.num_devices):
        job.processes.append(_start(job, rank))
    threading.Thread(target=_watch, args=(job,), daemon=True, name="watch-processes").start()


def _config_of_the_first_process(cfg: DictConfig) -> DictConfig:
    """This config with all interpolations resolved; in another process of torchrun or srun, the first one's."""
    place = this_process()
    if place.launcher is not None and place.rank > 0:
        # Pickled, as torch's own collectives do it: the same values, types and flags.
        word = wait_for(place, attempt_key(place, "config"))
        if not word:
            raise SystemExit(0)  # the first process has ended without a run: there is nothing to do
        config: DictConfig = pickle.loads(bytes.fromhex(word))
        return config
    OmegaConf.resolve(cfg)
    return cfg


def _start(job: _Job, rank: int) -> subprocess.Popen[bytes]:
    """Start a process that imports what this one can, and hand it the config."""
    environment = os.environ | {
        "LOCAL_RANK": str(rank),
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        # Nothing but that: `-m` would put the working directory first.
        "PYTHONSAFEPATH": "1",
    }
    command = [sys.executable, "-m", "{{cookiecutter.package_name}}.other_process", job.function]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps(job.config))
    # Stays open: its end tells the other process that this one is gone.
    process.stdin.flush()
    return process


def _watch(job: _Job) -> None:
    """End this process if another one has died and the work here does not notice, as in a collective of NCCL."""
    while not job.is_over.wait(1.0):
        if _has_died(job):
            if not job.is_over.wait(GRACE_SECONDS):
                os._exit(1)
            return


def _has_died(job: _Job) -> bool:
    """Whether another process has ended with an error; said once."""
    for rank, process in enumerate(job.processes, 1):
        if process.poll():
            if not job.has_told:
                job.has_told = True
                message = f"Process {rank} of {len(job.processes) + 1} ended with status {process.returncode}"
                print(f"{message}, and this run ends with it.", file=sys.stderr, flush=True)
            return True
    return False


@contextmanager
def _processes_ended(job: _Job) -> Iterator[None]:
    """Wait for the other processes; after an error, end them."""
    had_group = dist.is_available() and dist.is_initialized()
    try:
        yield
        for rank, process in enumerate(job.processes, 1):
            if process.wait(GRACE_SECONDS):
                raise RuntimeError(f"Process {rank} ended with status {process.returncode}.")
    except BaseException:
        if job.processes:
            # What failed here may be but the echo: give the one that died first the time to be seen.
            time.sleep(0.5)
            _has_died(job)
        raise
    finally:
        for process in job.processes:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        if dist.is_available() and dist.is_initialized() and not had_group:
            dist.destroy_process_group()
        job.is_over.set()


@contextmanager
def _environment_restored() -> Iterator[None]:
    """Take back what Lightning sets for the whole process."""
    before: dict[str, Any] = {name: os.environ.get(name) for name in LEFT_BEHIND}
    num_threads = torch.get_num_threads()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
