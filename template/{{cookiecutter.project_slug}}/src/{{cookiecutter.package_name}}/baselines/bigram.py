"""Predict a byte from the one before it."""

import numpy as np
from numpy.typing import NDArray

#: Bytes that are counted at a time, so that a large text does not fill the memory.
CHUNK = 1 << 22


def bigram_bits_per_byte(train: NDArray[np.uint8], test: NDArray[np.uint8], strength: float = 1.0) -> float:
    """Bits per byte of a byte bigram model, over every byte of the test sequences but the first.

    P(b | a) = (n(a, b) + s P(b)) / (n(a) + s): counts of the training sequences, smoothed towards the single byte
    frequencies P(b), which themselves start from one count per byte value.

    Args:
        train: byte values of shape [sequences, time].
        test: byte values of shape [sequences, time].
        strength: s, the weight of the smoothing in counts.
    """
    pairs = count_pairs(train)
    single = pairs.sum(axis=0) + 1
    probability = (pairs + strength * single / single.sum()) / (pairs.sum(axis=1, keepdims=True) + strength)
    occurrences = count_pairs(test)
    return float(-(occurrences * np.log2(probability)).sum() / occurrences.sum())


def count_pairs(sequences: NDArray[np.uint8]) -> NDArray[np.float64]:
    """How often each byte follows each other one, [256, 256]."""
    counts = np.zeros(256 * 256)
    for row in sequences:
        for start in range(0, len(row) - 1, CHUNK):
            part = row[start : start + CHUNK + 1].astype(np.int64)
            counts += np.bincount(256 * part[:-1] + part[1:], minlength=256 * 256)
    return counts.reshape(256, 256)
