import pytest
import torch

from mp_plugin.formats import FORMATS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    assert limits.max == (2 - 2.0**-limits.mantissa_bits) * 2.0**bias
    assert limits.smallest_normal == 2.0 ** (1 - bias)
    assert limits.smallest_subnormal == limits.smallest_normal * 2.0**-limits.mantissa_bits
