"""Short runs on images of each kind, from small files in their true formats."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from {{cookiecutter.package_name}}.training import train

SMALL = [
    "model.width=8",
    "trainer.max_epochs=2",
    "data.num_workers=0",
    "data.batch_size=8",
    "logger=csv",
    "callbacks.progress_bar=null",
    "+trainer.enable_progress_bar=false",
]


def write_cifar10(folder: Path) -> Path:
    """The files of the archive, with twenty records each."""
    folder.mkdir()
    (folder / "batches.meta.txt").write_text("\n".join(f"class{i}" for i in range(10)))
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = np.random.default_rng(len(name)).integers(0, 256, (20, 3073), dtype=np.uint8)
        pixels[:, 0] = np.arange(20) % 10
        pixels[:, 1:] ^= np.frombuffer(name.encode() * 512, np.uint8)[:3072]
        pixels.tofile(folder / f"{name}.bin")
    return folder


def write_folder(folder: Path) -> Path:
    """Ten images of each of three classes."""
    for i in range(30):
        file = folder / f"class{i % 3}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "cifar10": (write_cifar10, []),
    "image_folder": (write_folder, ["data.image_size=16"]),
    "hf_images": (write_folder, ["data.image_size=16"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_run(config: Callable[..., DictConfig], tmp_path: Path, kind: str) -> None:
    if kind == "hf_images":
        pytest.importorskip("datasets")
    write, settings = KINDS[kind]
    place = write(tmp_path / "data")
    metrics = train(config("train", f"experiment={kind}", f"data.path='{place}'", "precision=fp32", *SMALL, *settings))
    assert 0 <= metrics["test/acc"] <= 1
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["num_classes"] == (10 if kind == "cifar10" else 3)
