import logging
import math

import pytest
import torch

from mp_plugin.config import LossScaling
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.guard import UNSCALED_PATIENCE, StepGuard, Where
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.events import Action


class Overflowing:
    """A model whose gradients are set by hand."""

    def __init__(self, guard: StepGuard) -> None:
        self.guard = guard
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def step(self, gradient: float, *, at: str = "1.weight") -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = torch.full_like(parameter, gradient if name == at else 0.0)
        verdict = self.guard.verdict(self.optimizer)
        if verdict.overflowed:
            self.guard.skip(self.optimizer, self.model, Where(batch_idx=7, rank=0))
        else:
            self.guard.step(self.optimizer, verdict, lambda: None)
        if self.guard.scaler is not None:
            self.guard.scaler.update()


def scaled(**options: object) -> Overflowing:
    return Overflowing(StepGuard(LossScaler(LossScaling(**options)), dtype="fp16"))  # type: ignore[arg-type]


def unscaled() -> Overflowing:
    return Overflowing(StepGuard(None, dtype="bf16"))


@pytest.mark.parametrize("make", [scaled, unscaled])
@pytest.mark.parametrize(("gradient", "kind"), [(math.inf, "inf"), (-math.inf, "inf"), (math.nan, "nan")])
def test_a_skipped_step_changes_nothing_and_names_the_parameter(make: object, gradient: float, kind: str) -> None:
    training = make()  # type: ignore[operator]
    before = [parameter.clone() for parameter in training.model.parameters()]
    training.step(gradient)
    torch.testing.assert_close(list(training.model.parameters()), before, rtol=0, atol=0)
    (incident,) = training.guard.record.incidents
    assert (incident.kind, incident.parameters, incident.batch_idx) == (kind, ("1.weight",), 7)
    assert (training.guard.record.effective_step, training.guard.record.skipped_steps) == (0, 1)


def test_what_was_done_is_recorded() -> None:
    training = scaled(init_scale=2, min_scale=1, patience=2)
    training.step(math.inf)
    training.step(math.inf)
    with pytest.raises(TrainingDivergedError):
        training.step(math.inf)
    actions = [(i.step, i.loss_scale, i.action) for i in training.guard.record.incidents]
    assert actions == [(0, 2.0, Action.backoff), (1, 1.0, Action.skip), (2, 1.0, Action.raise_)]


def test_a_hopeless_run_stops_with_good_weights_and_says_why() -> None:
    training = scaled(init_scale=1, patience=3)
    training.step(1.0)
    good = [parameter.clone() for parameter in training.model.parameters()]
    expected = r"inf gradients in 1.weight; 3 such steps in a row, at a loss scale that cannot go lower"
    training.step(math.inf)
    training.step(math.inf)
    with pytest.raises(TrainingDivergedError, match=expected):
        training.step(math.inf)
    torch.testing.assert_close(list(training.model.parameters()), good, rtol=0, atol=0)


def test_a_run_may_be_told_to_go_on() -> None:
    training = scaled(init_scale=1, patience=3, at_min_scale="skip")
    for _ in range(20):
        training.step(math.inf)
    training.step(1.0)
    assert (training.guard.record.effective_step, training.guard.record.skipped_steps) == (1, 20)


def test_without_a_scale_patience_ends_too() -> None:
    training = unscaled()
    for _ in range(UNSCALED_PATIENCE - 1):
        training.step(math.nan)
    training.step(1.0)
    for _ in range(UNSCALED_PATIENCE - 1):
        training.step(math.nan)
    with pytest.raises(TrainingDivergedError, match="10 such steps in a row. The weights are those"):
        training.step(math.nan)


def test_weights_that_are_lost_end_the_run_at_once() -> None:
    training = unscaled()
    with torch.no_grad():
        training.model[0].bias.fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="1 weights were not finite before this step, '0.bias' among them"):
        training.step(math.nan)


def test_the_log_names_the_first_incidents_then_ever_fewer(caplog: pytest.LogCaptureFixture) -> None:
    training = scaled(init_scale=2**20)
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            training.step(math.inf)
    assert [record.getMessage()[:7] for record in caplog.records] == ["step 0 ", "step 1 ", "step 3 ", "step 7 "]
    assert "loss scale lowered to 524,288" in caplog.text


def test_a_step_without_gradients_is_not_counted() -> None:
    training = unscaled()
    verdict = training.guard.verdict(training.optimizer)
    training.guard.step(training.optimizer, verdict, lambda: None)
    assert training.guard.record.steps == 0
