"""Run a function in several processes that know each other, as torchrun would start them."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp


def run_on_ranks(function: Callable[..., None], *arguments: Any, world_size: int = 2) -> None:
    """Call `function(*arguments)` in every process of a new group; an error in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_start, args=(world_size, port, function, arguments), nprocs=world_size)


def _start(rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "tests",
        # Two ranks share two cores.
        "OMP_NUM_THREADS": "1",
    }
    function(*arguments)
