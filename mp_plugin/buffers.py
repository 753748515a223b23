"""A last-good copy of a model's buffers.

A forward pass that overflowed has already written into BatchNorm's running statistics. Skipping the step does not take
that back, and a NaN in them stays for the rest of the run.
"""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.parameter import is_lazy

log = logging.getLogger(__name__)

LARGEST_COPY = 2**26
"""Bytes of buffers that are copied at most: running statistics are far below, a replay memory is not."""


class LastGoodBuffers:
    """Copy the buffers that training writes to, and put the copy back.

    Kept are floating-point and complex buffers, and counters of one element such as BatchNorm's `num_batches_tracked`.
    Other integer buffers and those of one-byte floats, which hold quantised constants, are not.

    Each `save` looks at what the modules hold by then: a buffer may be registered late or replaced by assignment. It
    copies in one launch per (device, dtype) group and without a sync. All of them each time: batch normalisation
    writes to its statistics without a trace in the tensor's version count.

    Left alone, with one message that names them, are the largest buffers beyond `largest_copy` bytes in all, and
    tensors that are not plain and dense. A buffer that was registered or has changed its shape since `save` stays as it
    is: a cache that grew belongs to a size that its module remembers elsewhere.

    Args:
        module: whose buffers, and those of the submodules that it has now.
        largest_copy: bytes.

    Example:
        >>> norm = torch.nn.BatchNorm1d(2)
        >>> good = LastGoodBuffers(norm)
        >>> good.save()
        >>> norm.running_mean.fill_(float("nan"))
        tensor([nan, nan])
        >>> good.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, module: Module, *, largest_copy: int = LARGEST_COPY) -> None:
        self._module = module
        self._modules = [(path, submodule._buffers) for path, submodule in module.named_modules()]
        self._largest_copy = largest_copy
        self._told: set[str] = set()
        self._present: list[tuple[int, type]] = []
        self._slots: list[_Slot] = []
        self._copies: dict[int, Tensor] = {}  # by the identity of the buffer, which its slot keeps alive
        # torch copies a list of mixed dtypes one tensor at a time.
        self._groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = {}

    @torch.no_grad()
    def save(self) -> None:
        """Take the copy."""
        # By identity: holding a large buffer that is not kept would double its memory once it is replaced. By type: a
        # lazy buffer stays the same object as it gets its values.
        present = [(id(buffer), type(buffer)) for _, buffers in self._modules for buffer in buffers.values()]
        if present != self._present or any(slot.buffer.shape != slot.shape for slot in self._slots):
            self._present = present
            self._choose()
        for buffers, copies in self._groups.values():
            torch._foreach_copy_(copies, buffers)

    def restore(self) -> None:
        """Put the copy back."""
        self._put_back(self._slots)

    @torch.no_grad()
    def restore_where(self, found_inf: Tensor) -> None:
        """Put the copy back where `found_inf` is above 0, a 0-d tensor on any device: no sync, four launches per group.

        A buffer that was replaced by another tensor keeps that one, with the values of the copy.
        """
        groups: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor]]] = defaultdict(
            lambda: ([], [])
        )
        for slot in self._slots:
            if slot.is_in_shape() and _is_writable(slot.now):
                # What has no copy could not be written to, and holds what it held.
                copy = self._copies.get(id(slot.buffer), slot.buffer).to(slot.now.device, non_blocking=True)
                if slot.now.is_conj():  # torch takes no lists of those
                    slot.now.copy_(torch.where(found_inf.to(slot.now.device) > 0, copy, slot.now))
                    continue
                now, good = groups[slot.now.device, slot.now.dtype]
                now.append(slot.now)
                good.append(copy)
        for (device, _), (now, good) in groups.items():
            is_lost = found_inf.to(device) > 0
            kept = torch.split(torch.where(is_lost, _flat(good), _flat(now)), [buffer.numel() for buffer in now])
            torch._foreach_copy_(now, [values.view_as(buffer) for values, buffer in zip(kept, now, strict=True)])

    @torch.no_grad()
    def restore_non_finite(self) -> None:
        """Put back only those buffers that hold a NaN or an Inf now; the others keep what they learned. Syncs once."""
        kinds: dict[tuple[torch.device, torch.dtype], list[_Slot]] = defaultdict(list)
        for slot in self._slots:
            if slot.is_in_shape() and _holds_nan(slot.now):
                kinds[slot.now.device, slot.now.dtype].append(slot)
        norms = [torch._foreach_norm([slot.now for slot in slots], math.inf) for slots in kinds.values()]
        finite = [torch.stack(group).isfinite() for group in norms]
        known = torch.cat([group.to(finite[0].device) for group in finite]).tolist() if finite else []
        self._put_back(slot for slot, is_finite in zip(chain(*kinds.values()), known, strict=True) if not is_finite)

    @torch.no_grad()
    def _put_back(self, slots: "Iterable[_Slot]") -> None:
        for slot in slots:
            if slot.is_in_shape():
                slot.buffers[slot.name] = slot.buffer
                if id(slot.buffer) in self._copies:
                    slot.buffer.copy_(self._copies[id(slot.buffer)])

    def _choose(self) -> None:
        """Decide which of the present buffers are kept, and make room for their copies."""
        self._slots, self._copies, self._groups = [], {}, defaultdict(lambda: ([], []))
        dense, left_out, room = [], {}, self._largest_copy
        for path, buffers in self._modules:
            for name, buffer in buffers.items():
                if buffer is None or is_lazy(buffer) or not _is_written_to(buffer):
                    continue
                if _is_dense(buffer):
                    dense.append((f"{path}.{name}", _Slot(buffers, name, buffer, buffer.shape)))
                else:
                    left_out[f"{path}.{name}"] = "not dense"
        for path, slot in sorted(dense, key=lambda pair: pair[1].buffer.nbytes):
            buffer = slot.buffer
            if id(buffer) not in self._copies and _is_writable(buffer):
                if buffer.nbytes > room:
                    left_out[path] = f"{buffer.nbytes / 2**20:.3g} MiB"
                    continue
                room -= buffer.nbytes
                self._copies[id(buffer)] = torch.empty_like(buffer)
                buffers_of_kind, copies = self._groups[buffer.device, buffer.dtype]
                buffers_of_kind.append(buffer)
                copies.append(self._copies[id(buffer)])
            self._slots.append(slot)
        new = [f"{path.lstrip('.')} ({why})" for path, why in left_out.items() if path not in self._told]
        self._told.update(left_out)
        if new:
            message = "A skipped step does not restore %s: the smallest dense buffers are kept, %.3g MiB in all."
            log.warning(message, ", ".join(new), self._largest_copy / 2**20)


class _Slot(NamedTuple):
    """A place in a module, and what was there."""

    buffers: dict[str, Tensor | None]
    name: str
    buffer: Tensor
    shape: torch.Size

    @property
    def now(self) -> Tensor:
        buffer = self.buffers[self.name]
        assert buffer is not None, "asked for after is_in_shape"
        return buffer

    def is_in_shape(self) -> bool:
        if self.name not in self.buffers:  # the dictionary of a scripted module has no `get`
            return False
        buffer = self.buffers[self.name]
        return buffer is not None and _is_dense(buffer) and buffer.shape == self.shape


def _flat(buffers: list[Tensor]) -> Tensor:
    return torch.cat([buffer.reshape(-1) for buffer in buffers])


def _is_dense(buffer: Tensor) -> bool:
    is_plain = type(buffer) in (Tensor, Parameter) and not buffer.is_nested
    return is_plain and buffer.layout is torch.strided


def _is_written_to(buffer: Tensor) -> bool:
    return buffer.numel() > 0 and not buffer.is_meta and (_holds_nan(buffer) or buffer.numel() == 1)


def _holds_nan(buffer: Tensor) -> bool:
    return (buffer.is_floating_point() or buffer.is_complex()) and buffer.dtype.itemsize > 1


def _is_writable(buffer: Tensor) -> bool:
    """Whether torch can write to it in place; expanded and inference tensors can only be replaced."""
    is_expanded = any(size > 1 and step == 0 for size, step in zip(buffer.shape, buffer.stride(), strict=True))
    return not is_expanded and not buffer.is_inference()
