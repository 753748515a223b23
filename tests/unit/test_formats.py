import pytest
import torch

from mp_plugin.formats import FORMATS

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


@pytest.mark.parametrize("name", DTYPES)
def test_agrees_with_torch(name: str) -> None:
    limits, info = FORMATS[name], torch.finfo(DTYPES[name])
    assert limits.max == info.max
    assert limits.smallest_normal == info.smallest_normal
    assert limits.smallest_subnormal == info.smallest_normal * info.eps
    assert 2.0**-limits.mantissa_bits == info.eps


@pytest.mark.parametrize("name", FORMATS)
def test_bits_explain_the_limits(name: str) -> None:
    limits = FORMATS[name]
    bias = 2 ** (limits.exponent_bits - 1) - 1
    # Where there is no Inf, the highest exponent is one of numbers too, and only its last code is NaN.
    has_inf = name != "e4m3"
    last_mantissa = 2**limits.mantissa_bits - (1 if has_inf else 2)
    assert limits.max == (1 + last_mantissa * 2.0**-limits.mantissa_bits) * 2.0 ** (bias if has_inf else bias + 1)
    assert limits.smallest_normal == 2.0 ** (1 - bias)
    assert limits.smallest_subnormal == limits.smallest_normal * 2.0**-limits.mantissa_bits
