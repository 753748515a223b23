"""The text baselines against answers known otherwise."""

import numpy as np
import pytest

from {{cookiecutter.package_name}}.baselines.bigram import bigram_bits_per_byte
from {{cookiecutter.package_name}}.baselines.majority import majority_accuracy
from {{cookiecutter.package_name}}.baselines.tfidf import tfidf_accuracy


def test_bigram_knows_a_cycle() -> None:
    cycle = np.tile(np.arange(4, dtype=np.uint8), 1000)[None]
    assert bigram_bits_per_byte(cycle, cycle[:, :100]) < 0.01


def test_bigram_of_independent_bytes_is_their_entropy() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.choice(4, size=(1, n), p=[0.5, 0.25, 0.125, 0.125]).astype(np.uint8) for n in (100_000, 20_000))
    assert bigram_bits_per_byte(train, test) == pytest.approx(1.75, abs=0.02)


def test_bigram_probabilities_sum_to_one() -> None:
    train = np.array([[1, 2, 1, 3]], dtype=np.uint8)
    after_one = np.array([[1, byte] for byte in range(256)], dtype=np.uint8)
    bits = [bigram_bits_per_byte(train, pair[None]) for pair in after_one]
    assert sum(2**-b for b in bits) == pytest.approx(1.0)


def test_tfidf_tells_texts_apart_and_majority_does_not() -> None:
    texts, labels = ["red apple", "green apple", "fast car", "slow car"], [0, 0, 1, 1]
    assert tfidf_accuracy(texts, labels, ["an apple", "a car"], [0, 1]) == 1.0
    assert majority_accuracy(np.array([0, 1, 1]), np.array([0, 1, 1, 0])) == 0.5
