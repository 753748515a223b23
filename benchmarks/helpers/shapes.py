"""Shapes of gradients: of four networks as published, and of two extremes."""

from math import prod

from helpers.models import GPT2_XL, MODELS, parameter_shapes

Shape = tuple[int, ...]

NETWORKS = {
    "GPT-2 small": MODELS["GPT"]["full"],
    "GPT-2 XL": GPT2_XL,
    "ResNet-50": MODELS["ResNet-50"]["full"],
    "ViT-B/16": MODELS["ViT-B/16"]["full"],
}


def network(name: str) -> list[Shape]:
    """Return the shapes of all parameters of a network."""
    return [tuple(shape) for shape in parameter_shapes(NETWORKS[name])]


def many_tiny() -> list[Shape]:
    """Return ten thousand vectors of one to a few hundred numbers, most of them odd in length."""
    return [(1 + (index * 37) % 257,) for index in range(10_000)]


def one_huge(numbers: int) -> list[Shape]:
    """Return one vector."""
    return [(numbers,)]


def num_values(shapes: list[Shape]) -> int:
    """Count the numbers in all tensors of these shapes."""
    return sum(map(prod, shapes))
