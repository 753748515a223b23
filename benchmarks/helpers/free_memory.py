"""The memory that a benchmark may take without taking it from somebody else."""

from pathlib import Path

import torch


def free_bytes(device: str) -> int:
    """Return the free memory of a device.

    Example:
        >>> free_bytes("cpu") > 0
        True
    """
    if device == "cuda":
        # What torch holds and does not use is free too.
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
