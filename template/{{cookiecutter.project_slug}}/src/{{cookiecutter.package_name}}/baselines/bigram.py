"""Predict a byte from the one before it."""

import numpy as np
from numpy.typing import NDArray


def bigram_bits_per_byte(train: NDArray[np.uint8], test: NDArray[np.uint8], strength: float = 1.0) -> float:
    """Bits per byte of a byte bigram model, over every byte of the test sequences but the first.

    P(b | a) = (n(a, b) + s P(b)) / (n(a) + s): counts of the training sequences, smoothed towards the single byte
    frequencies P(b), which themselves start from one count per byte value.

    Args:
        train: byte values of shape [sequences, time].
        test: byte values of shape [sequences, time].
        strength: s, the weight of the smoothing in counts.
    """
    pairs = np.zeros((256, 256))
    np.add.at(pairs, (train[:, :-1], train[:, 1:]), 1)
    single = pairs.sum(axis=0) + 1
    probability = (pairs + strength * single / single.sum()) / (pairs.sum(axis=1, keepdims=True) + strength)
    return float(-np.log2(probability[test[:, :-1], test[:, 1:]]).mean())
