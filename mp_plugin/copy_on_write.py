"""Take back what a block of code writes to tensors that were there before."""

from collections.abc import Iterable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics.grad_stats import local_part


class CopyOnWrite(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """Copy a tensor's memory just before the block writes to it in place, and put the copy back at the end.

    Only what is written to is copied, so that guarding all weights of a model costs nothing as long as nobody touches
    them. A write that an operator does not declare is missed: batch normalisation does not tell of its statistics.

    Args:
        tensors: to guard, with everything that shares their memory.

    Example:
        >>> weight = torch.ones(2)
        >>> with CopyOnWrite([weight]):
        ...     weight.mul_(3).sum()
        tensor(6.)
        >>> weight
        tensor([1., 1.])
    """

    # Attention kernels written with torch's higher-order operators are called through.
    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._guarded = {storage._cdata for tensor in tensors if (storage := _storage(tensor)) is not None}
        self._copies: list[tuple[UntypedStorage, UntypedStorage]] = []

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(operator, "_schema", None)
        if schema is not None and schema.is_mutable:
            for place, argument in enumerate(schema.arguments):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._keep(args[place] if place < len(args) else kwargs.get(argument.name))
        return operator(*args, **kwargs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        for storage, copy in self._copies:
            if storage.nbytes() == copy.nbytes():
                storage.copy_(copy)
        self._copies.clear()

    def _keep(self, value: Any) -> None:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            storage = _storage(tensor) if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata in self._guarded:
                self._guarded.discard(storage._cdata)
                self._copies.append((storage, storage.clone()))  # type: ignore[no-untyped-call]


def _storage(tensor: Tensor) -> UntypedStorage | None:
    tensor = local_part(tensor)
    if tensor.layout is not torch.strided or tensor.is_meta:
        return None
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):  # subclasses that only look like a tensor
        return None
