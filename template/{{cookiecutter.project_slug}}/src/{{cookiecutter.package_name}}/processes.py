"""Which of a run's processes this one is, and who started them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

#: Names of SLURM jobs in which somebody types commands; Lightning knows the same ones.
INTERACTIVE = ("bash", "interactive")


@dataclass(frozen=True)
class Place:
    """This process among the processes of a run.

    Args:
        rank: its number among all of them; 0 is the first, which prints and writes.
        world_size: how many there are.
        local_rank: its number on its machine.
        node: the number of its machine.
        launcher: `torchrun` or `srun`, if one of them started all processes together; None if a run starts its own.
        job: what the processes have in common, restarts included; empty where there is no launcher.
        restarts: how often the launcher has started the job again.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    node: int = 0
    launcher: str | None = None
    job: str = ""
    restarts: int = 0


def this_process(environment: Mapping[str, str] = os.environ) -> Place:
    """Read the place of this process from what its launcher has set."""

    def number(name: str, default: int = 0) -> int:
        return int(environment.get(name, default))

    if "TORCHELASTIC_RUN_ID" in environment and "RANK" in environment:
        return Place(
            rank=number("RANK"),
            world_size=number("WORLD_SIZE", 1),
            local_rank=number("LOCAL_RANK"),
            node=number("GROUP_RANK"),
            launcher="torchrun",
            job=f"torchrun-{environment['TORCHELASTIC_RUN_ID']}",
            restarts=number("TORCHELASTIC_RESTART_COUNT"),
        )
    # A step is what srun starts; a batch script without srun has no step, and may train several times.
    if "SLURM_STEP_ID" in environment and environment.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return Place(
            rank=number("SLURM_PROCID"),
            world_size=number("SLURM_NTASKS", 1),
            local_rank=number("SLURM_LOCALID"),
            node=number("SLURM_NODEID"),
            launcher="srun",
            job=f"slurm-{environment['SLURM_JOB_ID']}-{environment['SLURM_STEP_ID']}",
            restarts=number("SLURM_RESTART_COUNT"),
        )
    return Place(rank=number("LOCAL_RANK"), world_size=number("WORLD_SIZE", 1), local_rank=number("LOCAL_RANK"))


def is_first_process() -> bool:
    """Whether this process is the one that prints and writes."""
    return this_process().rank == 0
