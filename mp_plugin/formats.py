"""Number formats as data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One binary floating-point format."""

    exponent_bits: int
    mantissa_bits: int
    max: float
    """Largest finite value."""
    smallest_normal: float
    """Smallest positive value with full precision."""
    smallest_subnormal: float
    """Smallest positive value; anything at or below half of it rounds to zero."""


FORMATS = {
    "fp32": Format(
        exponent_bits=8,
        mantissa_bits=23,
        max=(2 - 2**-23) * 2.0**127,
        smallest_normal=2.0**-126,
        smallest_subnormal=2.0**-149,
    ),
    # NVIDIA's matrix units: the range of fp32 with the mantissa of fp16.
    "tf32": Format(
        exponent_bits=8,
        mantissa_bits=10,
        max=(2 - 2**-10) * 2.0**127,
        smallest_normal=2.0**-126,
        smallest_subnormal=2.0**-136,
    ),
    "bf16": Format(
        exponent_bits=8,
        mantissa_bits=7,
        max=(2 - 2**-7) * 2.0**127,
        smallest_normal=2.0**-126,
        smallest_subnormal=2.0**-133,
    ),
    "fp16": Format(
        exponent_bits=5,
        mantissa_bits=10,
        max=65504.0,
        smallest_normal=2.0**-14,
        smallest_subnormal=2.0**-24,
    ),
    # The OCP 8-bit formats (2023), as torch.float8_e4m3fn and torch.float8_e5m2; e4m3 has a NaN but no Inf.
    "e4m3": Format(
        exponent_bits=4,
        mantissa_bits=3,
        max=448.0,
        smallest_normal=2.0**-6,
        smallest_subnormal=2.0**-9,
    ),
    "e5m2": Format(
        exponent_bits=5,
        mantissa_bits=2,
        max=57344.0,
        smallest_normal=2.0**-14,
        smallest_subnormal=2.0**-16,
    ),
}
