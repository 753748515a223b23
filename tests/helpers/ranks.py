"""Run a function in several processes that know each other, as torchrun would start them."""

import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from tests.helpers.training import ROOT

LONGEST_RUN_SECONDS = 180
"""Ranks that part wait for each other; torch would let them for half an hour."""


def run_on_ranks(function: Callable[..., None], *arguments: Any, world_size: int = 2) -> None:
    """Call `function(*arguments)` in every process of a new group; an error in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (world_size, port, function, arguments)
    ranks = mp.spawn(_start, args=arguments, nprocs=world_size, join=False)
    deadline = time.monotonic() + LONGEST_RUN_SECONDS
    while not ranks.join(timeout=1):
        if time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            raise TimeoutError(f"The ranks were not done after {LONGEST_RUN_SECONDS} s: they wait for each other.")


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
    # Not by way of the interpreter's end: a thread of gloo that lets go of a tensor then aborts the process, once in a
    # hundred times, be the group destroyed or not (pytorch#179291).
    ROOT.cleanup()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
