"""The digits: splits, augmentation, baseline."""

import itertools

import numpy as np
import torch
from sklearn.datasets import load_digits

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.digits import DigitsDataModule, random_shift, split_rows


def datamodule(split_seed: int = 0) -> DigitsDataModule:
    """A data module, set up."""
    module = DigitsDataModule(split_seed=split_seed)
    module.setup()
    return module


def test_splits_have_all_images_once() -> None:
    splits = datamodule().datasets
    sizes = [len(splits[name]) for name in SPLITS]
    assert sum(sizes) == len(load_digits().data)
    assert [round(size / sum(sizes), 2) for size in sizes] == [0.75, 0.1, 0.15]
    images, labels = splits["train"][:]
    assert images.shape[1:] == (1, 8, 8)
    assert (images.min(), images.max()) == (0, 1)
    assert set(labels.tolist()) == set(range(10))


def test_no_image_is_in_two_splits() -> None:
    seen = [{image.numpy().tobytes() for image in datamodule().datasets[name][:][0]} for name in SPLITS]
    assert not any(a & b for a, b in itertools.combinations(seen, 2))


def test_equal_rows_stay_together() -> None:
    rows = np.repeat(np.arange(100.0)[:, None], 3, axis=0)
    found = [set(rows[members, 0]) for members in split_rows(rows, split_seed=0).values()]
    assert sum(map(len, found)) == 100


def test_splits_depend_on_their_seed_alone() -> None:
    torch.manual_seed(1)
    first = datamodule().datasets["test"][:][0]
    torch.manual_seed(2)
    assert torch.equal(first, datamodule().datasets["test"][:][0])
    assert not torch.equal(first[:100], datamodule(split_seed=1).datasets["test"][:][0][:100])


def test_shift_moves_by_at_most_one_pixel() -> None:
    torch.manual_seed(0)
    image = torch.zeros(2, 8, 8)
    image[0, 3, 4] = 1
    image[1, 5, 2] = 2
    shifted = random_shift(image.expand(200, 2, 8, 8))
    places = set()
    for moved in shifted:
        (row, column) = (moved[0] == 1).nonzero()[0].tolist()
        assert moved[1, row + 2, column - 2] == 2
        assert moved.sum() == 3
        places.add((row - 3, column - 4))
    assert places == {(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)}


def test_majority_baseline() -> None:
    module = datamodule()
    train, test = (module.datasets[name][:][1].tolist() for name in ("train", "test"))
    majority = max(range(10), key=train.count)
    assert module.baselines() == {"majority class": test.count(majority) / len(test)}
