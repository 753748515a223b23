"""Two offline ways to choose the layers that stay in FP32, written here from their documented rules.

A threshold, in the manner of NVIDIA ModelOpt's AutoCast: an operator stays in FP32 if one of its inputs or outputs
exceeds 512 on calibration data, or one of its weights 65504. Here a layer stays if one of its operators does. Tensors
without dimensions do not count: the gain of a planted layer is one, which would give it away.

A bisection, in the manner of `polygraphy debug precision --mode bisect`: the first N layers stay in FP32, or with
`--dir reverse` the last N, for the smallest N that works.

Both choose among the layers that hold no others, in the order in which they run.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mp_plugin.fallback.islands import Islands

DATA_MAX = 512.0
INIT_MAX = 65504.0


def is_finite(model: Any, batch: Any, names: Iterable[str]) -> bool:
    """Whether a batch has a finite loss and gradients in fp16 with these layers in FP32, without a loss scale."""
    model = deepcopy(model)
    with Islands(model, device_type="cpu").tried(names), torch.autocast("cpu", torch.float16):
        loss = model.training_step(batch, 0)
    loss.backward()
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    return all(bool(each.isfinite().all()) for each in (loss, *gradients))


def above_threshold(model: Any, batches: Iterable[Any]) -> list[str]:
    """Return the layers that a threshold keeps in FP32, after a look at calibration batches in FP32."""
    model = deepcopy(model)
    amax: dict[str, float] = {}
    with following(model) as running, torch.no_grad(), Amax(running, amax):
        for batch in batches:
            model.training_step(batch, 0)
    leaves = leaf_layers(model)
    return [
        name
        for name, layer in leaves.items()
        if amax.get(name, 0.0) > DATA_MAX or any(each.detach().abs().max() > INIT_MAX for each in layer.parameters())
    ]


def order_of_running(model: Any, batch: Any) -> list[str]:
    """Return the layers that hold no others, in the order of their first call."""
    model = deepcopy(model)
    seen: dict[str, None] = {}
    leaves = leaf_layers(model)
    handles = [
        layer.register_forward_pre_hook(lambda *_, name=name: seen.setdefault(name)) for name, layer in leaves.items()
    ]
    with torch.no_grad():
        model.training_step(batch, 0)
    for handle in handles:
        handle.remove()
    return list(seen)


def bisect(num_layers: int, works: Callable[[int], bool]) -> tuple[int | None, int]:
    """Return the smallest number of layers that works, None if all of them do not, and how many were tried."""
    runs = 1
    if not works(num_layers):
        return None, runs
    too_few, enough = 0, num_layers
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        runs += 1
        if works(middle):
            enough = middle
        else:
            too_few = middle
    return enough, runs


def leaf_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that hold no others, each by its first name."""
    return {name: layer for name, layer in model.named_modules() if not any(True for _ in layer.children())}


@contextmanager
def following(model: nn.Module) -> Iterator[list[str]]:
    """Yield the names of the layers that run at any moment, the innermost last."""
    running: list[str] = []
    handles = []
    for name, layer in model.named_modules():
        handles.append(layer.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(layer.register_forward_hook(lambda *_: running.__delitem__(-1)))
    yield running
    for handle in handles:
        handle.remove()


class Amax(TorchDispatchMode):
    """Keep, by layer, the largest magnitude among inputs and outputs of the operators that run in it."""

    def __init__(self, running: list[str], amax: dict[str, float]) -> None:
        super().__init__()
        self.running, self.amax = running, amax

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = self.running[-1] if self.running else ""
        for each in tree_leaves((args, kwargs, result)):
            if isinstance(each, Tensor) and each.is_floating_point() and each.dim() and each.numel():
                self.amax[name] = max(self.amax.get(name, 0.0), float(each.abs().max()))
        return result
