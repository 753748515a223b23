"""CIFAR-10 in its binary form, with few records."""

from pathlib import Path

import numpy as np
import pytest
import torch

from {{cookiecutter.package_name}}.data.cifar10 import MEAN, STD, CIFAR10DataModule

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def write_cifar10(folder: Path, records: int = 20) -> dict[str, np.ndarray]:
    """Write the files of the archive, with so many records in each; returns them by name."""
    folder.mkdir(parents=True)
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    generator, written = np.random.default_rng(0), {}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = np.arange(records, dtype=np.uint8)[:, None] % 10
        data = np.hstack([labels, generator.integers(0, 256, (records, 3072), dtype=np.uint8)])
        data.tofile(folder / f"{name}.bin")
        written[name] = data
    return written


def test_examples(tmp_path: Path) -> None:
    written = write_cifar10(tmp_path / "cifar-10-batches-bin")
    module = CIFAR10DataModule(str(tmp_path))
    module.setup()
    assert module.facts() == {"num_classes": 10, "class_names": NAMES, "num_channels": 3, "image_size": 32}
    assert [len(module.datasets[split]) for split in ("train", "val", "test")] == [90, 10, 20]  # type: ignore[arg-type]
    image, label = module.datasets["test"][13]
    assert label == 3
    pixels = written["test_batch"][13, 1:].reshape(3, 32, 32) / 255
    expected = (pixels - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    assert torch.allclose(image, torch.from_numpy(expected).float(), atol=1e-5)
    assert sorted(module.datasets["val"].labels) == list(range(10))  # type: ignore[attr-defined]
    assert module.baselines() == {"majority class": 0.1}
    unpacked = CIFAR10DataModule(str(tmp_path / "cifar-10-batches-bin"))
    assert (
        unpacked.fingerprint() == module.fingerprint() != CIFAR10DataModule(str(tmp_path), split_seed=1).fingerprint()
    )


def test_pictures_for_testing_that_are_trained_on_are_told(tmp_path: Path) -> None:
    written = write_cifar10(tmp_path / "data")
    test = written["test_batch"]
    test[[7, 9], 1:] = written["data_batch_2"][3, 1:]  # one under another label
    test.tofile(tmp_path / "data" / "test_batch.bin")
    message = r"^2 of 20 images of test are in train too, such as .*test_batch\.bin, record 7\.$"
    with pytest.warns(UserWarning, match=message):
        CIFAR10DataModule(str(tmp_path / "data")).setup()


def test_bad_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    written = write_cifar10(folder)

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CIFAR10DataModule(str(folder)).setup()

    file = folder / "data_batch_3.bin"
    file.write_bytes(file.read_bytes()[:-100])
    refused(r"data_batch_3\.bin has 61360 bytes, no multiple of 3073: it is cut off")
    spoilt = written["data_batch_3"].copy()
    spoilt[7, 0] = 12
    spoilt.tofile(file)
    refused(r"data_batch_3\.bin, record 7, has the label 12: accepted are 0 to 9")
    file.rename(folder / "data_batch_3")
    refused(r"data_batch_3\.bin is missing: this is the Python version")
    (folder / "batches.meta.txt").write_text("")
    refused(r"batches\.meta\.txt is empty")
    (folder / "batches.meta.txt").unlink()
    refused(r"batches\.meta\.txt is missing")
    with pytest.raises(ValueError, match=r"data\.path is missing: add data\.path=\.\.\., the folder cifar-10"):
        CIFAR10DataModule(None).setup()
