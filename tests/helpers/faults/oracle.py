"""A second opinion on a planted fault, with torch alone: what the spoiled batch does, operator by operator.

It trains nothing and knows nothing of the plugin: one forward and one backward pass under autocast. Written down is
each operator that made non-finite numbers from finite ones, or a NaN from what held none; an -inf that is meant too.
"""

import linecache
import re
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.helpers.faults.batches import healthy_batch
from tests.helpers.faults.fault import FOLDER, SCALING, Fault

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Spoiling:
    """An operator that made non-finite numbers from finite ones, or a NaN from what held none."""

    operator: str
    direction: str
    line: str
    """Of the innermost frame in the planted models; in backward, of the forward."""
    kind: str
    dtype: torch.dtype


class Watch(TorchDispatchMode):
    """Writes down who spoils what."""

    def __init__(self) -> None:
        super().__init__()
        self.direction = "forward"
        self.found: list[Spoiling] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = tree_leaves((args, kwargs))
        was_finite, had_nan = all(map(_is_finite, inputs)), any(map(_holds_nan, inputs))
        result = function(*args, **(kwargs or {}))
        spoiled = [each for each in tree_leaves(result) if not _is_finite(each)]
        kind = "nan" if any(map(_holds_nan, spoiled)) else "inf"
        if spoiled and (was_finite or (kind == "nan" and not had_nan)) and "empty" not in str(function):
            self.found.append(Spoiling(str(function), self.direction, self._line(), kind, spoiled[0].dtype))
        return result

    def _line(self) -> str:
        node = torch._C._current_autograd_node() if self.direction == "backward" else None
        if node is not None:
            return _innermost(_recorded_frames(node.metadata.get("traceback_", [])))
        return _innermost((frame.filename, frame.lineno or 0) for frame in traceback.extract_stack())


@dataclass(frozen=True)
class Replay:
    """What came of one batch without the plugin."""

    loss: float
    victims: tuple[str, ...]
    """Parameters with a non-finite gradient."""
    spoilings: tuple[Spoiling, ...]


def replay(fault: Fault, *, spoiled: bool = True, index: int = 2, scale: float | None = None) -> Replay:
    """Run one batch of a fault's training, forward and backward, on the untrained model."""
    model = fault.make()
    batch = healthy_batch(fault.inputs, knob=fault.healthy_knob, index=index)
    if spoiled:
        batch = fault.spoil(batch)
        if fault.strike is not None:
            fault.strike(model)
    dtype = DTYPES.get(fault.precision)
    scale = scale if scale is not None else SCALING.init_scale if fault.precision == "fp16" else 1.0
    watch = Watch()
    with torch.autograd.set_detect_anomaly(True, check_nan=False), watch:
        with torch.autocast("cpu", dtype) if dtype is not None else nullcontext():
            loss = model.loss(model(batch.inputs, batch.knob), batch.targets, batch.knob)
            scaled = loss * torch.tensor(scale)
        watch.direction = "backward"
        scaled.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    victims = tuple(name for name, gradient in gradients.items() if not _is_finite(gradient))
    return Replay(loss.item(), victims, tuple(watch.found))


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() and value.numel()) or bool(value.isfinite().all())
    return not isinstance(value, float) or abs(value) < float("inf")


def _holds_nan(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any())


def _recorded_frames(recorded: list[str]) -> Iterator[tuple[str, int]]:
    for path, line in re.findall(r'File "(.*?)", line (\d+)', "".join(recorded)):
        yield path, int(line)


def _innermost(frames: Any) -> str:
    """The marker, or else the text, of the innermost line in a planted model."""
    ours = [(path, line) for path, line in frames if path.startswith(str(FOLDER)) and path != __file__]
    return linecache.getline(*ours[-1]).strip().split("# culprit: ")[-1] if ours else ""
