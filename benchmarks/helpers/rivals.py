"""What others say about a step that overflowed: torch's anomaly mode, and a check in every module's forward hook."""

import re
import warnings
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Answer:
    """What a tool names; a dash for what it does not."""

    operator: str = "-"
    layer: str = "-"
    line: str = "-"
    direction: str = "-"
    cause: str = "-"
    goes_on: bool = True


class NotFiniteError(RuntimeError):
    """A module returned a NaN or an Inf."""


class CheckOutputs(pl.Callback):
    """A forward hook on every module: the first one whose output is not finite ends the run."""

    def on_fit_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        names = {module: name for name, module in pl_module.named_modules()}

        def check(module: torch.nn.Module, inputs: Any, outputs: Any) -> None:
            for tensor in tree_leaves(outputs):
                if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
                    raise NotFiniteError(names[module])

        self.handles = [module.register_forward_hook(check) for module in pl_module.modules()]

    def on_fit_end(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()


def ask_hooks(train: Any) -> Answer:
    """Train with the hooks and tell what they said."""
    try:
        train(callbacks=[CheckOutputs()])
    except NotFiniteError as found:
        return Answer(layer=str(found), direction="forward", goes_on=False)
    return Answer()


def ask_anomaly_mode(train: Any, folder: str) -> Answer:
    """Train in anomaly mode and tell what it said.

    Args:
        train: runs the training with the trainer options that it is given.
        folder: where the user's code is; the innermost line of it in the traceback of the forward pass counts.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            train(detect_anomaly=True)
        except RuntimeError as error:
            (operator,) = re.findall(r"Function '(\w+)' returned nan", str(error)) or [None]
            if operator is None:
                raise
        else:
            return Answer()
    traceback = "".join(str(warning.message) for warning in said if "forward call" in str(warning.message))
    ours = re.findall(rf'File "{re.escape(folder)}/(.*?)", line (\d+)', traceback)
    line = ":".join(ours[-1]) if ours else "-"
    return Answer(operator=operator, line=line, direction="backward", goes_on=False)
