"""Which hooks of Lightning a user has filled in."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden


def may_edit_gradients(module: "pl.LightningModule") -> bool:
    """Whether the module or a callback does something of its own between the backward pass and the step."""
    return (
        is_overridden("on_before_optimizer_step", module)
        or is_overridden("configure_gradient_clipping", module)
        or any(is_overridden("on_before_optimizer_step", each, Callback) for each in module.trainer.callbacks)  # type: ignore[attr-defined]
    )
