"""What was seen of one layer in one sampled step, as plain data."""

import math
from dataclasses import dataclass
from enum import Enum

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.tensor_stats import TensorStats


class TensorKind(str, Enum):
    """Which values of a layer."""

    activation = "activation"
    """What it puts out."""
    activation_gradient = "activation_gradient"
    """The gradient of the loss with respect to what it puts out."""
    parameter_gradient = "parameter_gradient"
    """The gradients of its own parameters, not of those of layers below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSample:
    """The values of one kind of one layer in one step, of all its calls, batches and ranks together.

    All values are true ones: gradients are divided by the loss scale. What the statistics say of the compute dtype
    (`flushed`, `subnormal`, `saturated`, `headroom_bits`) holds for the values times the loss scale, as computed.
    """

    step: int
    """Optimizer steps tried before this one, skipped ones included."""
    layer: str
    """Qualified name, without wrappers."""
    kind: TensorKind
    dtype: str
    """Number format of the tensors themselves, such as `fp16`; of several the least precise."""
    compute_dtype: str
    """Number format that the run computes in, a key of `FORMATS`."""
    loss_scale: float
    """What the values were multiplied by when they were computed: 1.0 for activations and without loss scaling."""
    stats: TensorStats

    @property
    def headroom_bits(self) -> float | None:
        r"""$\log_2(\mathrm{max} / (\mathrm{scale} \cdot \mathrm{amax}))$: doublings until the largest value overflows.

        Negative beyond the compute dtype's largest value, which a layer in FP32 may be; None without a finite value
        other than zero.
        """
        if not self.stats.amax:
            return None
        mantissa, exponent = math.frexp(self.stats.amax)
        scale, scale_exponent = math.frexp(self.loss_scale)
        largest, largest_exponent = math.frexp(FORMATS[self.compute_dtype].max)
        # By parts, as the quotient of an fp32 maximum and a tiny amax has no double of its own.
        return math.log2(largest / (mantissa * scale)) + largest_exponent - exponent - scale_exponent
