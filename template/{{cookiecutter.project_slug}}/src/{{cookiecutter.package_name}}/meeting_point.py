"""Where processes that torchrun or srun has started leave word for each other, before they train together."""

import functools
import os
from datetime import timedelta

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from torch import distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # from C++

from {{cookiecutter.package_name}}.processes import Place

#: How long the processes of a job may take to start.
LONGEST_START = timedelta(minutes=10)
#: The first process may have to download data before the others hear from it.
LONGEST_WAIT = timedelta(days=1)


@functools.cache
def meeting_point(place: Place) -> TCPStore:
    """Connect to the store that all processes of a job reach, and that the first one opens where nobody else has.

    Args:
        place: of this process, with a launcher.
    """
    if place.launcher == "torchrun":
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # The agent, which outlives the processes it starts, keeps a store at this very address.
        has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        port, is_master = (port, False) if has_store else (port + 1, place.rank == 0)
    else:
        nodes = os.environ.get("SLURM_NODELIST", "127.0.0.1")
        host = os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)
        # Away from the port that Lightning chooses by the same rule, from 15000.
        port, is_master = 25000 + int(os.environ["SLURM_JOB_ID"][-4:]), place.rank == 0
    return TCPStore(host, port, is_master=is_master, timeout=LONGEST_START, wait_for_workers=False)


def wait_for(place: Place, key: str) -> str:
    """The word that another process leaves under a key.

    Raises:
        SystemExit: if the processes have lost touch, as when the first one has refused a setting.
    """
    try:
        store = meeting_point(place)
        store.wait([key], LONGEST_WAIT)
        return store.get(key).decode()
    except dist.DistError as error:
        raise SystemExit(f"Process {place.rank} of {place.world_size} has lost touch with the first one.") from error


def attempt_key(place: Place, what: str) -> str:
    """The name under which word is left for the processes of this attempt; a restart leaves its own."""
    return f"{{cookiecutter.package_name}}/{place.job}/{place.restarts}/{what}"


def job_key(place: Place, what: str) -> str:
    """The name of what all attempts of a job share."""
    return f"{{cookiecutter.package_name}}/{place.job}/{what}"


def dismiss_other_processes(place: Place) -> None:
    """Let processes of torchrun or srun that still wait for a config end: the first one is done, and had none for them.

    So it is when a finished run is to be resumed, or with `--cfg job`.
    """
    if place.launcher is not None and place.rank == 0 and place.world_size > 1:
        meeting_point(place).set(attempt_key(place, "config"), "")
