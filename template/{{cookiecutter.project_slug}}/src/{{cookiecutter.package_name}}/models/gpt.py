"""A small GPT over bytes or tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from {{cookiecutter.package_name}}.checks import require_positive

NUM_BYTES = 256


class GPT(nn.Module):
    """A pre-norm causal transformer with learned positions and tied input and output embeddings.

    Args:
        block_size: longest sequence, in tokens.
        num_layers: transformer blocks.
        num_heads: attention heads per block.
        width: numbers per position; a multiple of `num_heads`.
        dropout: share of units dropped in training.
        vocab_size: number of tokens; by default they are bytes.

    Raises:
        ValueError: if `num_heads` does not divide `width`, or there is no token.
    """

    def __init__(
        self,
        block_size: int,
        num_layers: int,
        num_heads: int,
        width: int,
        dropout: float,
        vocab_size: int = NUM_BYTES,
    ) -> None:
        super().__init__()
        require_positive(vocab_size=vocab_size)
        if width % num_heads:
            raise ValueError(f"width={width} cannot be shared by num_heads={num_heads}: it must be a multiple of it.")
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(block_size, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[Block(num_heads, width, dropout) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)
        self.apply(_init)
        # Residual branches add up over the depth, so each starts smaller (GPT-2).
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.2.weight")):
                nn.init.normal_(parameter, std=0.02 / (2 * num_layers) ** 0.5)
        self.head.weight = self.token_embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, [batch, time, vocab_size], for ids [batch, time].

        Raises:
            ValueError: if the sequences are longer than `block_size`.
        """
        time = tokens.shape[1]
        if time > self.block_size:
            raise ValueError(f"A sequence of {time} tokens came in, and the model reads at most {self.block_size}.")
        x = self.token_embedding(tokens) + self.position_embedding(torch.arange(time, device=tokens.device))
        return self.head(self.norm(self.blocks(self.dropout(x))))


class Block(nn.Module):
    """Attention, then a perceptron, each on normalised input and added to it."""

    def __init__(self, num_heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CausalAttention(num_heads, width, dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out: [batch, time, width]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class CausalAttention(nn.Module):
    """Multi-head attention to this and earlier positions."""

    def __init__(self, num_heads: int, width: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out: [batch, time, width]."""
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))


def _init(module: nn.Module) -> None:
    """Small normal weights and zero biases (GPT-2)."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
