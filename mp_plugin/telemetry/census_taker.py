"""Count operators by layer and number format while a model runs."""

from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import Module
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics.storage import storage_under
from mp_plugin.parameter_names import plain_name
from mp_plugin.telemetry.census import Census, computes, plain_census
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.operators import floating_tensors, operator_info
from mp_plugin.telemetry.reason import FORMAT_NAMES
from mp_plugin.telemetry.writers import storage_of

_PARTS_OF_COMPLEX = {torch.complex32: "fp16", torch.complex64: "fp32", torch.complex128: "fp64"}


class CensusTaker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """While entered, count operators; for a forward pass that runs eagerly. No sync.

    Where FSDP shards parameters, no operator is seen to take one: all operators of a layer decide then.

    Args:
        root: the model.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> with CensusTaker(net) as taker, torch.autocast("cpu", dtype=torch.bfloat16):
        ...     _ = net(torch.zeros(1, 2))
        >>> taker.census().format_of("0"), taker.census().counts["1"]
        ('bf16', {'aten.relu.default': {'bf16': 1}})
    """

    # Attention kernels written with torch's higher-order operators are called through.
    supports_higher_order_operators = True

    def __init__(self, root: Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers = LayerStack(root)
        self._first_names: dict[str, str] = {}
        # The layers to which memory belongs. As long as somebody knows it weakly, no other memory gets its identity.
        self._owners: dict[int, frozenset[str]] = {}
        self._known: list[StorageWeakRef] = []
        first: dict[int, str] = {}
        for full_name, module in root.named_modules(remove_duplicate=False):
            name = first.setdefault(id(module), plain_name(full_name))
            self._first_names[plain_name(full_name)] = name
            for parameter in module.parameters(recurse=False):
                self._own(parameter, frozenset({name}))
        self._counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self._on_parameters: dict[str, Counter[str]] = defaultdict(Counter)
        self._lent: set[str] = set()

    def census(self) -> Census:
        """Return what was counted so far."""
        return plain_census(self._counts, self._on_parameters, frozenset(self._lent))

    def __enter__(self) -> "CensusTaker":
        self._layers.__enter__()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._layers.__exit__(*error)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = operator(*args, **kwargs)
        info = operator_info(operator)
        first = next(floating_tensors(output), None)
        if first is None or not info.is_watched:
            return output
        layer = self._first_names.get(self._layers.current, self._layers.current)
        format_name = _format_name(first.dtype)
        self._counts[layer][info.name][format_name] += 1
        given = floating_tensors([*args, *kwargs.values()])
        owners = frozenset[str]().union(*(self._owners.get(storage_of(tensor), ()) for tensor in given))
        if not owners:
            return output
        if computes(info.name):
            self._on_parameters[layer][format_name] += 1
            if layer not in owners:
                self._lent |= owners
        else:
            for tensor in floating_tensors(output):
                self._own(tensor, owners)
        return output

    def _own(self, tensor: Tensor, owners: frozenset[str]) -> None:
        storage = storage_under(tensor)
        if storage is None:
            return
        self._known.append(StorageWeakRef(storage))  # type: ignore[no-untyped-call]  # torch's own, untyped
        identity = storage_of(tensor)
        self._owners[identity] = self._owners.get(identity, frozenset()) | owners


def _format_name(dtype: torch.dtype) -> str:
    return _PARTS_OF_COMPLEX.get(dtype) or FORMAT_NAMES.get(dtype) or str(dtype).removeprefix("torch.")
