"""What a training step leaves on its module besides gradients and buffers."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import lightning.pytorch as pl
from torch.nn import Module
from torchmetrics import Metric

from mp_plugin.instance import replace_attribute


@contextmanager
def counted_once(module: "pl.LightningModule") -> Iterator[None]:
    """Let the block run a training step once more without counting twice what it logs and measures.

    Afterwards torchmetrics have their state again. `self.log` does nothing meanwhile.
    """
    with ExitStack() as undo:
        for part in module.modules():
            if isinstance(part, Metric):
                undo.callback(_remember_metric(part))
        undo.callback(replace_attribute(module, "log", _log_nothing))
        yield


@contextmanager
def unchanged(module: "pl.LightningModule") -> Iterator[None]:
    """Let the block run a training step whose effects on the module are taken back.

    Beyond what counts once, attributes have their values again: numbers and strings, the entries of lists, dicts, sets
    and deques. An object that is changed inside, an array or a class of the user's own, stays changed.
    """
    with counted_once(module), ExitStack() as undo:
        for part in module.modules():
            if not isinstance(part, Metric):
                undo.callback(_remember_attributes(part))
        yield


def _log_nothing(*_: Any, **__: Any) -> None:
    pass


def _remember_metric(metric: Metric) -> Callable[[], None]:
    names = [*metric._defaults, "_update_count", "_computed", "_forward_cache"]
    state = {name: copy.deepcopy(getattr(metric, name)) for name in names}

    def restore() -> None:
        vars(metric).update(state)

    return restore


def _remember_attributes(module: Module) -> Callable[[], None]:
    before = {name: (value, _entries(value)) for name, value in vars(module).items() if name not in _internal()}

    def restore() -> None:
        now = vars(module)
        for name in [name for name in now if name not in before and name not in _internal()]:
            del now[name]
        for name, (value, entries) in before.items():
            now[name] = value
            if entries is not None:
                value.clear()
                (value.extend if isinstance(value, list | deque) else value.update)(entries)

    return restore


def _entries(value: Any) -> Any:
    """Return a copy of a container's entries; None for anything else."""
    return copy.copy(value) if type(value) in (list, dict, set, deque) else None


@cache
def _internal() -> frozenset[str]:
    # What torch and Lightning keep on a module themselves, hooks, parameters and the trainer among it.
    return frozenset(vars(pl.LightningModule()))
