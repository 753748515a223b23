"""Small networks of three kinds, in which a fault can be planted at any linear layer or convolution.

Their activation scales with its input, and lets gradients through where that is zero.
"""

import torch
from torch import Tensor, nn

from tests.helpers.faults.batches import CLASSES, TOKENS
from tests.helpers.faults.training import Block, run

WIDTH = 16


class MLP(nn.Module):
    """Images of 8 by 8 through a stem, eight hidden layers and a head."""

    def __init__(self, depth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(64, WIDTH)
        self.hidden = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(depth))
        self.act = nn.LeakyReLU()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.act(self.stem(images.flatten(1)))
        for layer in self.hidden:
            x = self.act(layer(x))
        return self.head(x)  # type: ignore[no-any-return]


class ConvBlock(Block):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.LeakyReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.act(self.conv1(self.bn(x))))  # type: ignore[no-any-return]


class CNN(nn.Module):
    """Images of 8 by 8 through a stem, four residual blocks and a head."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(ConvBlock(8) for _ in range(depth))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks:
            x = run(block, x)
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.qkv(x).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """The other half of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.act = nn.LeakyReLU()
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))  # type: ignore[no-any-return]


class TransformerBlock(Block):
    """Attention and perceptron, each behind a norm and beside the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), Perceptron()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Tokens through twelve blocks with their norms in front; the mean over positions is classified."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.blocks = nn.ModuleList(TransformerBlock() for _ in range(depth))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = run(block, x)
        return self.head(torch.mean(self.norm(x), dim=1))  # type: ignore[no-any-return]
