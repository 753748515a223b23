"""Folders of images: layouts, splits, and what is wrong with them."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from {{cookiecutter.package_name}}.data.base import SPLITS
from {{cookiecutter.package_name}}.data.image_folder import ImageFolderDataModule
from {{cookiecutter.package_name}}.data.images import LabelledImages

CLASSES = ("cat", "dog")


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 16)) -> None:
    """Write noise, the same for the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty different images of each of two classes, in two formats; each cat has a copy."""
    for i in range(20):
        write_image(tmp_path / "pets" / "cat" / f"{i}.png", i)
        write_image(tmp_path / "pets" / "cat" / "copies" / f"{i}.PNG", i)
        write_image(tmp_path / "pets" / "dog" / f"{i}.jpg", 100 + i)
    (tmp_path / "pets" / "cat" / "notes.txt").write_text("no image")
    for hidden in (".cache/0.png", "cat/._0.png", "cat/.thumbnails/0.png"):
        (tmp_path / "pets" / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / "pets" / hidden).write_bytes(b"no image")
    return tmp_path / "pets"


def files_of(module: ImageFolderDataModule) -> dict[str, list[Path]]:
    """The files of each split."""
    module.setup()
    return {split: module.datasets[split].pictures.paths for split in SPLITS}  # type: ignore[attr-defined]


def test_automatic_splits(folder: Path) -> None:
    module = ImageFolderDataModule(str(folder), image_size=8)
    files = files_of(module)
    assert module.facts() == {"num_classes": 2, "class_names": ["cat", "dog"], "num_channels": 3, "image_size": 8}
    assert {split: len(found) for split, found in files.items()} == {"train": 45, "val": 6, "test": 9}
    for found in files.values():
        assert {path.relative_to(folder).parts[0] for path in found} == set(CLASSES)
    seen = [{path.read_bytes() for path in found} for found in files.values()]
    assert not any(a & b for a, b in itertools.combinations(seen, 2))
    assert files_of(ImageFolderDataModule(str(folder))) == files
    assert files_of(ImageFolderDataModule(str(folder), split_seed=1)) != files
    assert module.baselines() == {"majority class": 2 / 3}


def test_folders_of_splits(tmp_path: Path) -> None:
    for seed, (split, name, i) in enumerate(itertools.product(("train", "valid", "test"), CLASSES, range(4))):
        write_image(tmp_path / split / name / f"{i}.png", seed)
    files = files_of(ImageFolderDataModule(str(tmp_path)))
    for split, folder in {"train": "train", "val": "valid", "test": "test"}.items():
        assert [path.relative_to(tmp_path).parts[0] for path in files[split]] == [folder] * 8


def test_missing_splits_are_cut_from_train(tmp_path: Path) -> None:
    for seed, (split, name, i) in enumerate(itertools.product(("train", "val"), CLASSES, range(6))):
        write_image(tmp_path / split / name / f"{i}.png", seed)
    module = ImageFolderDataModule(str(tmp_path))
    assert {split: len(found) for split, found in files_of(module).items()} == {"train": 10, "val": 12, "test": 2}


def test_small_classes_stay_in_training(folder: Path) -> None:
    for i in range(3):
        write_image(folder / "emu" / f"{i}.png", 200 + i)
    data = ImageFolderDataModule(str(folder))
    counts = {split: [path.parent.name for path in found].count("emu") for split, found in files_of(data).items()}
    assert counts == {"train": 1, "val": 1, "test": 1}
    (folder / "emu" / "2.png").unlink()
    data = ImageFolderDataModule(str(folder))
    with pytest.warns(UserWarning, match=r"^Classes with fewer than 3 different examples, in train only: emu\.$"):
        files = files_of(data)
    assert {path.parent.name for path in files["val"] + files["test"]} <= {"cat", "copies", "dog"}


def test_images_in_two_given_splits_are_told(tmp_path: Path) -> None:
    for i, (split, name) in enumerate(itertools.product(SPLITS, CLASSES)):
        write_image(tmp_path / split / name / "a.png", i)
    write_image(tmp_path / "test" / "cat" / "again.png", 0)
    module = ImageFolderDataModule(str(tmp_path))
    with pytest.warns(UserWarning, match=r"^1 of 3 images of test are in train too, such as test/cat/again\.png\.$"):
        module.setup()
    module.fingerprint()  # without another warning


def test_examples_and_augmentation(folder: Path) -> None:
    module = ImageFolderDataModule(str(folder), image_size=12, batch_size=5)
    module.setup()
    images, labels = next(iter(module.train_dataloader()))
    assert images.shape == (5, 3, 12, 12)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    train = module.datasets["train"]
    assert isinstance(train, LabelledImages)
    first, same, other = (train.draw(0, np.random.default_rng(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(train[0][0], train[0][0])
    grey = ImageFolderDataModule(str(folder), num_channels=1, mean=[0.0], std=[1.0])
    grey.setup()
    image, _ = grey.datasets["test"][0]
    assert image.shape == (1, 64, 64)
    assert 0 <= image.min() < image.max() <= 1


def test_batches_do_not_depend_on_workers(folder: Path) -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        module = ImageFolderDataModule(str(folder), image_size=8, num_workers=workers)
        module.setup()
        return [images for images, _ in module.train_dataloader()]

    assert all(torch.equal(a, b) for a, b in zip(batches(0), batches(2), strict=True))


def test_fingerprint_is_of_the_contents(folder: Path) -> None:
    before = ImageFolderDataModule(str(folder)).fingerprint()
    moved = folder.rename(folder.with_name("moved"))
    assert ImageFolderDataModule(str(moved), image_size=8).fingerprint() == before
    write_image(moved / "dog" / "3.jpg", 7)
    assert ImageFolderDataModule(str(moved)).fingerprint() != before


def test_files_of_the_user(folder: Path, tmp_path: Path) -> None:
    module = ImageFolderDataModule(str(folder), image_size=8)
    files_of(module)
    kept = module.settings_to_keep()
    assert kept["class_names"] == ["cat", "dog"]
    assert len(module.files_dataset([folder], kept)) == 60  # type: ignore[arg-type]
    found = module.files_dataset([folder / "dog" / "1.jpg", folder / "cat"], kept)
    names = [found[i][1] for i in range(len(found))]
    assert names[0].endswith("pets/dog/1.jpg")
    assert len(names) == 41
    test = module.datasets["test"]
    assert isinstance(test, LabelledImages)
    path = test.pictures.paths[0]  # type: ignore[attr-defined]
    assert torch.equal(test[0][0], module.files_dataset([path], kept)[0][0])
    with pytest.raises(ValueError, match="nowhere does not exist"):
        module.files_dataset([tmp_path / "nowhere"], kept)
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 1 images cannot be read: .*bad\.png \(not an image\)"):
        module.files_dataset([tmp_path / "bad.png"], kept)


def empty_class(folder: Path) -> None:
    (folder / "bird").mkdir()


def no_images(folder: Path) -> None:
    for path in [*folder.rglob("[0-9]*.[pPj][nNp][gG]")]:
        path.unlink()


def unknown_class(folder: Path) -> None:
    for i, split in enumerate(("train", "test")):
        for name in (*CLASSES, "zebra")[: 2 + i]:
            write_image(folder / "split" / split / name / "0.png", i)
    for path in sorted((folder / "split").iterdir()):
        path.rename(folder / path.name)
    (folder / "split").rmdir()


def only_splits_and_unknown_class(folder: Path) -> None:
    unknown_class(folder)
    for name in CLASSES:
        (folder / name).rename(folder.parent / name)


def too_few(folder: Path) -> None:
    for path in [*folder.rglob("*.[pPj][nNp][gG]")]:
        if path.stem not in "01":
            path.unlink()


def one_class(folder: Path) -> None:
    (folder / "dog").rename(folder.parent / "dog")


def broken(folder: Path) -> None:
    for i in range(6):
        (folder / "dog" / f"bad{i}.png").write_bytes(b"not a png")
    whole = (folder / "dog" / "1.jpg").read_bytes()
    (folder / "dog" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "empty.png").write_bytes(b"")
    (folder / "dog" / "gone.png").symlink_to(folder / "nowhere.png")
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[:-40])


REFUSED: dict[Callable[[Path], None], str] = {
    empty_class: r"pets has classes without images: bird\. Remove or fill these folders",
    no_images: r"pets has no images in folders of classes",
    unknown_class: r"has folders of splits and, beside them, cat, dog",
    only_splits_and_unknown_class: r"has classes in test that train lacks: zebra",
    too_few: r"no class has 3 different examples, one for each of train, val, test",
    one_class: r"pets has images of one class only, cat",
    broken: r"10 of 68 images cannot be read: cat/1\.png \(.*\), dog/1\.jpg \(.*\), dog/bad0\.png .*, \.\.\.",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_bad_folders_are_refused(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=REFUSED[spoil]):
        ImageFolderDataModule(str(folder)).setup()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, "data.path is missing"),
        ({"path": "nowhere"}, "data.path=nowhere does not exist"),
        ({"image_size": 0}, "image_size=0 is out of range"),
        ({"num_channels": 2}, "num_channels=2 is out of range: accepted are 3"),
        ({"random_crop": 1.5}, "random_crop=1.5 is out of range"),
        ({"mean": [0.5]}, "must have one number per channel, 3"),
        ({"std": [0.5, 0.5, 0.0]}, "it must be greater than 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageFolderDataModule(**{"path": "nowhere", **settings}).setup()  # type: ignore[arg-type]


def test_a_file_that_breaks_later_is_named(folder: Path) -> None:
    module = ImageFolderDataModule(str(folder), verify=False)
    files = files_of(module)
    files["test"][0].write_bytes(b"gone")
    with pytest.raises(ValueError, match=f"{files['test'][0].name} cannot be read as an image"):
        module.datasets["test"][0]
