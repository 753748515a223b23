"""Images from Hugging Face `datasets`, from the hub or from files."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from torch.utils.data import Dataset

from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import SHARES, SPLITS
from {{cookiecutter.package_name}}.data.class_splits import divide
from {{cookiecutter.package_name}}.data.hf_dataset import files_by_split, load_splits
from {{cookiecutter.package_name}}.data.image_check import contents_of
from {{cookiecutter.package_name}}.data.image_folder import find_splits
from {{cookiecutter.package_name}}.data.image_transform import make_transform
from {{cookiecutter.package_name}}.data.images import ImageDataModule, LabelledImages
from {{cookiecutter.package_name}}.data.shared_examples import warn_of_shared
from {{cookiecutter.package_name}}.data.visible_files import visible_files
from {{cookiecutter.package_name}}.packages import import_extra


class HFImagesDataModule(ImageDataModule):
    """Images and labels from two columns of a data set.

    A split that the data set lacks is cut from the training images, class by class; equal images stay together.

    Args:
        path: a name on the hub, a folder made by `save_to_disk`, a folder or file of parquet, or a folder of images.
        subset: of a data set on the hub that has several.
        image_column: the column with the images.
        label_column: the column with the classes: numbers or names.
        train_split: what the data set calls it; None: train.
        val_split: None: validation, or what else it is usually called; "none": some of the training images.
        test_split: None: test; "none": some of the training images.
        cache_dir: where downloads go; None: where the datasets library puts them.
        image_size: images are resized and cut to this height and width, in pixels.
        num_channels: 3 for colour, 1 for grey.
        batch_size: images per batch, on each rank.
        split_seed: decides which image falls into which split, where the data set lacks splits.
        random_crop: smallest share of a training image that a random crop keeps; 1 for no crop.
        flip: mirror every other training image.
        mean: of each channel, from 0 to 1; None for that of photographs.
        std: of each channel; None for that of photographs.
        verify: look at every image before training.
        num_workers: processes that prepare batches ahead.
        pin_memory: keep batches where a GPU copies faster; None for where there is a GPU.
    """

    def __init__(
        self,
        path: str | None,
        subset: str | None = None,
        image_column: str = "image",
        label_column: str = "label",
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        cache_dir: str | None = None,
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
        self.path, self.subset, self.cache_dir = path, subset, cache_dir
        self.split_names = {"train": train_split, "val": val_split, "test": test_split}
        self.image_column, self.label_column = image_column, label_column
        self.split_seed, self.verify = split_seed, verify

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """Images of each split.

        Raises:
            ValueError: names the column, or the split and row, with which something is wrong.
        """
        tables = load_splits(self.path, self.split_names, read_files, self.subset, self.cache_dir)
        for split, table in tables.items():
            for setting in ("image_column", "label_column"):
                column = getattr(self, setting)
                if column not in table.column_names:
                    raise ValueError(
                        f"data.{setting}={column} is no column of {split}; it has: {', '.join(table.column_names)}."
                    )
        self.class_names = class_names_of(tables["train"], self.label_column)
        labels = {split: self._numbers(split, table) for split, table in tables.items()}
        contents = {split: self._contents(split, table) for split, table in tables.items()}
        warn_of_shared(contents, "images", lambda split, row: f"row {row + 1} of {split}")
        missing = {name: share for name, share in SHARES.items() if name not in tables}
        rows = {split: list(range(len(table))) for split, table in tables.items()}
        source = {split: split if split in tables else "train" for split in SPLITS}
        if missing:
            rows |= divide(labels["train"], contents["train"], self.class_names, missing, self.split_seed)
        return {
            split: LabelledImages(
                TablePictures(tables[source[split]].select(rows[split]), self.image_column),
                [labels[source[split]][i] for i in rows[split]],
                [contents[source[split]][i] for i in rows[split]],
                self.transform,
            )
            for split in SPLITS
        }

    def _numbers(self, split: str, table: Any) -> list[int]:
        values = table[self.label_column][:]
        if not self.class_names:
            raise ValueError(
                f"data.label_column={self.label_column} of {split} holds {type(values[0]).__name__}: "
                "accepted are columns of class numbers or names."
            )
        numbers = {name: i for i, name in enumerate(self.class_names)}
        labels = [numbers.get(value, -1) if isinstance(value, str) else value for value in values]
        for row, label in enumerate(labels, start=1):
            if not isinstance(label, int) or not 0 <= label < len(self.class_names):
                raise ValueError(
                    f"Row {row} of {split} has the label {values[row - 1]!r} in {self.label_column}: "
                    f"accepted are 0 to {len(self.class_names) - 1}, the classes of train."
                )
        return labels

    def _contents(self, split: str, table: Any) -> list[str]:
        datasets = import_extra("datasets", "hf")
        names = [f"row {row} of {split}" for row in range(1, len(table) + 1)]
        undecoded = table.select_columns([self.image_column]).cast_column(
            self.image_column, datasets.Image(decode=False)
        )

        def read(row: int) -> bytes:
            image = undecoded[row][self.image_column]
            if image is None:
                raise ValueError("no image")
            return bytes(image["bytes"]) if image["bytes"] is not None else Path(image["path"]).read_bytes()

        return contents_of(names, read, self.verify)


class TablePictures:
    """Pictures in a column.

    Args:
        table: a data set of `datasets`.
        column: the column with the images.
    """

    def __init__(self, table: Any, column: str) -> None:
        datasets = import_extra("datasets", "hf")
        self.table, self.column = table.select_columns([column]).cast_column(column, datasets.Image()), column

    def __getitem__(self, index: int) -> Image.Image:
        return self.table[index][self.column]


def read_files(place: Path) -> dict[str, Any]:
    """Tables of a parquet file or a folder of such, or of a folder of images, by split.

    Raises:
        ValueError: names the file or folder with which something is wrong.
    """
    files = [place] if place.is_file() else sorted(visible_files(place, "*.parquet"))
    if files:
        return {name: read_parquet(found) for name, found in files_by_split(files, place).items()}
    splits = find_splits(place)
    names = sorted(splits["train"])
    datasets = import_extra("datasets", "hf")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    tables = {}
    for split, classes in splits.items():
        columns = {
            "image": [str(file) for files in classes.values() for file in files],
            "label": [names.index(name) for name, files in classes.items() for _ in files],
        }
        tables[split] = datasets.Dataset.from_dict(columns, features=features)
    return tables


def read_parquet(files: list[Path]) -> Any:
    """The rows of parquet files as one table, read in place, without a cache.

    Raises:
        ValueError: names the file that cannot be read.
    """
    tables = []
    for file in files:
        try:
            tables.append(pq.read_table(file, memory_map=True))
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} cannot be read as parquet: {error}") from error
    return import_extra("datasets", "hf").Dataset(pa.concat_tables(tables))


def class_names_of(table: Any, column: str) -> list[str]:
    """The names of the classes: those that the column has, or its texts in order, or its numbers up to the largest."""
    feature = table.features[column]
    if hasattr(feature, "names"):
        return list(feature.names)
    values = table[column][:]
    texts = sorted({value for value in values if isinstance(value, str)})
    if texts:
        return texts
    numbers = [value for value in values if isinstance(value, int)]
    return [str(i) for i in range(max(numbers) + 1)] if numbers else []
