"""On a GPU: the meter sees the device's time, waits for nothing meanwhile, and counts the GPU's own memory."""

import json
from typing import Any

import pytest
import torch

from mp_plugin import CostMeter
from tests.gpu.test_no_waiting import LENGTH, NoWaiting, Quiet, data
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="measures a GPU")

CYCLES = 20_000_000


class Busy(Quiet):
    """Keeps the device busy long after the host has launched the step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        torch.cuda._sleep(CYCLES)
        return super().training_step(batch, batch_idx)


def test_steps_last_as_long_as_on_the_device(tmp_path):
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    torch.cuda._sleep(CYCLES)
    end.record()
    end.synchronize()
    held = torch.empty(64 * 1024**2, dtype=torch.uint8, device="cuda")
    trainer = quiet_trainer(accelerator="cuda", callbacks=[NoWaiting(first=4), CostMeter(str(tmp_path))])
    trainer.fit(Busy(), data())
    cost = json.loads((tmp_path / "telemetry" / "cost.json").read_text())
    assert cost["steps"] == LENGTH
    assert cost["step_ms"]["median"] > 0.5 * begin.elapsed_time(end)
    assert cost["peak_memory_of"].startswith("cuda:")
    assert cost["peak_memory_bytes"] >= held.nbytes
    assert cost["energy_source"] == "nvml" or cost["energy_source"].startswith("not measured: ")
