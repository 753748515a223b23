"""What a page carries along: compressed, as text that needs no escaping."""

import base64
import gzip
import json
from typing import Any

import numpy as np

from mp_plugin.report.grid import Floats

LEVEL = 6
"""Of gzip: 9 takes four times as long for one percent less."""

SPARE_BITS = 11
"""Of fp32's 23 mantissa bits, left out: a number is right to 1/8192 of itself, that is to almost four digits."""


def packed(content: bytes) -> str:
    """Return gzip in base64; the same for the same content."""
    return base64.b64encode(gzip.compress(content, LEVEL, mtime=0)).decode()


def packed_data(values: dict[str, Any], arrays: dict[str, Floats]) -> str:
    """Return plain JSON values and arrays of numbers for `unpackData` of `data.js`.

    Before they are compressed: the length of the JSON text in 8 digits, the text, then each array in fp32 without its
    spare bits, the first byte of every number first, then the second and so on, which compresses best.
    """
    listed = [{"name": name, "length": int(array.size)} for name, array in arrays.items()]
    text = json.dumps({**values, "arrays": listed}, allow_nan=False).encode()
    return packed(b"%08d" % len(text) + text + b"".join(_bytes(array) for array in arrays.values()))


def _bytes(array: Floats) -> bytes:
    with np.errstate(over="ignore"):  # beyond fp32 it is infinite, and shown so
        bits = np.ascontiguousarray(array, "<f4").reshape(-1).view("<u4")
    half = np.uint32(1 << (SPARE_BITS - 1))
    rounded = (bits + half) & np.uint32(0xFFFFFFFF << SPARE_BITS & 0xFFFFFFFF)
    # The largest numbers would be rounded up to infinity, and NaN to zero.
    exact = (bits & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    beyond = (rounded & np.uint32(0x7FFFFFFF)) == np.uint32(0x7F800000)
    rounded = np.where(exact, bits & np.uint32(0xFFC00000), np.where(beyond, bits & ~(half * 2 - 1), rounded))
    return bytes(rounded.astype("<u4").view("u1").reshape(-1, 4).T[::-1].tobytes())
