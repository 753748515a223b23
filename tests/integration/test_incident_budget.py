"""How many incidents of a run are traced, and what becomes of the others."""

import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.telemetry.events import Action, Cause
from mp_plugin.telemetry.store import read_incidents
from mp_plugin.telemetry.trace import Trace
from tests.helpers.training import Regression, fit, regression_data


class Faulty(Regression):
    """Each batch is spoiled in one of several ways, each on a line of its own."""

    def __init__(self, *faults: str) -> None:
        super().__init__()
        self.faults = faults
        self.runs = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs, targets = batch
        fault = self.faults[batch_idx]
        if fault == "data":
            inputs = inputs.clone()
        hidden = self.net[0](inputs)
        if fault == "overflow":
            hidden = hidden.abs() + 1
            hidden = hidden * 60_000
            hidden = hidden * 2.0
        if fault == "zero":
            hidden = hidden / torch.zeros_like(hidden)
        return torch.nn.functional.mse_loss(self.net[2](hidden).float(), targets)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each re-run under a trace looked at everything."""
    made: list[bool] = []
    original = Trace.__init__

    def count(self: Trace, layers: Any, **options: Any) -> None:
        made.append(options.get("only") is None)
        original(self, layers, **options)

    monkeypatch.setattr(Trace, "__init__", count)
    return made


def test_a_known_origin_is_recognised_without_a_full_trace(traces: list[bool]) -> None:
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Faulty("", "zero", "zero", "overflow", "zero", "overflow", "", ""))
    assert traces.count(True) == 2
    assert [incident.traced for incident in plugin.incidents] == [True, False, True, False, False]
    zero, overflow = plugin.incidents[0], plugin.incidents[2]
    assert (zero.operator, zero.reason) == ("aten.div.Tensor", "division by zero")
    assert overflow.operator == "aten.mul.Tensor"
    for place, first in ((1, zero), (3, zero), (4, overflow)):
        repeat = plugin.incidents[place]
        assert (repeat.signature, repeat.cause, repeat.layer) == (first.signature, first.cause, first.layer)
        assert repeat.evidence["untraced"] == "repeat"
        assert repeat.action is Action.skip
    told = plugin.summary()["incidents"]
    assert (told["total"], told["traced"], told["untraced"]) == (5, 2, {"repeat": 3})


def test_beyond_the_bound_incidents_are_counted_and_acted_upon(traces: list[bool]) -> None:
    plugin = AdaptivePrecision("fp16", telemetry=Telemetry(max_traced=1))
    fit(plugin, Faulty("zero", "overflow", "", "overflow", "", "zero", "", ""))
    assert traces.count(True) == 1
    assert [incident.evidence.get("untraced") for incident in plugin.incidents] == [None, "budget", "budget", "repeat"]
    assert {incident.cause for incident in plugin.incidents} == {Cause.forward}
    assert plugin.incidents[1].operator is None
    assert (plugin.skipped_steps, plugin.loss_scale) == (4, 2.0**15)


def test_without_traces_nothing_is_run_again(traces: list[bool]) -> None:
    plugin = AdaptivePrecision("bf16", telemetry=Telemetry(max_traced=0))
    model = fit(plugin, Faulty("zero", "zero", "", "", "", "", "", ""))
    assert traces == []
    assert [incident.cause for incident in plugin.incidents] == [Cause.forward, Cause.forward]
    assert model.trainer.global_step == 8


def test_a_bad_batch_that_comes_again_is_known_by_its_own_samples(traces: list[bool]) -> None:
    data = regression_data()
    for row in (5, 18):  # of batches 1 and 4
        data.dataset.tensors[0][row, 3] = float("nan")  # type: ignore[attr-defined]
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Faulty(*[""] * 8), data)
    assert traces == [True, False]  # the second run looks for the known place alone
    assert [incident.batch_idx for incident in plugin.incidents] == [1, 4]
    assert {incident.cause for incident in plugin.incidents} == {Cause.data}
    samples = [incident.evidence["batch"][0]["samples"] for incident in plugin.incidents]
    assert samples == [[1], [2]]


def test_an_incident_costs_one_trace_and_three_plain_runs_at_most() -> None:
    class Counting(Regression):
        runs: list[int]

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            RUNS.append(batch_idx)
            return super().training_step(batch, batch_idx)

    RUNS: list[int] = []
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**20, retries=1))
    fit(plugin, Counting())
    assert plugin.incidents[0].cause is Cause.backward
    for batch in set(RUNS):
        assert RUNS.count(batch) <= 1 + 1 + 3


def test_every_incident_is_a_line_on_disk_and_a_kept_batch_reproduces_it(tmp_path: Path) -> None:
    telemetry = Telemetry(directory=tmp_path, keep_batches=True)  # type: ignore[arg-type]
    plugin = AdaptivePrecision("fp16", telemetry=telemetry)
    model = fit(plugin, Faulty("", "zero", "zero", "", "overflow", "", "", ""))
    file = tmp_path / "telemetry" / "incidents.jsonl"
    assert [each.as_dict() for each in read_incidents(file)] == [each.as_dict() for each in plugin.incidents]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert ["batch_file" in line for line in lines] == [True, False, True]
    kept = torch.load(tmp_path / "telemetry" / lines[2]["batch_file"], weights_only=True)
    assert kept["batch_idx"] == 4
    expected = list(regression_data())[4]
    torch.testing.assert_close(kept["batch"], expected, rtol=0, atol=0)
    with torch.autocast("cpu", torch.float16):
        assert not model.training_step(kept["batch"], kept["batch_idx"]).isfinite()


def test_a_batch_with_a_masked_nan_is_not_blamed_for_another_fault() -> None:
    """Each batch has a NaN among its targets, which the step leaves out."""

    class Masking(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            inputs, targets = batch
            hidden = self.net[0](inputs)
            if batch_idx == 5:
                hidden = (hidden.abs() + 20).exp()
            kept = ~targets.isnan()
            return torch.nn.functional.mse_loss(self.net[2](hidden).float()[kept], targets[kept])

    data = regression_data()
    data.dataset.tensors[1][::4] = float("nan")  # type: ignore[attr-defined]
    data.dataset.tensors[0][10, 3] = float("nan")  # type: ignore[attr-defined]  # of batch 2
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**8))
    fit(plugin, Masking(), data)
    assert [(each.batch_idx, each.cause) for each in plugin.incidents] == [(2, Cause.data), (5, Cause.forward)]
    assert [each.reason for each in plugin.incidents][0] == "batch[0] holds nan"
    assert plugin.incidents[1].operator == "aten.exp.default"
    assert [each.traced for each in plugin.incidents] == [True, True]


def test_a_scaled_loss_that_overflows_again_is_a_known_origin() -> None:
    class Huge(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            assert loss is not None
            return (loss.clamp(max=1) + 84).exp() if batch_idx in (1, 4) else loss

    plugin = AdaptivePrecision("fp16", scaling=LossScaling(retries=0, init_scale=2**20), telemetry=Telemetry())
    fit(plugin, Huge(), gradient_clip_val=1e-3)
    lost = [each for each in plugin.incidents if each.cause is Cause.loss]
    assert [each.batch_idx for each in lost] == [1, 4]
    assert [each.traced for each in lost] == [True, False]
    assert lost[0].signature == lost[1].signature


def test_what_a_step_takes_out_of_its_batch_is_in_the_kept_one(tmp_path: Path) -> None:
    class Popping(Regression):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return super().training_step([batch["inputs"], batch.pop("targets")], batch_idx)

    data = [{"inputs": inputs, "targets": targets} for inputs, targets in regression_data()]
    telemetry = Telemetry(directory=tmp_path, keep_batches=True)  # type: ignore[arg-type]
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**20), telemetry=telemetry)
    fit(plugin, Popping(), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    assert plugin.incidents[0].action is Action.retry
    kept = torch.load(tmp_path / "telemetry" / "batches" / "step-000000-rank0.pt", weights_only=True)
    assert kept["batch"].keys() == {"inputs", "targets"}
    assert kept["plugin_state"]["scale"] == plugin.incidents[0].loss_scale == 2**20


def test_an_incident_is_on_disk_though_its_second_run_ends_the_training(tmp_path: Path) -> None:
    class Interrupted(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            plugin: Any = self.trainer.precision_plugin
            if plugin.loss_scale < 2**20:
                raise RuntimeError("pulled the plug")
            return super().training_step(batch, batch_idx)

    telemetry = Telemetry(directory=tmp_path)  # type: ignore[arg-type]
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**20), telemetry=telemetry)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        fit(plugin, Interrupted())
    (incident,) = read_incidents(tmp_path / "telemetry" / "incidents.jsonl")
    assert (incident.action, incident.cured, incident.cause) == (Action.retry, False, Cause.backward)


def test_a_terminal_that_cannot_show_an_incident_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = [{"größe": inputs, "targets": targets} for inputs, targets in regression_data()]
    for batch_idx in (2, 5):
        data[batch_idx]["größe"][0, 0] = float("nan")

    class Named(Regression):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
            return super().training_step(
                [batch["größe"] * (1.0 if batch_idx < 4 else 2.0), batch["targets"]], batch_idx
            )

    monkeypatch.setattr("sys.stdout", TextIOWrapper(BytesIO(), encoding="ascii"))
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Named(), DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    assert plugin.skipped_steps == 2
    told = [message for message in caplog.messages if "cannot be shown" in message]
    assert len(told) == 1
    assert "UnicodeEncodeError" in told[0]
