"""From a picture to the tensor that a model takes."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from {{cookiecutter.package_name}}.checks import require_count, require_positive

#: Mean and standard deviation of the channels of photographs (ImageNet), and of their grey versions.
PHOTOS = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}


@dataclass(frozen=True)
class ImageTransform:
    """How pictures become float tensors [channels, height, width].

    Args:
        image_size: height and width in pixels.
        num_channels: 3 for colour, 1 for grey.
        mean: of each channel, on a scale from 0 to 1; subtracted.
        std: of each channel; divided by.
        random_crop: in training, the smallest share of a picture's area that a random crop keeps; 1 for no crop.
        flip: in training, mirror every other picture.
    """

    image_size: int
    num_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    random_crop: float = 1.0
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != self.num_channels:
                raise ValueError(f"{name}={list(values)} must have one number per channel, {self.num_channels}.")

    def plain(self, image: Image.Image) -> Tensor:
        """For testing: the largest square in the middle, resized."""
        size = (self.image_size, self.image_size)
        return self._to_tensor(ImageOps.fit(self._convert(image), size, Image.Resampling.BILINEAR))

    def random(self, image: Image.Image, generator: np.random.Generator) -> Tensor:
        """For training: a random part of the picture, perhaps mirrored."""
        if self.random_crop == 1:
            tensor = self.plain(image)
        else:
            converted = self._convert(image)
            box = random_box(converted.size, self.random_crop, generator)
            size = (self.image_size, self.image_size)
            tensor = self._to_tensor(converted.resize(size, Image.Resampling.BILINEAR, box))
        return tensor.flip(-1) if self.flip and generator.random() < 0.5 else tensor

    def _convert(self, image: Image.Image) -> Image.Image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits per pixel, which pillow would clip at 255
            image = Image.fromarray((np.asarray(image).astype(np.int64) // 257).clip(0, 255).astype(np.uint8))
        if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
            image = image.convert("RGBA")  # the same colours, without a warning from pillow
        return image.convert("RGB" if self.num_channels == 3 else "L")

    def _to_tensor(self, image: Image.Image) -> Tensor:
        pixels = np.asarray(image, dtype=np.float32).reshape(self.image_size, self.image_size, self.num_channels)
        scaled = (pixels / 255 - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))


def random_box(
    size: tuple[int, int], smallest: float, generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A random part of a picture, of 3:4 to 4:3 times its proportions, as left, upper, right and lower edge.

    Args:
        size: width and height of the picture.
        smallest: share of the area that is kept at least.
        generator: where the random numbers come from.
    """
    area, stretch = generator.uniform(smallest, 1), math.exp(generator.uniform(-1, 1) * math.log(4 / 3))
    width = size[0] * min(1.0, math.sqrt(area * stretch))
    height = size[1] * min(1.0, math.sqrt(area / stretch))
    left, upper = generator.uniform(0, size[0] - width), generator.uniform(0, size[1] - height)
    return left, upper, left + width, upper + height


def make_transform(
    image_size: int, num_channels: int, mean: Any = None, std: Any = None, random_crop: float = 1.0, flip: bool = False
) -> ImageTransform:
    """A transform from plain settings.

    Raises:
        ValueError: if one is out of range.
    """
    require_count(image_size=image_size)
    require_positive(image_size=image_size, random_crop=random_crop)
    if num_channels not in PHOTOS:
        raise ValueError(f"num_channels={num_channels} is out of range: accepted are 3 (colour) and 1 (grey).")
    if random_crop > 1:
        raise ValueError(f"random_crop={random_crop} is out of range: it must be greater than 0 and at most 1.")
    photos = PHOTOS[num_channels]
    mean, std = (tuple(map(float, given or usual)) for given, usual in zip((mean, std), photos, strict=True))
    if min(std) <= 0:
        raise ValueError(f"std={list(std)} is out of range: it must be greater than 0.")
    return ImageTransform(image_size, num_channels, mean, std, float(random_crop), flip)
