"""What all image data share: transforms, class names, and pictures of the user's own."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.baselines.majority import majority_accuracy
from {{cookiecutter.package_name}}.data.base import SPLITS, DataModule
from {{cookiecutter.package_name}}.data.fingerprint import fingerprint
from {{cookiecutter.package_name}}.data.image_check import contents_of, list_images
from {{cookiecutter.package_name}}.data.image_transform import ImageTransform, make_transform


class Pictures(Protocol):
    """Pictures by number."""

    def __getitem__(self, index: int, /) -> Image.Image:
        """One picture."""


class ImageFiles:
    """Pictures in files.

    Args:
        paths: the files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __getitem__(self, index: int) -> Image.Image:
        try:
            with Image.open(self.paths[index]) as image:
                image.load()
                return image
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{self.paths[index]} cannot be read as an image: {error}") from error

    def read(self, index: int) -> bytes:
        """The bytes of a file."""
        return self.paths[index].read_bytes()


class LabelledImages(Dataset[tuple[Tensor, int]]):
    """Pictures with the number of their class.

    Args:
        pictures: by number.
        labels: of each picture.
        contents: a hash of each picture.
        transform: makes tensors of them.
    """

    def __init__(
        self, pictures: Pictures, labels: Sequence[int], contents: Sequence[str], transform: ImageTransform
    ) -> None:
        self.pictures, self.transform = pictures, transform
        self.labels, self.contents = list(labels), list(contents)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform.plain(self.pictures[index]), self.labels[index]

    def draw(self, index: int, generator: np.random.Generator) -> tuple[Tensor, int]:
        """An example for training, changed at random."""
        return self.transform.random(self.pictures[index], generator), self.labels[index]


class NamedImages(Dataset[tuple[Tensor, str]]):
    """A user's pictures with their names, as a model takes them.

    Args:
        paths: the files.
        transform: makes tensors of them.
    """

    def __init__(self, paths: Sequence[Path], transform: ImageTransform) -> None:
        self.paths, self.pictures, self.transform = paths, ImageFiles(paths), transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return self.transform.plain(self.pictures[index]), self.paths[index].as_posix()


class ImageDataModule(DataModule):
    """A data module whose examples are pictures of one size, with classes.

    Subclasses fill `class_names` in `make_datasets`, and return `LabelledImages`.

    Args:
        batch_size: images per batch, on each rank.
        transform: makes tensors of pictures.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster; None for where there is a GPU.
    """

    def __init__(
        self, batch_size: int, transform: ImageTransform, num_workers: int = 0, pin_memory: bool | None = None
    ) -> None:
        super().__init__(batch_size, num_workers, pin_memory)
        self.transform = transform
        self.class_names: list[str] = []

    def facts(self) -> dict[str, Any]:
        """Number and names of the classes, and the form of the tensors."""
        return {
            "num_classes": len(self.class_names),
            "class_names": list(self.class_names),
            "num_channels": self.transform.num_channels,
            "image_size": self.transform.image_size,
        }

    def settings_to_keep(self) -> dict[str, Any]:
        """The names of the classes, and all that the transform for testing needs."""
        return {
            "class_names": list(self.class_names),
            "num_channels": self.transform.num_channels,
            "image_size": self.transform.image_size,
            "mean": list(self.transform.mean),
            "std": list(self.transform.std),
        }

    def files_dataset(self, paths: Sequence[Path], kept: Mapping[str, Any]) -> Dataset[Any]:
        """The user's pictures, transformed as in testing, each with its path.

        Args:
            paths: files, and folders with files.
            kept: what `settings_to_keep` returned in the training run.

        Raises:
            ValueError: names the path that does not exist or has no images, or the files that cannot be read.
        """
        files: list[Path] = []
        for path in map(Path, paths):
            if not path.exists():
                raise ValueError(f"{path} does not exist: name image files, or folders with images.")
            found = list_images(path) if path.is_dir() else [path]
            if not found:
                raise ValueError(f"{path} has no images.")
            files += found
        contents_of([str(file) for file in files], ImageFiles(files).read)
        names = ("image_size", "num_channels", "mean", "std")
        return NamedImages(files, make_transform(**{name: kept[name] for name in names}))

    def baselines(self) -> dict[str, float]:
        """Accuracy of the majority class."""
        self.setup()
        return {"majority class": majority_accuracy(*(self._labels(split) for split in ("train", "test")))}

    def fingerprint(self) -> str:
        """A hash of each split's labels and of the pictures' contents."""
        self.setup()
        parts = ["\0".join(self.class_names)]
        for split in SPLITS:
            images = self.datasets[split]
            if not isinstance(images, LabelledImages):  # tensors in memory
                return super().fingerprint()
            rows = [f"{split} {label} {content}" for label, content in zip(images.labels, images.contents, strict=True)]
            parts += sorted(rows)
        return fingerprint(part.encode() for part in parts)

    def _labels(self, split: str) -> NDArray[np.int64]:
        images = self.datasets[split]
        return np.array(images.labels if isinstance(images, LabelledImages) else images[:][1].tolist())


def hash_of(data: bytes) -> str:
    """The SHA-256 hash of some bytes."""
    return hashlib.sha256(data).hexdigest()


def require_path(path: str | None, what: str) -> Path:
    """The folder or file of `data.path`.

    Args:
        path: the setting.
        what: what has to be there, for the message.

    Raises:
        ValueError: if it is not set, or if there is no such thing.
    """
    if not path:
        raise ValueError(f"data.path is missing: add data.path=..., {what}.")
    if not Path(path).exists():
        raise ValueError(f"data.path={path} does not exist: it must be {what}.")
    return Path(path)
