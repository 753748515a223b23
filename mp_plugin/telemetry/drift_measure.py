"""How far the output of a low-precision pass is from that of an FP32 pass: tensors in, numbers that add up out."""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from math import inf, isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.grad_values import local_part
from mp_plugin.telemetry.batch_report import tensors_by_path

CHUNK = 2**22
"""Values compared at a time: the logits of a language model would not fit in float64 all at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """What one pass made of a batch."""

    logits: Tensor | None
    """Floating-point, with at least one dimension; None if the pass showed none."""
    loss: Tensor | None
    """One number; None if the pass returned none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Sums over batches, from which `metrics` are made; those of several batches or ranks are added.

    Example:
        >>> low, fp32 = torch.tensor([[1.0, 3.0]]), torch.tensor([[4.0, 3.0]])
        >>> drift = compare(Output(logits=low, loss=None), Output(logits=fp32, loss=None))
        >>> drift.logits_relative_error, drift.changed_predictions
        (0.6, 1.0)
    """

    batches: int = 0
    logits: int = 0
    """Values that are finite in both passes: what the next two are summed over."""
    squared_error: float = 0.0
    squared_norm: float = 0.0
    """Of the FP32 logits."""
    lost_logits: int = 0
    """Values that are finite in FP32 only."""
    predictions: int = 0
    changed: int = 0
    """Of the predictions."""
    losses: int = 0
    """Batches with a loss in both passes."""
    loss: float = 0.0
    fp32_loss: float = 0.0

    def __add__(self, other: "Drift") -> "Drift":
        """Return what is known of the batches of both."""
        names = asdict(self)
        return Drift(**dict(zip(names, map(sum, zip(astuple(self), astuple(other), strict=True)), strict=True)))

    @property
    def logits_relative_error(self) -> float | None:
        r"""$\lVert l - l_{32} \rVert_2 / \lVert l_{32} \rVert_2$ over all logits; infinite if one is lost."""
        if self.lost_logits:
            return inf
        return _ratio(sqrt(self.squared_error), sqrt(self.squared_norm)) if self.logits else None

    @property
    def changed_predictions(self) -> float | None:
        """Share of the predictions that are another class in FP32."""
        return self.changed / self.predictions if self.predictions else None

    @property
    def loss_difference(self) -> float | None:
        """Mean loss of the batches in low precision, less that in FP32."""
        return (self.loss - self.fp32_loss) / self.losses if self.losses else None

    @property
    def loss_relative_difference(self) -> float | None:
        """The difference of the losses as a share of the FP32 loss's magnitude."""
        return _ratio(self.loss - self.fp32_loss, abs(self.fp32_loss)) if self.losses else None

    def metrics(self) -> dict[str, float | None]:
        """Return the four numbers above by name; None for what is not known."""
        return {
            "logits_relative_error": self.logits_relative_error,
            "changed_predictions": self.changed_predictions,
            "loss_difference": self.loss_difference,
            "loss_relative_difference": self.loss_relative_difference,
        }

    def as_event(self) -> dict[str, Any]:
        """Return plain JSON values: `metrics`, with None for what is not finite too, the two losses, and the counts."""
        losses = {name: getattr(self, name) / self.losses if self.losses else None for name in ("loss", "fp32_loss")}
        values = {**self.metrics(), **losses}
        plain = {name: value if value is not None and isfinite(value) else None for name, value in values.items()}
        return plain | {name: getattr(self, name) for name in ("batches", "logits", "lost_logits", "predictions")}


@torch.no_grad()
def compare(low: Output, fp32: Output) -> Drift:
    """Compare the two passes of a batch, in float64; one sync.

    Logits are compared if they have the same shape. A prediction is the index of the largest value in the last
    dimension, for logits with at least two dimensions and at least two values in the last one.

    Args:
        low: of the pass in low precision.
        fp32: of the pass in FP32.
    """
    sums = {"batches": 1, **_compare_losses(low.loss, fp32.loss)}
    if low.logits is None or fp32.logits is None or low.logits.shape != fp32.logits.shape:
        return Drift(**sums)
    ours, theirs = (local_part(logits.detach()) for logits in (low.logits, fp32.logits))
    if not ours.numel():
        return Drift(**sums)
    has_classes = ours.ndim > 1 and ours.shape[-1] > 1
    rows = [logits.reshape(-1, logits.shape[-1]) for logits in (ours, theirs)]
    at_a_time = max(1, CHUNK // rows[0].shape[1])
    chunks = zip(*(torch.split(each, at_a_time) for each in rows), strict=True)
    found = torch.stack([_sums_of(*chunk, has_classes=has_classes) for chunk in chunks]).sum(dim=0).tolist()
    squared_error, squared_norm, logits, lost, changed = found
    return Drift(
        **sums,
        logits=int(logits),
        squared_error=squared_error,
        squared_norm=squared_norm,
        lost_logits=int(lost),
        predictions=rows[0].shape[0] if has_classes else 0,
        changed=int(changed),
    )


def logits_in(value: Any) -> Tensor | None:
    """Return what counts as the logits in what a module returned; None if there are none.

    What is called `logits`, as attribute or as key; else the first floating-point tensor that is no mere number, in
    tuples, lists, mappings and dataclasses, nested.

    Example:
        >>> logits_in({"hidden": torch.zeros(1, 8), "logits": torch.ones(1, 2)})
        tensor([[1., 1.]])
        >>> logits_in((torch.tensor(0.5), torch.tensor([1, 2]), [torch.tensor([3.0])]))
        tensor([3.])
    """
    named = value.get("logits") if isinstance(value, Mapping) else getattr(value, "logits", None)
    found = [*tensors_by_path(named), *tensors_by_path(value)]
    return next((tensor for _, tensor in found if tensor.is_floating_point() and tensor.ndim), None)


def _sums_of(low: Tensor, fp32: Tensor, *, has_classes: bool) -> Tensor:
    changed = (low.argmax(-1) != fp32.argmax(-1)).sum() if has_classes else torch.zeros((), device=low.device)
    low, fp32 = low.double(), fp32.double()
    is_known = fp32.isfinite()
    is_compared = is_known & low.isfinite()
    error = torch.where(is_compared, low - fp32, 0.0).square().sum()
    norm = torch.where(is_compared, fp32, 0.0).square().sum()
    return torch.stack(
        [error, norm, *(n.double() for n in (is_compared.sum(), (is_known & ~is_compared).sum(), changed))]
    )


def _compare_losses(low: Tensor | None, fp32: Tensor | None) -> dict[str, Any]:
    if low is None or fp32 is None:
        return {}
    return {"losses": 1, "loss": float(low.detach().double()), "fp32_loss": float(fp32.detach().double())}


def _ratio(difference: float, size: float) -> float:
    """Return a difference relative to a size; of nothing it is 0 if there is none either, else infinite."""
    return difference / size if size else inf * difference if difference else 0.0
