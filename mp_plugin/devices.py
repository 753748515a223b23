"""What a device type can run, and how."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from mp_plugin.errors import ConfigError, UnsupportedError
from mp_plugin.modes import Mode

HALF_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
"""Instruction sets that multiply in a half format."""


class Support(str, Enum):
    """How a device computes in a number format."""

    native = "native"
    """Matrix units or vector instructions for this format."""
    converted = "converted"
    """Runs by converting to another format and back: right results, no gain in speed."""
    same_as_fp32 = "same as fp32"
    """The format has no meaning here; fp32 is used."""
    none = "none"
    """Cannot run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A device type and what decides its support; a value, so that any machine can be described in a test."""

    type: str
    capability: tuple[int, int] | None = None
    """CUDA compute capability, such as (9, 0)."""
    cpu_flags: frozenset[str] = frozenset()
    """Instruction sets of a CPU that matter here: some of `HALF_INSTRUCTIONS`."""

    def supports(self, compute: str) -> Support:
        """Return how this device computes in fp32, tf32, bf16 or fp16."""
        if compute == "fp32":
            return Support.native
        if self.type == "cuda":
            return self._cuda_supports(compute)
        if self.type == "cpu":
            return self._cpu_supports(compute)
        if compute == "tf32":
            return Support.same_as_fp32
        return Support.native if torch.amp.is_autocast_available(self.type) else Support.none

    def _cuda_supports(self, compute: str) -> Support:
        capability = self.capability or (0, 0)
        if compute == "fp16":
            return Support.native if capability >= (7, 0) else Support.converted
        if capability >= (8, 0):
            return Support.native
        return Support.same_as_fp32 if compute == "tf32" else Support.converted

    def _cpu_supports(self, compute: str) -> Support:
        if compute == "tf32":
            return Support.same_as_fp32
        return Support.native if any(flag.endswith(compute) for flag in self.cpu_flags) else Support.converted


def check_device(mode: Mode, device_type: Any) -> None:
    """Refuse a device that this machine lacks, or that cannot run the mode.

    Args:
        mode: the precision.
        device_type: a string such as `cpu` or `cuda`; anything else is refused.

    Raises:
        ConfigError: for what is no device type.
        UnsupportedError: for one that is not here or cannot run the mode.
    """
    accepted = ", ".join(map(repr, present_types()))
    try:
        is_type = isinstance(device_type, str) and torch.device(device_type).index is None
    except RuntimeError:
        is_type = False
    if not is_type:
        raise ConfigError(f"device={device_type!r} is not a device type; accepted: {accepted}.")
    if device_type not in present_types():
        raise UnsupportedError(f"device={device_type!r} is not available on this machine; accepted: {accepted}.")
    if Device(type=device_type).supports(mode.compute) is Support.none:
        raise UnsupportedError(f"precision={mode.name!r} cannot run on {device_type!r}; accepted there: '32-true'.")


def present_types() -> list[str]:
    """Return the device types that this machine has, `cpu` first."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return ["cpu", *([accelerator.type] if accelerator is not None else [])]


def this_machine() -> list[Device]:
    """Describe every kind of device of this machine."""
    devices = [Device(type="cpu", cpu_flags=_cpu_flags())]
    for device_type in present_types()[1:]:
        capability = torch.cuda.get_device_capability() if device_type == "cuda" else None
        devices.append(Device(type=device_type, capability=capability))
    return devices


def _cpu_flags() -> frozenset[str]:
    # torch 2.6 cannot say; then every half format counts as converted, which only makes a remark too careful.
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return frozenset(name for name in HALF_INSTRUCTIONS if capabilities.get(name))


def allow_tf32() -> Callable[[], None]:
    """Let fp32 matrix products and convolutions use TF32 units where there are any; returns what undoes it."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    def undo() -> None:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    return undo


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let FP32 matrix products, convolutions and recurrent layers compute in FP32 while the block runs.

    By themselves convolutions on CUDA use TF32, whose fraction is as short as that of fp16.
    """
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):
        # One setting for each, since torch 2.9; the one for all cannot be read where these were set.
        owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
        before = [owner.fp32_precision for owner in owners]
        for owner in owners:
            owner.fp32_precision = "ieee"
        try:
            yield
        finally:
            for owner, precision in zip(owners, before, strict=True):
                owner.fp32_precision = precision
        return
    undo = allow_tf32()
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        undo()
