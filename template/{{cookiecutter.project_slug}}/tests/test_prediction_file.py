"""Predictions on disk: the same file from any number of processes, and a user's own files."""

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from torch.utils.data import Dataset

from {{cookiecutter.package_name}} import prediction_file
from {{cookiecutter.package_name}}.data.base import DataModule
from {{cookiecutter.package_name}}.prediction import predict
from {{cookiecutter.package_name}}.prediction_file import PredictionFile, array
from {{cookiecutter.package_name}}.training import train

CONF = Path(__file__).parents[1] / "conf"
EXPERIMENT = "digits" if (CONF / "experiment" / "digits.yaml").exists() else "lm"
QUIET = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false"]


def fake_trainer(rank: int, num_ranks: int, total: int) -> Any:
    """What the callback asks a trainer."""
    return SimpleNamespace(
        global_rank=rank,
        world_size=num_ranks,
        is_global_zero=rank == 0,
        testing=True,
        test_dataloaders=SimpleNamespace(dataset=range(total)),
        strategy=SimpleNamespace(barrier=lambda: None),
    )


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_the_file_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_ranks: int
) -> None:
    monkeypatch.setattr(prediction_file, "ROWS", 10)
    total, batch_size = 47, 4
    # As torch's DistributedSampler deals them out: filled up from the start, then one each in turn.
    padded = list(range(total)) + list(range(-total % num_ranks))
    # The first process joins the parts, so it ends last here.
    for rank in reversed(range(num_ranks)):
        callback, trainer = PredictionFile(tmp_path / "a.parquet"), fake_trainer(rank, num_ranks, total)
        callback.on_test_start(trainer, None)  # type: ignore[arg-type]
        mine = padded[rank::num_ranks]
        for start in range(0, len(mine), batch_size):
            examples = torch.tensor(mine[start : start + batch_size])
            outputs = {"label": examples * 2, "confidence": (examples / 64).bfloat16(), "name": ["left out"]}
            callback.on_test_batch_end(trainer, None, outputs, None, 0)  # type: ignore[arg-type]
        callback.on_test_end(trainer, None)  # type: ignore[arg-type]
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["index", "label", "confidence"]
    assert table["index"].to_pylist() == list(range(total))
    assert table["label"].to_pylist() == [2 * example for example in range(total)]
    assert table["confidence"].to_pylist() == [example / 64 for example in range(total)]
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_tensors_as_columns() -> None:
    assert array(torch.tensor([[1, 2], [3, 4]])).to_pylist() == [[1, 2], [3, 4]]
    assert str(array(torch.zeros(2, dtype=torch.float16)).type) == "float"
    assert str(array(torch.zeros(2, dtype=torch.int64)).type) == "int64"


class Files(Dataset[Any]):
    """An example of the test split for each file, under the file's name."""

    def __init__(self, paths: Sequence[Path], examples: Dataset[Any]) -> None:
        self.paths, self.examples = paths, examples

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.examples[index][0], self.paths[index].name

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Texts are padded to the longest one of the batch."""
        together = getattr(self.examples, "__getitems__", lambda indices: [self.examples[i] for i in indices])
        return [(example[0], self.paths[i].name) for example, i in zip(together(indices), indices, strict=True)]


def test_own_files(
    small: Callable[..., DictConfig],
    config: Callable[..., DictConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    experiment = "digits" if EXPERIMENT == "digits" else "topics"
    names = [f"class {number}" for number in range(10)]
    kind = get_class(small(experiment).data._target_)
    monkeypatch.setattr(kind, "settings_to_keep", lambda module: {"class_names": names})
    train(small(experiment, "trainer.max_epochs=1"))
    checkpoint = f"ckpt_path='{tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}'"
    split = predict(config("predict", checkpoint, *QUIET, name="split"))

    asked: list[Any] = []

    def files_dataset(module: DataModule, paths: Sequence[Path], kept: Mapping[str, Any]) -> Dataset[Any]:
        asked.append((list(paths), dict(kept), dict(module.datasets)))
        module.setup()
        return Files(sorted(paths[0].iterdir()), module.datasets["test"])

    monkeypatch.setattr(kind, "files_dataset", files_dataset)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(70):
        (folder / f"{number:02}.png").touch()
    found = predict(config("predict", checkpoint, f"input='{folder}'", "csv=true", *QUIET, name="files"))
    # The training data were not read: they may be on another machine.
    assert asked == [([folder], {"class_names": names}, {})]
    table = pq.read_table(found)
    assert table.column_names == ["index", "name", "prediction", "confidence", "class"]
    assert table["name"].to_pylist() == [f"{number:02}.png" for number in range(70)]
    assert table["prediction"].to_pylist() == pq.read_table(split)["prediction"].to_pylist()[:70]
    assert table["class"].to_pylist() == [names[number] for number in table["prediction"].to_pylist()]
    with open(found.with_suffix(".csv"), newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["prediction"]) for row in rows] == table["prediction"].to_pylist()


def test_files_that_are_not_there(
    small: Callable[..., DictConfig], config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(small(EXPERIMENT, "trainer.max_epochs=1"))
    checkpoint = f"ckpt_path='{tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}'"
    with pytest.raises(SystemExit, match="input=nowhere.png does not exist"):
        predict(config("predict", checkpoint, "input=[nowhere.png]", *QUIET, name="a"))


def test_settings_of_a_checkpoint_are_those_of_this_project(
    small: Callable[..., DictConfig], config: Callable[..., DictConfig], tmp_path: Path
) -> None:
    train(small(EXPERIMENT, "trainer.max_epochs=1"))
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = torch.load(path, weights_only=True)

    def refusal(**changed: Any) -> str:
        torch.save({**whole, "config": {**whole["config"], **changed}}, tmp_path / "changed.ckpt")
        asked = config("predict", f"ckpt_path='{tmp_path / 'changed.ckpt'}'", *QUIET, name="changed")
        with pytest.raises(SystemExit) as caught:
            predict(asked)
        return str(caught.value.code)

    for target in (
        "os.system",
        "{{cookiecutter.package_name}}.errors.os.system",
        "{{cookiecutter.package_name}}.run_card.Path",
    ):
        sentence = refusal(data={"_target_": whole["config"]["data"]["_target_"], "extra": [{"_target_": target}]})
        assert f"asks for {target}, which is not part of this project" in sentence
    assert "does not hold its model settings" in refusal(model=None)
    assert "not part of this project" in refusal(precision={"_target_": "lightning.pytorch.Trainer"})
