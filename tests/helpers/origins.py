"""Run a step under a trace, and say which operator on which line is to blame."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.origin import Source, Step
from mp_plugin.telemetry.trace import Trace


@dataclass(frozen=True)
class Traced:
    """What a trace found."""

    trace: Trace
    step: Step | None
    source: Source | None

    @property
    def operator(self) -> str | None:
        return None if self.step is None else self.step.operator.removeprefix("aten.").partition(".")[0]

    @property
    def line(self) -> int | None:
        """Of the origin; None where it has none."""
        if self.step is None or self.step.location is None:
            return None
        return int(self.step.location.partition(" in ")[0].rpartition(":")[2])


def traced(loss: Callable[[], Tensor], model: nn.Module | None = None, *, scale: float = 1.0) -> Traced:
    """Run forward and, unless the loss is lost, backward; ask where the loss or the gradients were spoiled."""
    model = nn.Module() if model is None else model
    layers = LayerStack(model)
    leaves: list[Tensor] = list(model.parameters())
    with layers, Trace(layers) as trace:
        result = loss()
        spoiled = [result]
        if result.isfinite().all() and result.requires_grad:
            with trace.backward():
                (result * scale).backward()
            spoiled = [each.grad for each in leaves if each.grad is not None]
    if trace.failure is not None:
        raise trace.failure
    origin = trace.find_origin(spoiled)
    if origin is None:
        return Traced(trace, None, None)
    return Traced(trace, trace.steps[origin.step], origin.source)


def marked_line(function: Callable[..., object], marker: str = "# culprit") -> int | None:
    """The number of the one line in a function's source that ends with a marker; None without one."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    found = [number for number, line in enumerate(lines, start=first) if line.rstrip().endswith(marker)]
    return found[0] if found else None


def leaf(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))
