"""A small GPT as a language model."""

from {{cookiecutter.package_name}}.models.gpt import GPT, NUM_BYTES
from {{cookiecutter.package_name}}.tasks.causal_language_model import CausalLanguageModel


class LanguageModel(CausalLanguageModel):
    """A causal language model over bytes or tokens, judged by bits per byte.

    Args:
        block_size: longest sequence, in tokens.
        num_layers: transformer blocks.
        num_heads: attention heads per block.
        width: numbers per position; a multiple of `num_heads`.
        dropout: share of units dropped in training.
        lr: highest learning rate.
        weight_decay: of the weight matrices.
        warmup_fraction: share of the steps in which the learning rate rises.
        vocab_size: number of tokens.
    """

    def __init__(
        self,
        block_size: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        width: int = 128,
        dropout: float = 0.0,
        lr: float = 3e-3,
        weight_decay: float = 0.1,
        warmup_fraction: float = 0.1,
        vocab_size: int = NUM_BYTES,
    ) -> None:
        net = GPT(block_size, num_layers, num_heads, width, dropout, vocab_size)
        super().__init__(net, lr, weight_decay, warmup_fraction)
        # Logged with the whole config by the run itself.
        self.save_hyperparameters(logger=False)
