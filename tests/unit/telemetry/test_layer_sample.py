import math

import pytest

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.tensor_stats import TensorStats


def sample(amax: float, compute_dtype: str = "fp16", loss_scale: float = 1.0) -> LayerSample:
    return LayerSample(
        step=0,
        layer="head",
        kind=TensorKind.activation_gradient,
        dtype="fp16",
        compute_dtype=compute_dtype,
        loss_scale=loss_scale,
        stats=TensorStats(numel=1, amax=amax),
    )


@pytest.mark.parametrize("compute_dtype", FORMATS)
@pytest.mark.parametrize("loss_scale", [1.0, 1024.0, 3.0])
@pytest.mark.parametrize("amax", [1.0, 0.3, 65504.0, 1e-30])
def test_headroom_is_the_logarithm_of_what_is_left(compute_dtype: str, loss_scale: float, amax: float) -> None:
    expected = math.log2(FORMATS[compute_dtype].max) - math.log2(amax) - math.log2(loss_scale)
    assert sample(amax, compute_dtype, loss_scale).headroom_bits == pytest.approx(expected, abs=1e-12)


def test_headroom_is_exact_at_the_end_and_beyond_it() -> None:
    assert sample(65504.0).headroom_bits == 0.0
    assert sample(65504.0, loss_scale=4.0).headroom_bits == -2.0
    assert sample(2.0**-1060, "fp32").headroom_bits == pytest.approx(128 + 1060)  # where a quotient has no double


def test_headroom_needs_a_value() -> None:
    assert sample(0.0).headroom_bits is None
