"""Which traced step wrote the non-finite numbers in a piece of memory."""

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mp_plugin.numerics.finiteness import Kind, Kinds, kinds_in
from mp_plugin.numerics.storage import storage_under, strided
from mp_plugin.telemetry.contents import first_place


class View(NamedTuple):
    """The part of a memory that a tensor shows, in bytes."""

    start: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    def holds(self, byte: int) -> bool:
        """Whether a byte belongs to one of its elements."""
        left = byte - self.start
        if left < 0 or 0 in self.sizes:
            return False
        for stride, size in sorted(zip(self.strides, self.sizes, strict=True), reverse=True):
            if stride:
                left -= min(left // stride, size - 1) * stride
        return left < self.itemsize

    def byte_of(self, place: tuple[int, ...]) -> int:
        """Return the first byte of an element."""
        return self.start + sum(index * stride for index, stride in zip(place, self.strides, strict=True))


@dataclass(slots=True)
class _Memory:
    # As long as somebody knows it weakly, no other memory gets its identity.
    reference: StorageWeakRef
    writes: list[tuple[int, View]] = field(default_factory=list)
    contents: dict[View, Kinds] = field(default_factory=dict)


class Writers:
    """Remember who wrote non-finite numbers where: a step that wrote to one slice says nothing about another.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, float("inf")], [float("nan"), 1.0]])
        >>> writers = Writers()
        >>> writers.note(rows[0], 3, frozenset({Kind.inf}))
        >>> writers.note(rows[1], 5, frozenset({Kind.nan}))
        >>> writers.writer(rows, Kind.inf), writers.writer(rows.T, Kind.nan)
        (3, 5)
    """

    def __init__(self) -> None:
        self._memories: dict[int, _Memory] = {}

    def note(self, tensor: Tensor, step: int, kinds: Kinds) -> None:
        """Note that a step wrote non-finite numbers to a tensor."""
        view = view_of(tensor)
        if view is None:
            return
        identity = storage_of(tensor)
        memory = self._memories.get(identity)
        if memory is None:
            memory = self._memories[identity] = _Memory(StorageWeakRef(storage_under(tensor)))  # type: ignore[no-untyped-call]  # torch's own, untyped
        memory.writes.append((step, view))
        memory.contents = {view: kinds}

    def touched(self, tensor: Tensor) -> None:
        """Note that somebody wrote to a tensor."""
        memory = self._memories.get(storage_of(tensor))
        if memory is not None:
            memory.contents = {}

    def kinds(self, tensor: Tensor) -> Kinds | None:
        """Return the kinds of non-finite numbers in a tensor, without a read if that is known."""
        memory = self._memories.get(storage_of(tensor))
        if memory is None:
            return kinds_in(tensor)
        view = view_of(tensor)
        known = memory.contents.get(view) if view is not None else None
        if known is not None:
            return known
        kinds = kinds_in(tensor)
        if view is not None and kinds is not None:
            memory.contents[view] = kinds
        return kinds

    def writer(self, tensor: Tensor, kind: Kind, values: Tensor | None = None) -> int | None:
        """Return the step that wrote the first number of this kind in a tensor; None if nobody was seen doing it.

        Args:
            tensor: whose memory counts.
            kind: of the number.
            values: what the tensor held, if it has been written to since.
        """
        memory = self._memories.get(storage_of(tensor))
        if memory is None:
            return None
        if len(memory.writes) == 1:
            return memory.writes[0][0]
        view = view_of(tensor)
        place = first_place(strided(tensor if values is None else values), kind)
        if view is None or place is None:
            return memory.writes[-1][0]
        byte = view.byte_of(place)
        return next((step for step, written in reversed(memory.writes) if written.holds(byte)), None)


def storage_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which its views and detached copies share."""
    storage = storage_under(tensor)
    return id(tensor) if storage is None else storage._cdata


def view_of(tensor: Tensor) -> View | None:
    """Return what part of its memory a tensor shows; None if it has none."""
    if storage_under(tensor) is None:
        return None
    tensor = strided(tensor)
    size = tensor.itemsize
    strides = tuple(stride * size for stride in tensor.stride())
    return View(int(tensor.storage_offset()) * size, tuple(tensor.shape), strides, size)
