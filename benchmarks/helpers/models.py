"""The three models that step times are measured on, in plain PyTorch: GPT-2, ResNet-50 and ViT-B/16.

Each in three sizes of one structure: `full` has the published shapes and is for a GPU, `small` takes tens of
milliseconds a step in bf16 on a few CPU cores, and `tiny` does so in fp16, which most CPUs only emulate. The data are
random and made once, on the device: loading is not what is measured.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = ("full", "small", "tiny")


class Block(nn.Module):
    """A transformer block that normalises first."""

    def __init__(self, width: int, heads: int, *, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.is_causal = heads, is_causal
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """A decoder in the shapes of GPT-2, its head tied to the embedding of tokens."""

    def __init__(self, *, width: int, depth: int, heads: int, vocabulary: int, context: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, is_causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.tokens, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.tokens(text) + self.places.weight[: text.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


class ViT(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, *, width: int, depth: int, heads: int, image: int, patch: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, is_causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


class Bottleneck(nn.Module):
    """Three convolutions around a shortcut; the middle one strides."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((channels, width, 1), (width, width, 3), (width, 4 * width, 1))
        strides = (1, stride, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, size, stride=step, padding=size // 2, bias=False)
            for (a, b, size), step in zip(sizes, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _ in sizes)
        nn.init.zeros_(self.norms[-1].weight)  # a block begins as its shortcut, so that gradients do not grow
        self.shortcut = nn.Sequential()
        if stride > 1 or channels != 4 * width:
            conv = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if index == 0 else F.relu(x)))
        return F.relu(x + shortcut)


class ResNet(nn.Module):
    """A residual network of bottlenecks."""

    def __init__(self, *, width: int, blocks: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        channels, layers = width, []
        for stage, number in enumerate(blocks):
            for index in range(number):
                layers.append(Bottleneck(channels, width << stage, 2 if stage and not index else 1))
                channels = 4 * (width << stage)
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(images)).mean(dim=(2, 3)))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network by its shapes, and the batch that it is trained on."""

    network: type[nn.Module]
    shapes: dict[str, Any]
    batch_size: int
    sequence: int = 0
    """Tokens of a sample; 0 for images."""
    image: int = 0
    """Pixels along a side of an image; 0 for text."""

    def build(self, device: Any = "cpu") -> nn.Module:
        """Return the network with the weights of seed 0; convolutional ones in the channels-last format."""
        torch.manual_seed(0)
        with torch.device(device):
            network = self.network(**self.shapes)
        return network.to(memory_format=torch.channels_last) if self.network is ResNet else network

    def batch(self, device: Any = "cpu") -> list[Tensor]:
        """Return random inputs and their classes."""
        generator = torch.Generator(device).manual_seed(0)
        if self.sequence:
            size = (self.batch_size, self.sequence + 1)
            text = torch.randint(self.shapes["vocabulary"], size, generator=generator, device=device)
            return [text[:, :-1], text[:, 1:]]
        size = (self.batch_size, 3, self.image, self.image)
        images = torch.randn(size, generator=generator, device=device)
        if self.network is ResNet:
            images = images.to(memory_format=torch.channels_last)
        classes = torch.randint(self.shapes["classes"], (self.batch_size,), generator=generator, device=device)
        return [images, classes]

    @property
    def items(self) -> tuple[int, str]:
        """What throughput counts: how many of what a step trains on."""
        return (self.batch_size * self.sequence, "tokens") if self.sequence else (self.batch_size, "images")


def loss(network: Callable[[Tensor], Tensor], batch: list[Tensor]) -> Tensor:
    """Return the cross-entropy of one batch, in fp32."""
    inputs, targets = batch
    return F.cross_entropy(network(inputs).float().flatten(0, -2), targets.flatten())


def _gpt(width: int, depth: int, heads: int, vocabulary: int, batch_size: int, sequence: int) -> Model:
    shapes = {"width": width, "depth": depth, "heads": heads, "vocabulary": vocabulary, "context": sequence}
    return Model(network=GPT, shapes=shapes, batch_size=batch_size, sequence=sequence)


def _resnet(width: int, blocks: tuple[int, ...], batch_size: int, image: int) -> Model:
    shapes = {"width": width, "blocks": blocks, "classes": 1000}
    return Model(network=ResNet, shapes=shapes, batch_size=batch_size, image=image)


def _vit(width: int, depth: int, heads: int, batch_size: int, image: int) -> Model:
    shapes = {"width": width, "depth": depth, "heads": heads, "image": image, "patch": 16, "classes": 1000}
    return Model(network=ViT, shapes=shapes, batch_size=batch_size, image=image)


MODELS: dict[str, dict[str, Model]] = {
    "GPT": {
        "full": _gpt(768, 12, 12, 50257, batch_size=8, sequence=1024),
        "small": _gpt(128, 6, 4, 2048, batch_size=4, sequence=64),
        "tiny": _gpt(64, 6, 2, 512, batch_size=2, sequence=64),
    },
    "ResNet-50": {
        "full": _resnet(64, (3, 4, 6, 3), batch_size=64, image=224),
        "small": _resnet(16, (3, 4, 6, 3), batch_size=4, image=64),
        "tiny": _resnet(4, (3, 4, 6, 3), batch_size=2, image=32),
    },
    "ViT-B/16": {
        "full": _vit(768, 12, 12, batch_size=64, image=224),
        "small": _vit(128, 6, 4, batch_size=4, image=96),
        "tiny": _vit(64, 6, 2, batch_size=1, image=64),
    },
}
GPT2_XL = _gpt(1600, 48, 25, 50257, batch_size=1, sequence=1024)
"""For its shapes: 1.56 billion parameters in 580 tensors."""


def parameter_shapes(model: Model) -> list[torch.Size]:
    """Return the shapes of a model's parameters without making them."""
    return [parameter.shape for parameter in model.build("meta").parameters()]
