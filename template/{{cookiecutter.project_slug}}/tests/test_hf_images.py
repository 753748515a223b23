"""Images from Hugging Face data sets on this machine."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from {{cookiecutter.package_name}}.data.hf_images import HFImagesDataModule

datasets = pytest.importorskip("datasets")


def picture(seed: int) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 9, 3), dtype=np.uint8))


def table(rows: int, label: Any = None, start: int = 0) -> Any:
    """A data set of two classes."""
    columns = {"image": [picture(start + i) for i in range(rows)], "label": [i % 2 for i in range(rows)]}
    label = label or datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features({"image": datasets.Image(), "label": label}))


def write_parquet(path: Path, labels: list[Any], image: bytes | None = None, start: int = 0) -> None:
    """Write a table without any description of its columns, as other programs do."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def png(seed: int) -> bytes:
        buffer = io.BytesIO()
        picture(seed).save(buffer, "png")
        return buffer.getvalue()

    images = [{"bytes": png(start + i), "path": None} for i in range(len(labels))]
    if image is not None:
        images[-1]["bytes"] = image
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"picture": images, "kind": labels}), path)


def sizes(module: HFImagesDataModule) -> dict[str, int]:
    """Examples per split."""
    module.setup()
    return {split: len(examples) for split, examples in module.datasets.items()}  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Local data need no cache."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    yield
    assert not cache.exists()


def test_save_to_disk(tmp_path: Path) -> None:
    splits = {"train": table(20), "validation": table(4, start=50), "test": table(6, start=80)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    module = HFImagesDataModule(str(tmp_path / "data"), image_size=9)
    assert sizes(module) == {"train": 20, "val": 4, "test": 6}
    assert module.facts()["class_names"] == ["cat", "dog"]
    image, label = module.datasets["test"][3]
    assert label == 1
    mean, std = (torch.tensor(values)[:, None, None] for values in (module.transform.mean, module.transform.std))
    expected = torch.from_numpy(np.asarray(picture(83)).astype(np.float32)).permute(2, 0, 1) / 255
    assert torch.allclose(image * std + mean, expected, atol=1e-5)
    assert len(list(module.train_dataloader())) == 1

    table(20).save_to_disk(str(tmp_path / "single"))
    single = HFImagesDataModule(str(tmp_path / "single"))
    assert sizes(single) == {"train": 14, "val": 2, "test": 4}
    assert single.fingerprint() != module.fingerprint()


def test_images_are_decoded_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets.DatasetDict({"train": table(20), "test": table(4, start=50)}).save_to_disk(str(tmp_path / "data"))

    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets.Image, "decode_example", refuse)
    module = HFImagesDataModule(str(tmp_path / "data"))
    assert sizes(module) == {"train": 18, "val": 2, "test": 4}
    with pytest.raises(MemoryError):
        module.datasets["test"][0]


def test_splits_of_other_names(tmp_path: Path) -> None:
    splits = {"default": table(20), "validation": table(4, start=50), "holdout": table(6, start=80)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    names = {"train_split": "default", "val_split": "none", "test_split": "holdout"}
    module = HFImagesDataModule(str(tmp_path / "data"), **names)  # type: ignore[arg-type]
    assert sizes(module) == {"train": 18, "val": 2, "test": 6}
    with pytest.raises(ValueError, match="has no split 'dev'; it has: default, validation, holdout: name one with"):
        HFImagesDataModule(str(tmp_path / "data"), train_split="default", val_split="dev").setup()


def test_the_hub_is_asked_for_names(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    def load_dataset(*names: Any, **settings: Any) -> Any:
        asked.append((names, settings))
        return datasets.DatasetDict({"train": table(20)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    module = HFImagesDataModule("some/pets", subset="small", cache_dir="here")
    assert sizes(module) == {"train": 14, "val": 2, "test": 4}
    assert "Asking the Hugging Face Hub for some/pets" in capsys.readouterr().err
    assert asked == [(("some/pets", "small"), {"cache_dir": "here"})]
    for missing in ("./pets", "pets.parquet", "some/old/pets"):
        with pytest.raises(ValueError, match="does not exist: name a data set on the hub"):
            HFImagesDataModule(missing).setup()
    assert len(asked) == 1


def test_parquet(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", ["dog", "cat"] * 10)
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", ["cat", "dog"], start=50)
    columns = {"image_column": "picture", "label_column": "kind"}
    module = HFImagesDataModule(str(tmp_path / "data"), **columns)  # type: ignore[arg-type]
    assert sizes(module) == {"train": 18, "val": 2, "test": 2}
    assert module.datasets["test"][0][1] == 0
    with pytest.raises(ValueError, match=r"data\.image_column=image is no column of t\w+; it has: picture, kind"):
        HFImagesDataModule(str(tmp_path / "data")).setup()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HFImagesDataModule(str(tmp_path / "data"), **columns).setup()  # type: ignore[arg-type]

    test = tmp_path / "data" / "test.parquet"
    write_parquet(test, ["cat", "bird"])
    refused(r"Row 4 of test has the label 'bird' in kind: accepted are 0 to 1, the classes of train")
    write_parquet(test, ["cat", "dog"], image=b"no image")
    refused(r"1 of 4 images cannot be read: row 4 of test \(not an image\)")
    test.write_bytes(b"no parquet")
    refused(r"test\.parquet cannot be read as parquet")
    test.unlink()
    write_parquet(tmp_path / "data" / "valid.parquet", [])
    refused(r"data has no rows in val")


def test_folders_of_parquet_tell_the_split(tmp_path: Path) -> None:
    data = tmp_path / "test" / "data"  # folders above the data tell nothing
    rows = {"train": [0, 1] * 10, "validation": [0, 1] * 2, "test": [1, 0] * 3}
    for i, (split, labels) in enumerate(rows.items()):
        write_parquet(data / "default" / split / "0000.parquet", labels, start=50 * i)
    columns = {"image_column": "picture", "label_column": "kind"}
    module = HFImagesDataModule(str(data), **columns)  # type: ignore[arg-type]
    assert sizes(module) == {"train": 20, "val": 4, "test": 6}
    (data / "._train.parquet").write_bytes(b"of another system")  # hidden, and so no data
    write_parquet(data / "dev.parquet", [0, 1], start=90)
    with pytest.raises(ValueError, match="several splits that could be val: validation, dev; name one with data.val_"):
        HFImagesDataModule(str(data), **columns).setup()  # type: ignore[arg-type]
    chosen = HFImagesDataModule(str(data), val_split="dev", **columns)  # type: ignore[arg-type]
    assert sizes(chosen) == {"train": 20, "val": 2, "test": 6}


def test_images_in_two_given_splits_are_told(tmp_path: Path) -> None:
    splits = {"train": table(20), "validation": table(4, start=50), "test": table(6, start=17)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    with pytest.warns(UserWarning, match=r"^3 of 6 images of test are in train too, such as row 1 of test\.$"):
        sizes(HFImagesDataModule(str(tmp_path / "data")))


def test_labels_out_of_range(tmp_path: Path) -> None:
    unlabelled = table(4, label=datasets.Value("int64")).map(lambda row, i: {"label": -1}, with_indices=True)
    datasets.DatasetDict({"train": table(9), "test": unlabelled}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match="Row 1 of test has the label -1 in label: accepted are 0 to 1"):
        HFImagesDataModule(str(tmp_path / "data")).setup()
    with pytest.raises(ValueError, match="data.label_column=image of train holds .*: accepted are columns of class"):
        HFImagesDataModule(str(tmp_path / "data"), label_column="image").setup()


def test_folders(tmp_path: Path) -> None:
    for i in range(20):
        file = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(file)
    module = HFImagesDataModule(str(tmp_path / "pets"))
    assert sizes(module) == {"train": 14, "val": 2, "test": 4}
    assert module.facts()["class_names"] == ["cat", "dog"]


def test_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"data\.path is missing"):
        HFImagesDataModule(None).setup()
    with pytest.raises(ValueError, match="nowhere does not exist: name a data set on the hub, a folder or a file"):
        HFImagesDataModule(str(tmp_path / "nowhere")).setup()
    datasets.DatasetDict({"test": table(4)}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match="has no split 'train'; it has: test: name one with data.train_split="):
        HFImagesDataModule(str(tmp_path / "data")).setup()

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(ValueError, match="data.path=some/pets is not here, .* Couldn't reach the Hub"):
        HFImagesDataModule("some/pets").setup()


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r'datasets is not installed: pip install -e "\.\[hf\]"'):
        HFImagesDataModule("some/pets").setup()
