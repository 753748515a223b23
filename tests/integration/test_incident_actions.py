"""What is done about an incident follows from its cause, and what is said of it from what was found."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Action, Cause, Direction
from mp_plugin.telemetry.trace import Trace
from tests.helpers.training import Regression, fit, regression_data, weights

SCALE = 2.0**12
SPOILED = 3


class Spoiled(Regression):
    """A regression whose hidden values one batch does something to."""

    def __init__(self, spoil: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.spoil = spoil
        self.steps = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        hidden = self.net[0](batch[0])
        if batch_idx == SPOILED:
            hidden = self.spoil(self, hidden)
        return torch.nn.functional.mse_loss(self.net[2](hidden).float(), batch[1])


def run(spoil: Callable[[Any, Tensor], Tensor], precision: str = "fp16", **telemetry: Any) -> tuple[Any, Any]:
    scaling = LossScaling(init_scale=SCALE) if precision == "fp16" else None
    plugin = AdaptivePrecision(precision, scaling=scaling, telemetry=Telemetry(**telemetry))
    return plugin, fit(plugin, Spoiled(spoil))


def root_at_zero(_: Any, hidden: Tensor) -> Tensor:
    return hidden + (hidden * 0).sqrt()


def test_a_division_by_zero_in_the_backward_pass_is_no_matter_of_the_scale() -> None:
    """The derivative of a root at zero: every loss scale divides by the same zero."""
    plugin, _ = run(root_at_zero)
    (incident,) = plugin.incidents
    assert (incident.cause, incident.direction) == (Cause.backward, Direction.backward)
    assert incident.evidence["backward_finite_at_lower_scale"] is False
    assert (incident.action, plugin.loss_scale) == (Action.skip, SCALE)
    assert (plugin.skipped_steps, plugin.retried_steps) == (1, 0)


def test_an_overflow_in_the_backward_pass_is_one() -> None:
    plugin, _ = run(lambda module, hidden: hidden + (hidden - hidden.detach()) * 60)
    incident = plugin.incidents[0]
    assert (incident.cause, incident.action, incident.cured) == (Cause.backward, Action.retry, True)
    assert incident.evidence["backward_finite_at_lower_scale"] is True
    assert plugin.loss_scale < SCALE


def test_a_fault_that_counts_its_steps_strikes_again_in_the_second_run() -> None:
    plugin, model = run(lambda module, hidden: hidden / 0 if module.steps == SPOILED + 1 else hidden)
    (incident,) = plugin.incidents
    assert (incident.operator, incident.reason) == ("aten.div.Tensor", "division by zero")
    assert model.steps == 8


def test_a_fault_that_is_gone_in_the_second_run_is_told_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    left = [1.0]
    plugin, _ = run(lambda module, hidden: hidden / (0 if left and left.pop() else 1))
    (incident,) = plugin.incidents
    assert (incident.operator, incident.traced, incident.cause) == (None, False, Cause.forward)
    assert incident.evidence["reproduced"] is False
    assert "finite when it was run again" in " ".join(incident.evidence["missing"])
    assert "1 finite when run again" in capsys.readouterr().out


def test_a_weight_that_has_outgrown_fp16_is_named() -> None:
    class Grown(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == SPOILED:
                with torch.no_grad():
                    self.net[2].weight.mul_(1e7)

    plugin = AdaptivePrecision("fp16")
    model = fit(plugin, Grown())
    incident = plugin.incidents[0]
    assert (incident.operator, incident.layer) == ("aten._to_copy.default", "net.2")
    assert incident.evidence["tensor"] == "net.2.weight"
    assert (incident.reason or "").endswith(", in net.2.weight")
    assert "lower the learning rate" in advice(incident)
    assert all(weight.isfinite().all() for weight in weights(model))


def test_a_batch_that_is_too_large_for_fp16_is_named() -> None:
    data = regression_data()
    data.dataset.tensors[0][4 * SPOILED, 0] = 1e6  # type: ignore[attr-defined]
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Regression(), data)
    (incident,) = plugin.incidents
    assert (incident.cause, incident.evidence["tensor"]) == (Cause.forward, "batch[0]")
    assert "Normalise it" in advice(incident)


def test_in_fp32_a_division_by_zero_is_explained_too() -> None:
    plugin, _ = run(lambda module, hidden: hidden / 0, precision="fp32")
    (incident,) = plugin.incidents
    assert (incident.cause, incident.operator, incident.dtype) == (Cause.forward, "aten.div.Tensor", "fp32")
    assert "forward_finite_in_fp32" not in incident.evidence


def test_a_bad_number_in_a_numpy_batch_is_the_data_s_fault() -> None:
    class FromNumPy(Regression):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
            inputs = torch.from_numpy(batch["inputs"].astype("float32"))
            return super().training_step([inputs, batch["targets"]], batch_idx)

    batches = [{"inputs": inputs.numpy(), "targets": targets} for inputs, targets in regression_data()]
    batches[SPOILED]["inputs"][2, 5] = float("nan")
    plugin = AdaptivePrecision("fp16")
    fit(plugin, FromNumPy(), DataLoader(batches, batch_size=None, collate_fn=dict))  # type: ignore[arg-type]
    (incident,) = plugin.incidents
    assert (incident.cause, incident.batch_idx) == (Cause.data, SPOILED)
    assert incident.evidence["batch"][0] == {
        "path": "batch['inputs']",
        "nan": 1,
        "inf": 0,
        "samples": [2],
        "batch_idx": SPOILED,
        "rank": 0,
    }


def test_a_trace_that_fails_in_one_batch_of_a_window_goes_on_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ranks may wait for this one there."""
    traces: list[Any] = []
    original = Trace._look

    def look(self: Trace, *arguments: Any) -> None:
        if self not in traces:
            traces.append(self)
        if self is traces[0]:
            raise ZeroDivisionError("cannot look")
        original(self, *arguments)

    monkeypatch.setattr(Trace, "_look", look)
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE))
    fit(plugin, Spoiled(lambda module, hidden: hidden / 0), accumulate_grad_batches=4)
    (incident,) = plugin.incidents
    assert (incident.operator, incident.batch_idx) == ("aten.div.Tensor", SPOILED)
    assert incident.evidence["missing"] == ["some operators, by ZeroDivisionError: cannot look"]
