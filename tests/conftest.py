"""What holds for every test: fixed seeds, and no trace left in the process."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import lightning.pytorch  # noqa: F401  # it sets environment variables when it is first imported
import pytest
import torch
from torch._C import _len_torch_dispatch_stack

THEIR_OWN = ("CUDA_MODULE_LOADING", "PL_", "PYTEST_", "TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_")
"""Prefixes of the variables with which Lightning, pytest and torch mark a process when they first work in it."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _leaves_no_trace() -> Iterator[None]:
    before = _process_state()
    yield
    assert _process_state() == before


def _process_state() -> dict[str, Any]:
    return {
        "default dtype": torch.get_default_dtype(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn tf32": torch.backends.cudnn.allow_tf32,
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "grad mode": torch.is_grad_enabled(),
        "no_grad": (torch.no_grad, torch.inference_mode),
        "dispatch modes": _len_torch_dispatch_stack(),
        "compiler stance": torch._dynamo.eval_frame._stance.stance if "torch._dynamo" in sys.modules else "default",
        "files": sorted(path for path in os.listdir() if path == "telemetry"),
        "environment": {key: value for key, value in os.environ.items() if not key.startswith(THEIR_OWN)},
    }
