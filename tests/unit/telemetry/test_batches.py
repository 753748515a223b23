import random
from pathlib import Path
from typing import Any

import pytest
import torch

from mp_plugin.random_state import RandomState, capture_random_state
from mp_plugin.telemetry.batches import BatchFolder


def save(folder: BatchFolder, batch: Any, **changes: Any) -> str | None:
    arguments: dict[str, Any] = {
        "batch_idx": 3,
        "step": 120,
        "rank": 0,
        "random_state": capture_random_state(torch.device("cpu")),
        "plugin_state": {"version": 1, "scale": 2.0},
    }
    return folder.save(batch, **{**arguments, **changes})


def test_a_saved_batch_has_what_it_takes_to_run_it_again(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    assert not list(tmp_path.iterdir())
    name = save(folder, {"image": torch.ones(2), "source": Path("a")})
    assert name == "batches/step-000120-rank0.pt"
    drawn = (random.random(), torch.rand(1))
    saved = torch.load(tmp_path / "telemetry" / name, weights_only=True)
    torch.testing.assert_close(saved["batch"].pop("image"), torch.ones(2))
    RandomState.from_state_dict(saved.pop("random_state")).restore()
    assert (random.random(), torch.rand(1)) == drawn
    assert saved == {
        "version": 1,
        "step": 120,
        "batch_idx": 3,
        "rank": 0,
        "batch": {"source": "PosixPath('a')"},
        "plugin_state": {"version": 1, "scale": 2.0},
        "not_saved": ["batch['source'] (PosixPath)"],
    }
    assert [path.name for path in folder.path.iterdir()] == ["step-000120-rank0.pt"]


def test_steps_and_ranks_have_their_own_files_and_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = BatchFolder(tmp_path)
    save(folder, 1)
    save(folder, 2, rank=1)
    save(folder, 3, step=1_234_567, random_state=None)
    save(folder, 4)
    batches = {path.name: torch.load(path, weights_only=True)["batch"] for path in folder.path.iterdir()}
    assert batches == {
        "step-000120-rank0.pt": 1,
        "step-000120-rank1.pt": 2,
        "step-1234567-rank0.pt": 3,
        "step-000120-rank0-2.pt": 4,
    }


def test_trouble_with_the_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "telemetry").write_text("a file where the folder should be")
    folder = BatchFolder(tmp_path)
    assert [save(folder, 1), save(folder, 1)] == [None, None]
    (message,) = caplog.messages
    assert "The batch of step 120 cannot be saved (" in message
    assert str(tmp_path) in message


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(content: Any, path: Path) -> None:
        path.write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    folder = BatchFolder(tmp_path)
    assert save(folder, 1) is None
    assert list(folder.path.iterdir()) == []
    assert "No space left on device" in caplog.text


def test_a_batch_that_cannot_be_looked_at_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert save(BatchFolder(tmp_path), endless) is None
    assert "cannot be saved (RecursionError: " in caplog.text
