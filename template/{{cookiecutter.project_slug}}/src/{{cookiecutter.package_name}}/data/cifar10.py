"""CIFAR-10 from its binary files."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import SHARES
from {{cookiecutter.package_name}}.data.class_splits import divide
from {{cookiecutter.package_name}}.data.image_transform import make_transform
from {{cookiecutter.package_name}}.data.images import (
    ImageDataModule,
    LabelledImages,
    hash_of,
    require_path,
)
from {{cookiecutter.package_name}}.data.shared_examples import warn_of_shared

TRAIN_FILES = [f"data_batch_{i}.bin" for i in range(1, 6)]
TEST_FILES = ["test_batch.bin"]
NAMES_FILE = "batches.meta.txt"
#: The folder that the archive unpacks to.
FOLDER = "cifar-10-batches-bin"
#: Bytes per record: the label, then 32x32 pixels of red, of green and of blue.
RECORD = 1 + 3 * 32 * 32
#: Of the training images.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFAR10DataModule(ImageDataModule):
    """60,000 photographs of 32x32 pixels in ten classes, 10,000 of them for testing.

    Args:
        path: the folder of cifar-10-binary.tar.gz, unpacked.
        batch_size: images per batch, on each rank.
        split_seed: decides which training images are kept for validation, a tenth of each class.
        random_crop: smallest share of a training image that a random crop keeps; 1 for no crop.
        flip: mirror every other training image.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster; None for where there is a GPU.
    """

    def __init__(
        self,
        path: str | None,
        batch_size: int = 128,
        split_seed: int = 0,
        random_crop: float = 0.6,
        flip: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        super().__init__(batch_size, make_transform(32, 3, MEAN, STD, random_crop, flip), num_workers, pin_memory)
        require_seed(split_seed=split_seed)
        self.path, self.split_seed = path, split_seed

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Images of each split.

        Raises:
            ValueError: names the file, and the record, with which something is wrong.
        """
        folder = require_path(self.path, f"the folder {FOLDER} of cifar-10-binary.tar.gz")
        folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        self.class_names = read_names(folder / NAMES_FILE)
        train, test = (
            np.concatenate([read_records(folder / name, len(self.class_names)) for name in names])
            for names in (TRAIN_FILES, TEST_FILES)
        )
        contents = {"train": contents_of_records(train), "test": contents_of_records(test)}
        warn_of_shared(contents, "images", lambda _, record: f"{folder / TEST_FILES[0]}, record {record}")
        shares = {"val": SHARES["val"]}
        rows = divide(train[:, 0].tolist(), contents["train"], self.class_names, shares, self.split_seed)
        records = {"train": train[rows["train"]], "val": train[rows["val"]], "test": test}
        return {split: self._examples(found) for split, found in records.items()}

    def _examples(self, records: NDArray[np.uint8]) -> LabelledImages:
        pictures = ArrayPictures(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        return LabelledImages(pictures, records[:, 0].tolist(), contents_of_records(records), self.transform)


class ArrayPictures:
    """Pictures in memory.

    Args:
        pixels: of shape [images, height, width, channels].
    """

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = np.ascontiguousarray(pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


def read_names(file: Path) -> list[str]:
    """The names of the classes, one per line.

    Raises:
        ValueError: if the file is missing or empty.
    """
    require_file(file)
    names = file.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{file} is empty: it must name the classes, one per line.")
    return names


def read_records(file: Path, num_classes: int) -> NDArray[np.uint8]:
    """Labels and pixels, of shape [images, RECORD].

    Raises:
        ValueError: if the file is missing or cut off, or names the first record whose label is out of range.
    """
    require_file(file)
    data = np.fromfile(file, dtype=np.uint8)
    if not len(data) or len(data) % RECORD:
        raise ValueError(f"{file} has {len(data)} bytes, no multiple of {RECORD}: it is cut off, or in another form.")
    records = data.reshape(-1, RECORD)
    wrong = np.flatnonzero(records[:, 0] >= num_classes)
    if len(wrong):
        label = records[wrong[0], 0]
        raise ValueError(f"{file}, record {wrong[0]}, has the label {label}: accepted are 0 to {num_classes - 1}.")
    return records


def contents_of_records(records: NDArray[np.uint8]) -> list[str]:
    """A hash of the pixels of each record."""
    return [hash_of(record[1:].tobytes()) for record in records]


def require_file(file: Path) -> None:
    """Check that a file of the data set is there.

    Raises:
        ValueError: names it, and what the folder seems to be instead.
    """
    if not file.is_file():
        pickled = (file.parent / file.stem).exists()
        hint = "this is the Python version; get the binary one" if pickled else "unpack all of cifar-10-binary.tar.gz"
        raise ValueError(f"{file} is missing: {hint}.")
