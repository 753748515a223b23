import logging
import math
from typing import Any

import pytest
import torch

from mp_plugin.config import LossScaling
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.guard import NOT_EXPLAINED, UNSCALED_PATIENCE, Explanation, StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.events import Action, Cause, Incident


class Overflowing:
    """A model whose gradients are set by hand."""

    def __init__(self, guard: StepGuard) -> None:
        self.guard = guard
        self.model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)

    def skip(
        self, explanation: Explanation = NOT_EXPLAINED, *, rank: int = 0, scale_is_to_blame: bool | None = None
    ) -> None:
        blame = self.guard.scaler is not None if scale_is_to_blame is None else scale_is_to_blame
        self.guard.skip(self.optimizer, self.model, Where(batch_idx=7, rank=rank), explanation, scale_is_to_blame=blame)

    def step(self, gradient: float, *, at: str = "1.weight") -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = torch.full_like(parameter, gradient if name == at else 0.0)
        verdict = self.guard.verdict(self.optimizer)
        if verdict.overflowed:
            self.skip()
        else:
            self.guard.step(self.optimizer, verdict, lambda: None, where=Where(batch_idx=0, rank=0))
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
    expected = r"inf gradients in 1.weight; 3 such steps in a row, at a loss scale of 1 that cannot go lower"
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


@pytest.mark.parametrize("make", [scaled, unscaled])
def test_weights_that_are_lost_end_the_run_at_once(make: Any) -> None:
    training = make()
    training.model[0].weight.grad = torch.full_like(training.model[0].weight, math.nan)
    lost = {"cause": Cause.weights, "evidence": {"weights": ["0.bias"]}}
    training.guard.verdict(training.optimizer)
    with pytest.raises(TrainingDivergedError, match="1 weights, '0.bias' among them, were not finite before this step"):
        training.skip(lost, scale_is_to_blame=False)
    assert training.guard.record.incidents[0].action is Action.raise_


def test_names_are_right_beside_parameters_without_a_gradient() -> None:
    training = unscaled()
    training.model[0].weight.requires_grad_(False)
    for name, parameter in training.model.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, math.inf if name == "1.bias" else 0.0)
    training.guard.skip(
        training.optimizer,
        training.model,
        Where(batch_idx=0, rank=0),
        NOT_EXPLAINED,
        scale_is_to_blame=training.guard.scaler is not None,
    )
    assert training.guard.record.incidents[0].parameters == ("1.bias",)


def test_one_nan_among_infs_makes_the_kind() -> None:
    training = unscaled()
    for parameter, value in zip(training.model.parameters(), (math.inf, math.nan, 0.0, math.inf), strict=True):
        parameter.grad = torch.full_like(parameter, value)
    training.guard.skip(
        training.optimizer,
        training.model,
        Where(batch_idx=0, rank=0),
        NOT_EXPLAINED,
        scale_is_to_blame=training.guard.scaler is not None,
    )
    assert training.guard.record.incidents[0].kind == "nan"


def test_a_skipped_optimizer_is_ready_for_its_next_gradients_under_the_same_scale() -> None:
    training = scaled(init_scale=4, growth_interval=1)
    for gradient in (math.inf, 4.0):
        training.optimizer.zero_grad()
        training.model[1].weight.grad = torch.full_like(training.model[1].weight, gradient)
        before = training.model[1].weight.item()
        verdict = training.guard.verdict(training.optimizer)
        if verdict.overflowed:
            training.guard.skip(
                training.optimizer,
                training.model,
                Where(batch_idx=0, rank=0),
                NOT_EXPLAINED,
                scale_is_to_blame=training.guard.scaler is not None,
            )
        else:
            training.guard.step(training.optimizer, verdict, lambda: None, where=Where(batch_idx=0, rank=0))
    assert training.model[1].weight.item() == pytest.approx(before - 1.0)


def spoil(training: Overflowing) -> None:
    """A step whose loss was not finite already."""
    training.model[0].weight.grad = torch.full_like(training.model[0].weight, math.nan)
    training.guard.verdict(training.optimizer)
    training.skip(scale_is_to_blame=False)
    assert training.guard.scaler is not None
    training.guard.scaler.update()


def test_a_scale_that_is_not_to_blame_stays() -> None:
    training = scaled(init_scale=4, growth_interval=2)
    training.step(1.0)
    spoil(training)
    assert training.guard.loss_scale == 4
    assert training.guard.record.incidents[0].action is Action.skip
    training.step(1.0)
    assert training.guard.loss_scale == 8


def test_patience_ends_without_the_scale_too() -> None:
    training = scaled(init_scale=2**15, patience=3)
    spoil(training)
    spoil(training)
    training.step(1.0)
    spoil(training)
    spoil(training)
    with pytest.raises(TrainingDivergedError, match=r"3 such steps in a row\. The weights"):
        spoil(training)
    forgiving = scaled(patience=3, at_min_scale="skip")
    for _ in range(10):
        spoil(forgiving)


def test_backing_off_from_a_scale_that_was_too_high_costs_no_patience() -> None:
    training = scaled(init_scale=2**15, patience=3)
    for _ in range(5):
        training.step(math.inf)
    spoil(training)
    assert training.guard.record.incidents[-1].action is Action.skip


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (Cause.loss, True),
        (Cause.backward, True),
        (Cause.unknown, True),
        (Cause.forward, False),
        (Cause.data, False),
        (Cause.weights, False),
    ],
)
def test_when_the_scale_is_to_blame(cause: Cause, expected: bool) -> None:
    assert scaled().guard.is_scale_to_blame({"cause": cause}) is expected
    assert unscaled().guard.is_scale_to_blame({"cause": cause}) is False


def test_what_is_explained_is_what_is_recorded_and_reported() -> None:
    training = unscaled()
    told: list[Incident] = []
    training.guard.report = told.append
    training.model[0].weight.grad = torch.full_like(training.model[0].weight, math.nan)
    why = {"cause": Cause.forward, "kind": "inf", "operator": "aten.exp.default", "traced": True, "rank": 3}
    training.skip(why, scale_is_to_blame=False)
    (incident,) = training.guard.record.incidents
    assert told == [incident]
    assert (incident.cause, incident.kind, incident.operator, incident.rank) == (
        Cause.forward,
        "inf",
        "aten.exp.default",
        3,
    )
    assert incident.parameters == ("0.weight",)


def test_a_retry_is_reported_when_it_is_known_how_it_ended() -> None:
    training = scaled(init_scale=4)
    told: list[Incident] = []
    training.guard.report = told.append
    training.model[0].weight.grad = torch.full_like(training.model[0].weight, math.inf)
    assert training.guard.verdict(training.optimizer).overflowed
    why = {"cause": Cause.backward, "evidence": {"loss": 2.0}}
    incident = training.guard.back_off(training.optimizer, training.model, Where(batch_idx=0, rank=0), why)
    assert told == []
    training.guard.conclude(incident, cured=True)
    assert told == list(training.guard.record.incidents)
    assert (told[0].action, told[0].cured) == (Action.retry, True)
    assert told[0].evidence == {"loss": 2.0}


def test_starting_afresh_forgets_scale_and_record() -> None:
    training = scaled(init_scale=4)
    training.step(math.inf)
    training.guard.start_afresh()
    assert (training.guard.loss_scale, training.guard.record.steps) == (4, 0)


def test_an_optimizer_that_goes_on_does_not_hide_one_that_is_stuck() -> None:
    training = unscaled()
    other = torch.optim.SGD(training.model.parameters(), lr=0.0)

    def step_both() -> None:
        training.step(math.nan)
        training.model.zero_grad()
        training.model[0].weight.grad = torch.zeros_like(training.model[0].weight)
        training.guard.step(other, training.guard.verdict(other), lambda: None, where=Where(0, 0, optimizer_idx=1))

    for _ in range(UNSCALED_PATIENCE - 1):
        step_both()
    with pytest.raises(TrainingDivergedError, match="10 such steps in a row"):
        step_both()


def test_an_optimizer_whose_step_takes_no_closure() -> None:
    class Plain(torch.optim.SGD):
        def step(self) -> None:  # type: ignore[override]
            super().step()

    for training in (scaled(), unscaled()):
        training.optimizer = Plain(training.model.parameters(), lr=1.0)
        training.step(1.0)
        assert training.guard.record.effective_step == 1


def test_the_log_names_the_first_incidents_then_ever_fewer(caplog: pytest.LogCaptureFixture) -> None:
    training = scaled(init_scale=2**20)
    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            training.step(math.inf)
    assert [record.getMessage()[:7] for record in caplog.records] == ["step 0 ", "step 1 ", "step 3 ", "step 7 "]
    assert "loss scale lowered to 524,288" in caplog.text


def test_only_the_first_rank_writes_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    training = unscaled()
    training.model[0].weight.grad = torch.full_like(training.model[0].weight, math.inf)
    training.guard.skip(
        training.optimizer,
        training.model,
        Where(batch_idx=0, rank=1),
        NOT_EXPLAINED,
        scale_is_to_blame=training.guard.scaler is not None,
    )
    assert caplog.text == ""
    assert training.guard.record.incidents[0].rank == 1


def test_a_step_without_gradients_is_not_counted() -> None:
    training = unscaled()
    verdict = training.guard.verdict(training.optimizer)
    training.guard.step(training.optimizer, verdict, lambda: None, where=Where(batch_idx=0, rank=0))
    assert training.guard.record.steps == 0
