"""What a training step leaves on its module besides gradients, weights and buffers."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torchmetrics import Metric

from mp_plugin.instance import replace_attribute
from mp_plugin.object_state import ObjectState


@contextmanager
def counted_once(module: "pl.LightningModule") -> Iterator[None]:
    """Let the block run a training step once more without counting twice what it logs and measures.

    Afterwards torchmetrics have their state again. `self.log` does nothing meanwhile.
    """
    with ExitStack() as undo:
        for part in module.modules():
            if isinstance(part, Metric):
                undo.callback(_remember_metric(part))
        undo.enter_context(_unlogged(module))
        yield


def remember_counts(module: "pl.LightningModule") -> Callable[[], None]:
    """Remember what a module has logged and measured so far; returns what goes back to it, as often as it is called.

    What hooks have logged around earlier batches of a window since then stays: they are not called again.
    """
    undo = [_remember_metric(part) for part in module.modules() if isinstance(part, Metric)]
    results: dict[str, Any] = {} if module.trainer._results is None else module.trainer._results
    # Lightning never writes into the tensors of a logged value, it makes new ones.
    logged = {key: (result, dict(vars(result))) for key, result in results.items()}

    def restore() -> None:
        for each in undo:
            each()
        for key in [each for each in results if _is_logged_in_closure(each)]:
            if key not in logged:
                del results[key]
            else:
                result, values = logged[key]
                vars(result).update(values)

    return restore


def _is_logged_in_closure(key: str) -> bool:
    hook = key.partition(".")[0]
    return hook in ("training_step", "on_before_zero_grad", "on_before_backward", "on_after_backward")


@contextmanager
def unchanged(module: "pl.LightningModule") -> Iterator[None]:
    """Let the block run a training step whose effects on the module, but for those on tensors, are taken back.

    `self.log` does nothing meanwhile.
    """
    with ExitStack() as undo:
        undo.callback(ObjectState([module], besides=_internal()).restore)
        undo.enter_context(_unlogged(module))
        yield


@contextmanager
def _unlogged(module: "pl.LightningModule") -> Iterator[None]:
    with ExitStack() as undo:
        for part in module.modules():
            if isinstance(part, pl.LightningModule):
                undo.callback(replace_attribute(part, "log", _log_nothing))
        yield


def _log_nothing(*_: Any, **__: Any) -> None:
    pass


def _remember_metric(metric: Metric) -> Callable[[], None]:
    # Metrics of a collection share their tensors and lists: they stay the same objects.
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    held = {name: getattr(metric, name) for name in names}
    tensors = [(value, value._version, value.detach().clone()) for value in held.values() if _counts_versions(value)]
    lists = [(value, list(value)) for value in held.values() if isinstance(value, list)]

    @torch.no_grad()
    def restore() -> None:
        vars(metric).update(held)
        for tensor, version, copy in tensors:
            if tensor._version != version:
                tensor.copy_(copy)
        for values, entries in lists:
            values[:] = entries

    return restore


def _counts_versions(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_inference()


@cache
def _internal() -> frozenset[str]:
    # What torch and Lightning keep on a module themselves, hooks, parameters and the trainer among it.
    return frozenset(vars(pl.LightningModule())) - {"training", "_buffers", "_modules"}
