"""A folder of images, one folder per class."""

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import SHARES, SPLIT_NAMES, SPLITS
from {{cookiecutter.package_name}}.data.class_splits import divide
from {{cookiecutter.package_name}}.data.image_check import contents_of, list_images
from {{cookiecutter.package_name}}.data.image_transform import make_transform
from {{cookiecutter.package_name}}.data.images import (
    ImageDataModule,
    ImageFiles,
    LabelledImages,
    require_path,
)
from {{cookiecutter.package_name}}.data.shared_examples import warn_of_shared


class ImageFolderDataModule(ImageDataModule):
    """Images in `path/class/...`, or in `path/train/class/...` with `val` and `test` beside it.

    A split that has no folder is cut from the training images, class by class; files of equal content stay together.

    Args:
        path: the folder.
        image_size: images are resized and cut to this height and width, in pixels.
        num_channels: 3 for colour, 1 for grey.
        batch_size: images per batch, on each rank.
        split_seed: decides which image falls into which split, where there are no folders for them.
        random_crop: smallest share of a training image that a random crop keeps; 1 for no crop.
        flip: mirror every other training image.
        mean: of each channel, from 0 to 1; None for that of photographs.
        std: of each channel; None for that of photographs.
        verify: look at every file before training.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster; None for where there is a GPU.
    """

    def __init__(
        self,
        path: str | None,
        image_size: int = 64,
        num_channels: int = 3,
        batch_size: int = 64,
        split_seed: int = 0,
        random_crop: float = 0.5,
        flip: bool = True,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        verify: bool = True,
        num_workers: int = 0,
        pin_memory: bool | None = None,
    ) -> None:
        transform = make_transform(image_size, num_channels, mean, std, random_crop, flip)
        super().__init__(batch_size, transform, num_workers, pin_memory)
        require_seed(split_seed=split_seed)
        self.path, self.split_seed, self.verify = path, split_seed, verify

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Images of each split.

        Raises:
            ValueError: names the folder or the files with which something is wrong.
        """
        root = require_path(self.path, "a folder with one folder of images per class")
        splits = find_splits(root)
        self.class_names = sorted(splits["train"])
        files, labels, given = [], [], []
        for split, classes in splits.items():
            for name, members in classes.items():
                files += members
                labels += [self.class_names.index(name)] * len(members)
                given += [split] * len(members)
        names = [file.relative_to(root).as_posix() for file in files]
        contents = contents_of(names, ImageFiles(files).read, self.verify)
        rows = {split: [i for i, name in enumerate(given) if name == split] for split in splits}
        warn_of_shared(
            {split: [contents[i] for i in members] for split, members in rows.items()},
            "images",
            lambda split, number: names[rows[split][number]],
        )
        missing = {name: share for name, share in SHARES.items() if name not in rows}
        if missing:
            train = rows["train"]
            own_labels, own_contents = [labels[i] for i in train], [contents[i] for i in train]
            parts = divide(own_labels, own_contents, self.class_names, missing, self.split_seed)
            rows |= {split: [train[i] for i in members] for split, members in parts.items()}
        return {
            split: LabelledImages(
                ImageFiles([files[i] for i in rows[split]]),
                [labels[i] for i in rows[split]],
                [contents[i] for i in rows[split]],
                self.transform,
            )
            for split in SPLITS
        }


def find_splits(root: Path) -> dict[str, dict[str, list[Path]]]:
    """The files of each class, by split; all in `train` where there are no folders for splits.

    Raises:
        ValueError: if something is in the wrong place, or nothing is there.
    """
    folders = subfolders(root)
    named = {folder.name for folder in folders if folder.name in SPLIT_NAMES}
    if "train" in named and (len(named) > 1 or len(folders) == 1):
        other = [folder.name for folder in folders if folder.name not in named]
        if other:
            raise ValueError(f"{root} has folders of splits and, beside them, {', '.join(other)}: move these away.")
        splits: dict[str, dict[str, list[Path]]] = {}
        for folder in folders:
            split = SPLIT_NAMES[folder.name]
            if split in splits:
                raise ValueError(f"{root} has two folders for the split {split}: {', '.join(sorted(named))}.")
            splits[split] = find_classes(folder)
    else:
        splits = {"train": find_classes(root)}
    for split, classes in splits.items():
        unknown = sorted(set(classes) - set(splits["train"]))
        if unknown:
            raise ValueError(f"{root} has classes in {split} that train lacks: {', '.join(unknown)}.")
    if len(splits["train"]) < 2:
        raise ValueError(f"{root} has images of one class only, {', '.join(splits['train'])}: two are needed at least.")
    return splits


def find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class in a folder.

    Raises:
        ValueError: if there are none, or names the classes that have none.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: it must have one folder of images per class.")
    classes = {path.name: list_images(path) for path in subfolders(folder)}
    if not any(classes.values()):
        loose = " (those that lie in it directly have no class)" if list_images(folder) else ""
        raise ValueError(f"{folder} has no images in folders of classes{loose}: put them into {folder}/<class>/.")
    empty = [name for name, files in classes.items() if not files]
    if empty:
        raise ValueError(f"{folder} has classes without images: {', '.join(empty)}. Remove or fill these folders.")
    return classes


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, hidden ones aside, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
