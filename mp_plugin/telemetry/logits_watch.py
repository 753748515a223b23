"""Catch the logits that a validation step computes on its way."""

from contextlib import ExitStack
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.loss import _Loss
from torchmetrics import Metric, MetricCollection

from mp_plugin.telemetry.drift_measure import logits_in

NO_MODELS = (_Loss, Metric, MetricCollection)
"""Modules that say something about the output of a model."""


class LogitsWatch:
    """Watch the calls of a module and of all modules below it.

    The logits are `logits_in` what the module's own `forward` returned last. Where nobody calls that, they are in what
    the last of the outermost calls below it returned, those left out that return none, and losses and metrics.

    Args:
        root: the module whose step is watched; it has to run eagerly.

    Example:
        >>> import torch
        >>> class Classifier(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 3))
        ...         self.loss = torch.nn.CrossEntropyLoss()
        ...     def step(self, inputs, classes):
        ...         return self.loss(self.net(inputs), classes)
        >>> classifier = Classifier()
        >>> watch = LogitsWatch(classifier)
        >>> with watch:
        ...     _ = classifier.step(torch.ones(1, 2), torch.tensor([2]))
        >>> watch.logits.shape
        torch.Size([1, 3])
    """

    def __init__(self, root: Module) -> None:
        self._root = root
        self._depth = 0
        self._own: Tensor | None = None
        self._outermost: Tensor | None = None
        self._undo = ExitStack()

    @property
    def logits(self) -> Tensor | None:
        """What was found so far."""
        return self._outermost if self._own is None else self._own

    def __enter__(self) -> None:
        for module in self._root.modules():
            self._undo.callback(module.register_forward_pre_hook(self._begin).remove)
            self._undo.callback(module.register_forward_hook(self._end, always_call=True).remove)

    def __exit__(self, *_: Any) -> None:
        self._undo.close()

    def _begin(self, *_: Any) -> None:
        self._depth += 1

    def _end(self, module: Module, _: Any, output: Any) -> None:
        self._depth -= 1
        if module is self._root:
            self._own = logits_in(output)
        elif self._depth == 0 and not isinstance(module, NO_MODELS) and (logits := logits_in(output)) is not None:
            self._outermost = logits
