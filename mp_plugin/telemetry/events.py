"""What can happen to a step, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any


class Action(str, Enum):
    """What was done about gradients that are not finite."""

    backoff = "backoff"
    """The step was skipped and the loss scale lowered."""
    retry = "retry"
    """The loss scale was lowered and the same batch run again."""
    fallback = "fallback"
    """The `culprits` ran in FP32, and the same batch again; they stay there if the policy says so."""
    skip = "skip"
    """The step was skipped."""
    zeroed = "zeroed"
    """The gradients of a second closure call within a step, as SAM makes, counted as zero."""
    raise_ = "raise"
    """The run was stopped."""


class Cause(str, Enum):
    """Why gradients are not finite; an incident has exactly one cause."""

    data = "data"
    """The batch itself holds a NaN or an Inf."""
    weights = "weights"
    """A parameter or a buffer did before the step: training is already lost."""
    forward = "forward"
    """An operator of the forward pass made non-finite numbers from finite ones."""
    loss = "loss"
    """Only the loss times its scale overflows."""
    backward = "backward"
    """The forward pass is finite; an operator of the backward pass overflows."""
    unknown = "unknown"
    """Not found out; the evidence says what is missing."""


class Direction(str, Enum):
    """The pass in which non-finite numbers first appeared."""

    forward = "forward"
    backward = "backward"


Signature = tuple[str | None, str | None, Direction | None]
"""Operator, location and direction of an origin: two incidents that share them have the same one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One run of a step whose gradients were not finite: what, where, why, and what was done.

    The fields from `direction` to `reason` describe the *origin*, the first operator that made non-finite numbers from
    finite ones, and are None where nobody could look for it. What that operator spoiled afterwards is not listed.
    """

    step: int
    """Optimizer steps tried before this one, skipped ones included."""
    batch_idx: int
    """Index of the batch in its epoch; in a window of accumulated batches, of the one to blame if it is known."""
    kind: str
    """`nan` or `inf`: what the origin made; where no origin is known, `nan` if a gradient held a NaN."""
    parameters: tuple[str, ...]
    """Qualified names of the parameters with a non-finite gradient on any rank, in the optimizer's order: victims."""
    rank: int
    """The first process with an origin of its own. Without a trace: with such a gradient, after an all-reduce 0."""
    loss_scale: float
    """What the loss was multiplied by; 1.0 without loss scaling."""
    dtype: str
    """Number format of what the origin made, else of the forward pass: fp32, tf32, bf16, fp16 or fp64."""
    action: Action
    """What was done."""
    cause: Cause = Cause.unknown
    """Why it happened."""
    direction: Direction | None = None
    """The pass in which the origin ran."""
    layer: str | None = None
    """Qualified name of the innermost module that ran the origin, in backward its forward; empty outside of all."""
    operator: str | None = None
    """The origin as torch names it, such as `aten.addmm.default`."""
    location: str | None = None
    """`file:line in function` of the innermost frame of user code; for a backward operator that of its forward."""
    amax_in: float | None = None
    """Largest finite magnitude among the origin's inputs; None if it has no tensor input."""
    amax_out: float | None = None
    """Largest magnitude of the origin's output: Inf, or NaN."""
    reason: str | None = None
    """What the operator did, in plain words: an overflow of its dtype, 0/0, the logarithm of zero."""
    culprits: tuple[str, ...] = ()
    """Qualified names of the smallest set of layers that was proved to cure the batch when run in FP32."""
    traced: bool = False
    """Whether this very incident was traced; if not, its origin is that of an earlier one it repeats, or unknown."""
    cured: bool = False
    """Whether the same batch came out finite afterwards, so that its step was taken."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What the cause was decided by, as plain JSON values."""

    def as_dict(self) -> dict[str, Any]:
        """Return the incident as plain JSON values; NaN and Inf, for which JSON has no number, as `"nan"`, `"inf"`."""
        return {name: json_values(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Incident":
        """Rebuild an incident from what `as_dict` returned; unknown keys are ignored.

        Raises:
            KeyError: if a field that every incident has is missing.
        """
        known = {each.name: values[each.name] for each in fields(cls) if each.name in values}
        known |= {name: float(known[name]) for name in _NUMBERS if known.get(name) is not None}
        return cls(
            **{
                **known,
                "parameters": tuple(values["parameters"]),
                "culprits": tuple(values.get("culprits", ())),
                "action": Action(values["action"]),
                "cause": Cause(values.get("cause", "unknown")),
                "direction": None if values.get("direction") is None else Direction(values["direction"]),
            }
        )

    @property
    def signature(self) -> Signature:
        """What tells its origin from others."""
        return (self.operator, self.location, self.direction)

    def __str__(self) -> str:
        """Describe the incident in one line."""
        names = ", ".join(self.parameters[:3])
        more = f" and {len(self.parameters) - 3} more" if len(self.parameters) > 3 else ""
        where = f" on rank {self.rank}" if self.rank else ""
        scale = f" at loss scale {self.loss_scale:,.15g}" if self.loss_scale != 1 else ""
        spoiled = f"step {self.step} (batch {self.batch_idx}): {self.kind} gradients in {names}{more}{where}{scale}"
        return f"{spoiled}{self._origin()}"

    def _origin(self) -> str:
        if self.operator is None:
            return ""
        if self.cause in (Cause.data, Cause.weights):
            return f"; {self.cause.value}: {self.reason}"
        places = ", ".join(place for place in (self.layer, self.location) if place)
        return f"; {self.cause.value}: {self.operator} made {self.kind}" + (f" in {places}" if places else "")


_NUMBERS = ("loss_scale", "amax_in", "amax_out")


def json_values(value: Any) -> Any:
    """Return a value as plain JSON ones; NaN and Inf, for which JSON has no number, as `"nan"`, `"inf"`.

    What JSON does not know at all is returned as it is.
    """
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_values(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(each) for each in value]
    return value
