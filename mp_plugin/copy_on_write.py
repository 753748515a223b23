"""Notice, or take back, what a block of code writes to tensors that were there before."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics.storage import storage_under
from mp_plugin.telemetry.operators import named_arguments, operator_info, tensors_in

STATISTICS = frozenset({"running_mean", "running_var"})
"""Arguments that batch normalisation writes to without saying so."""


class CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """Copy a tensor's memory just before the block writes to it in place, and put the copy back at the end.

    Only what is written to is copied, so that guarding all tensors there are costs nothing as long as nobody touches
    them. What the block makes itself is not guarded, nor what collective operators of torch write to: with sharded
    weights that is room for those of other ranks. A write that an operator does not declare is missed, but for the
    statistics of batch normalisation.

    Example:
        >>> weight = torch.ones(2)
        >>> with CopyOnWrite():
        ...     weight.mul_(3).sum()
        tensor(6.)
        >>> weight
        tensor([1., 1.])
    """

    # Attention kernels written with torch's higher-order operators are called through.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Memory that was made in the block, or copied; what is freed before its end cannot be met again elsewhere but
        # as memory that was made in the block too.
        self._free: set[int] = set()
        self._copies: list[tuple[UntypedStorage, UntypedStorage]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not operator_info(operator).is_collective:
            for value in _written(operator, args, kwargs):
                self._keep(value)
        output = operator(*args, **kwargs)
        made = {storage._cdata for storage in _storages(output)}
        if made:
            self._free |= made.difference(storage._cdata for storage in _storages((args, kwargs)))
        return output

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for storage, copy in self._copies:
            if storage.nbytes() == copy.nbytes():  # else its memory was given back, as sharding does
                storage.copy_(copy)
        self._copies.clear()
        self._free.clear()

    def _keep(self, value: Any) -> None:
        for storage in _storages(value):
            if storage._cdata not in self._free:
                self._free.add(storage._cdata)
                self._copies.append((storage, storage.clone()))  # type: ignore[no-untyped-call]


class WriteWatch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """Notice whether the block writes to some tensors, by whatever way: through `.data` leaves no trace in a version.

    Args:
        tensors: to watch, with everything that shares their memory.

    Example:
        >>> gradient = torch.ones(2)
        >>> with WriteWatch([gradient]) as watch:
        ...     _ = gradient.data.clamp_(max=0.5)
        >>> watch.saw_write, gradient._version
        (True, 0)
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watched = {storage._cdata for tensor in tensors for storage in _storages(tensor)}
        self.saw_write = False

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        written = (storage for value in _written(operator, args, kwargs) for storage in _storages(value))
        self.saw_write = self.saw_write or any(storage._cdata in self._watched for storage in written)
        return operator(*args, **kwargs)


def _written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Yield the arguments that an operator writes to."""
    info = operator_info(operator)
    written = info.written | STATISTICS.intersection(info.arguments)
    if written:
        given = named_arguments(info, args, kwargs)
        yield from (given.get(name) for name in written)


def _storages(value: Any) -> Iterator[UntypedStorage]:
    """Yield the memory of the tensors in an argument or a result."""
    own = (tensor for tensor in tensors_in(value) if tensor.layout is torch.strided and not tensor.is_meta)
    return (storage for tensor in own if (storage := storage_under(tensor)) is not None)
