"""Pictures to tensors."""

import numpy as np
import torch
from PIL import Image

from {{cookiecutter.package_name}}.data.image_transform import make_transform, random_box

PLAIN = {"mean": [0.0], "std": [1.0]}


def test_the_middle_is_kept() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = np.arange(16).reshape(4, 4)
    tensor = make_transform(4, 1, **PLAIN).plain(Image.fromarray(pixels))
    assert torch.allclose(tensor[0] * 255, torch.arange(16.0).view(4, 4), atol=1e-4)


def test_colours_are_normalised() -> None:
    image = Image.new("RGBA", (5, 5), (255, 0, 51, 7))
    tensor = make_transform(2, 3, [0.5, 0.5, 0.1], [0.5, 0.25, 0.1]).plain(image)
    assert torch.allclose(tensor[:, 0, 0], torch.tensor([1.0, -2.0, 1.0]), atol=1e-5)


def test_sixteen_bits_are_scaled() -> None:
    image = Image.fromarray(np.full((2, 2), 32896, np.uint16))
    assert torch.allclose(make_transform(2, 1, **PLAIN).plain(image), torch.tensor(128 / 255))


def test_transparent_palettes_keep_their_colours() -> None:
    opaque = Image.new("P", (4, 4))
    opaque.putpalette([200, 100, 50, 0, 0, 0])
    clear = opaque.copy()
    clear.info["transparency"] = bytes([0, 255])  # of which pillow warns, and warnings are errors here
    plain = make_transform(4, 3).plain
    assert torch.equal(plain(clear), plain(opaque))


def test_rotation_of_a_camera_is_undone() -> None:
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    image.getexif()[0x0112] = 3  # taken upside down
    assert make_transform(2, 1, **PLAIN).plain(image).tolist() == [[[1, 0], [1, 0]]]


def test_random_boxes_lie_within() -> None:
    generator, areas = np.random.default_rng(0), []
    for _ in range(500):
        left, upper, right, lower = random_box((30, 20), 0.25, generator)
        assert 0 <= left < right <= 30
        assert 0 <= upper < lower <= 20
        areas.append((right - left) * (lower - upper) / 600)
    assert min(areas) > 0.2
    assert 0.55 < np.mean(areas) < 0.65


def test_flips_half_of_the_time() -> None:
    transform = make_transform(2, 1, flip=True, **PLAIN)
    image = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    generator = np.random.default_rng(0)
    left = sum(bool(transform.random(image, generator)[0, 0, 0] == 1) for _ in range(200))
    assert 80 < left < 120
