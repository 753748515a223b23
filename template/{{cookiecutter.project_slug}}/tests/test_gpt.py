"""The language model's network."""

import math

import pytest
import torch

from {{cookiecutter.package_name}}.models.gpt import GPT
from {{cookiecutter.package_name}}.tasks.language_model import LanguageModel


def gpt() -> GPT:
    """A tiny network."""
    torch.manual_seed(0)
    return GPT(block_size=16, num_layers=2, num_heads=2, width=32, dropout=0.0).eval()


def test_a_byte_has_no_influence_on_earlier_predictions() -> None:
    net, tokens = gpt(), torch.randint(0, 256, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 256
    before, after = net(tokens), net(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_untrained_loss_is_that_of_guessing() -> None:
    torch.manual_seed(0)
    task = LanguageModel(block_size=16, num_layers=2, num_heads=2, width=32)
    batch = {"tokens": torch.randint(0, 256, (8, 17)), "num_bytes": torch.full((8,), 16)}
    bits = task.predict_step(batch, 0)["bits_per_byte"]
    assert bits.mean().item() == pytest.approx(math.log2(256), abs=0.2)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="width=30 cannot be shared by num_heads=4"):
        GPT(block_size=16, num_layers=1, num_heads=4, width=30, dropout=0.0)
    with pytest.raises(ValueError, match="vocab_size=0 is out of range"):
        GPT(block_size=16, num_layers=1, num_heads=4, width=32, dropout=0.0, vocab_size=0)
    with pytest.raises(ValueError, match="A sequence of 17 tokens came in, and the model reads at most 16"):
        gpt()(torch.zeros(1, 17, dtype=torch.long))
