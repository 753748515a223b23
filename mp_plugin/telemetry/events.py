"""What can happen to a step, as plain data."""

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any


class Action(str, Enum):
    """What was done about gradients that are not finite."""

    backoff = "backoff"
    """The step was skipped and the loss scale lowered."""
    retry = "retry"
    """The loss scale was lowered and the same batch run again."""
    skip = "skip"
    """The step was skipped."""
    zeroed = "zeroed"
    """The gradients of a second closure call within a step, as SAM makes, counted as zero."""
    raise_ = "raise"
    """The run was stopped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One optimizer step whose gradients were not finite."""

    step: int
    """Optimizer steps tried before this one, skipped ones included."""
    batch_idx: int
    """Index of the batch in its epoch."""
    kind: str
    """`nan` if a gradient held a NaN, else `inf`."""
    parameters: tuple[str, ...]
    """Qualified names of the parameters with a non-finite gradient on any rank, in the optimizer's order."""
    rank: int
    """The first process that had one. After an all-reduce all have it, and this is 0."""
    loss_scale: float
    """What the loss was multiplied by; 1.0 without loss scaling."""
    dtype: str
    """Number format of the forward pass: fp32, tf32, bf16 or fp16."""
    action: Action
    """What was done."""

    def as_dict(self) -> dict[str, Any]:
        """Return the incident as plain JSON values."""
        return {**asdict(self), "parameters": list(self.parameters), "action": self.action.value}

    def __str__(self) -> str:
        """Describe the incident in one line."""
        names = ", ".join(self.parameters[:3])
        more = f" and {len(self.parameters) - 3} more" if len(self.parameters) > 3 else ""
        where = f" on rank {self.rank}" if self.rank else ""
        scale = f" at loss scale {self.loss_scale:,.15g}" if self.loss_scale != 1 else ""
        return f"step {self.step} (batch {self.batch_idx}): {self.kind} gradients in {names}{more}{where}{scale}"
