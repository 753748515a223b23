"""Which hooks of Lightning a user has filled in."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from mp_plugin.instance import replace_attribute


def may_edit_gradients(module: "pl.LightningModule") -> bool:
    """Whether the module or a callback does something of its own between the backward pass and the step."""
    return (
        is_overridden("on_before_optimizer_step", module)
        or is_overridden("configure_gradient_clipping", module)
        or any(is_overridden("on_before_optimizer_step", each, Callback) for each in module.trainer.callbacks)  # type: ignore[attr-defined]
    )


def may_look_at_gradients(module: "pl.LightningModule") -> bool:
    """Whether the module does something of its own where Lightning clips."""
    return is_overridden("clip_gradients", module)


def may_edit_after_backward(module: "pl.LightningModule") -> bool:
    """Whether the module or a callback does something of its own right after the backward pass."""
    callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
    return is_overridden("on_after_backward", module) or any(
        is_overridden("on_after_backward", each, Callback) for each in callbacks
    )


@contextmanager
def silent(module: "pl.LightningModule", hooks: Iterable[str]) -> Iterator[None]:
    """Let Lightning call these hooks of the module and of all callbacks in vain while the block runs."""
    callbacks = module.trainer.callbacks  # type: ignore[attr-defined]
    with ExitStack() as undo:
        for hook in hooks:
            for owner in (module, *callbacks):
                undo.callback(replace_attribute(owner, hook, _do_nothing))
        yield


def _do_nothing(*_: Any, **__: Any) -> None:
    pass
