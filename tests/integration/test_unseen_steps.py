"""Steps that nobody waits for: the device takes or skips them, and the host learns of it one step later."""

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.clean_steps import EXACT_STEPS
from mp_plugin.scaling.late_verdict import LateVerdict
from mp_plugin.scaling.step_plan import Route
from mp_plugin.telemetry.events import Action, Cause
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    fit,
    infinite_at,
    overflowing_at,
    regression_data,
    weights,
)

SCALE = 2.0**10
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgd-momentum": (SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (Adam, {"lr": 0.01, "amsgrad": True}),
    "adamw": (AdamW, {"lr": 0.01}),
    "adagrad": (Adagrad, {"lr": 0.01}),
}
CLIPPED = {"gradient_clip_val": 0.05}


def plugin_of(precision: str = "fp16", *, exact: bool | None = False, **options: Any) -> AdaptivePrecision:
    scaling = LossScaling(init_scale=SCALE, **options) if precision == "fp16" else None
    return AdaptivePrecision(precision, scaling=scaling, exact=exact)


def fused(name: str = "adamw", **options: Any) -> Regression:
    optimizer, settings = OPTIMIZERS[name]
    return Regression(optimizer=optimizer, fused=True, **settings, **options)


class Plans(Callback):
    """How each step was made."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, bool]] = []

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        plan = trainer.precision_plugin.step_plan
        self.seen.append((plan.route.value, plan.is_exact))

    @property
    def exact(self) -> list[bool]:
        return [is_exact for _, is_exact in self.seen]


@pytest.mark.parametrize("clipping", [{}, CLIPPED], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_a_healthy_run_is_the_exact_one_bit_by_bit(precision: str, name: str, clipping: dict[str, float]) -> None:
    plans = Plans()
    late, exact = plugin_of(precision), plugin_of(precision, exact=True)
    ours = fit(late, fused(name), callbacks=[plans], **clipping)
    theirs = fit(exact, fused(name), **clipping)
    assert_bitwise_equal(weights(ours), weights(theirs))
    # SGD's first step with momentum makes buffers that a skipped step would leave unfilled.
    assert plans.seen == [(Route.folded.value, batch == 0 and "momentum" in name) for batch in range(8)]
    assert late.effective_step == exact.effective_step == 8
    assert late.loss_scale == exact.loss_scale


@pytest.mark.parametrize("clipping", [{}, CLIPPED], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_batch_is_as_if_it_had_not_been_there(name: str, clipping: dict[str, float]) -> None:
    plugin = plugin_of()
    skipped = fit(plugin, fused(name, fault=overflowing_at(3)), **clipping)
    assert (plugin.effective_step, plugin.skipped_steps, plugin.retried_steps) == (7, 1, 0)
    assert plugin.loss_scale == SCALE / 2
    kept = [batch for batch_idx, batch in enumerate(regression_data()) if batch_idx != 3]
    oracle = fit(plugin_of(), fused(name), DataLoader(kept, batch_size=None), **clipping)
    assert_bitwise_equal(weights(skipped), weights(oracle))


def test_an_incident_that_is_seen_late_names_its_step_and_its_parameters() -> None:
    plugin = plugin_of()
    fit(plugin, fused(fault=overflowing_at(3)))
    (incident,) = plugin.incidents
    assert (incident.step, incident.batch_idx, incident.loss_scale) == (3, 3, SCALE)
    assert (incident.cause, incident.action, incident.kind) == (Cause.backward, Action.backoff, "nan")
    assert incident.parameters == ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")
    assert incident.evidence["untraced"] == "seen late"
    assert not incident.traced


def test_a_loss_that_was_not_finite_leaves_the_scale_alone() -> None:
    plugin = plugin_of()
    fit(plugin, fused(fault=infinite_at(3)))
    (incident,) = plugin.incidents
    assert (incident.cause, incident.action) == (Cause.unknown, Action.skip)
    assert incident.evidence["loss_finite"] is False
    assert (plugin.loss_scale, plugin.skipped_steps) == (SCALE, 1)


def test_without_a_loss_scale_it_is_the_same() -> None:
    plugin = plugin_of("bf16")
    model = fit(plugin, fused(fault=overflowing_at(2, 5)))
    assert (plugin.effective_step, plugin.skipped_steps, plugin.loss_scale) == (6, 2, 1.0)
    assert all(weight.isfinite().all() for weight in weights(model))
    assert [incident.step for incident in plugin.incidents] == [2, 5]


def test_the_last_step_is_settled_when_training_ends() -> None:
    plugin = plugin_of()
    fit(plugin, fused(fault=overflowing_at(7)))
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert plugin.incidents[-1].step == 7


def test_the_verdict_is_read_once_the_next_backward_pass_was_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    read = LateVerdict.read

    def reading(self: LateVerdict) -> Any:
        events.append(f"read {self.where.batch_idx}")
        return read(self)

    class Telling(Regression):
        def on_after_backward(self) -> None:
            events.append(f"backward {self.trainer.fit_loop.batch_idx}")

    monkeypatch.setattr(LateVerdict, "read", reading)
    fit(plugin_of(), Telling(optimizer=SGD, fused=True), regression_data(batches=4))
    assert events == ["backward 0", "backward 1", "read 0", "backward 2", "read 1", "backward 3", "read 2", "read 3"]


def test_schedulers_are_corrected_by_one_step() -> None:
    class Scheduled(Regression):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.turns: list[int] = []

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": OneCycleLR(optimizer, 1.0, total_steps=20), "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.turns.append(self.trainer.fit_loop.batch_idx)
            scheduler.step()

    ours, theirs = (
        fit(plugin, Scheduled(optimizer=SGD, fused=True, fault=overflowing_at(3)))
        for plugin in (plugin_of(), plugin_of(exact=True))
    )
    # The exact one may not step with batch 3, the late one knows of it a batch later.
    assert theirs.turns == [0, 1, 2, 4, 5, 6, 7]
    assert ours.turns == [0, 1, 2, 3, 5, 6, 7]


def test_schedulers_are_corrected_when_the_step_after_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that pretends not to be one: after an incident steps are waited for again."""
    monkeypatch.setattr("mp_plugin.step_planner.waits_for_nothing", lambda device: False)

    class Scheduled(Regression):
        turns = 0

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.01, total_steps=50), "interval": "step"}]

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.turns += 1
            scheduler.step()

    model, plugin = Scheduled(optimizer=SGD, fused=True, fault=overflowing_at(30)), plugin_of(exact=None)
    fit(plugin, model, regression_data(batches=40))
    assert (plugin.effective_step, plugin.skipped_steps) == (39, 1)
    assert model.turns == 39


def test_a_skipped_step_leaves_no_gradients_in_a_sample() -> None:
    found: list[Any] = []
    telemetry = Telemetry(every_n_steps=3, max_overhead=1, activations=True)
    plugin = AdaptivePrecision("bf16", telemetry=telemetry, exact=False)
    connect = plugin.sampler.connect
    plugin.sampler.connect = lambda module, **_: connect(module, report=lambda rows, _: found.extend(rows))  # type: ignore[method-assign, assignment, misc]
    fit(plugin, fused(fault=overflowing_at(3)))
    kinds = {step: {each.kind.value for each in found if each.step == step} for step in (0, 3, 6)}
    assert kinds[0] == kinds[6] == {"activation", "activation_gradient", "parameter_gradient"}
    assert "parameter_gradient" not in kinds[3]
    assert "activation" in kinds[3]


def test_a_state_of_an_optimizer_that_was_not_fused_can_be_loaded() -> None:
    """A loaded state brings `fused=None` along, and torch refuses to scale such a group."""

    class Loading(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            (optimizer,) = trainer.optimizers
            optimizer.load_state_dict(AdamW(pl_module.parameters(), lr=0.01).state_dict())

    plans, plugin = Plans(), plugin_of()
    fit(plugin, fused(), callbacks=[Loading(), plans])
    assert plans.seen == [(Route.separate.value, True)] * 8
    assert plugin.effective_step == 8


def test_buffers_of_a_skipped_batch_go_back_on_the_device() -> None:
    class Normed(Regression):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.net.insert(1, nn.BatchNorm1d(16))

    def data(*without: int) -> Any:
        return [batch for index, batch in enumerate(regression_data()) if index not in without]

    def poisoned() -> Any:
        batches = data()
        batches[3][0][0, 0] = float("inf")
        return DataLoader(batches, batch_size=None)

    plugin = plugin_of("bf16")
    ours = fit(plugin, Normed(optimizer=SGD, fused=True), poisoned())
    assert plugin.skipped_steps == 1
    oracle = fit(plugin_of("bf16"), Normed(optimizer=SGD, fused=True), DataLoader(data(3), batch_size=None))
    assert_bitwise_equal(list(ours.buffers()), list(oracle.buffers()))
    assert_bitwise_equal(weights(ours), weights(oracle))


def test_the_first_step_of_an_optimizer_is_exact() -> None:
    """A fused SGD that is told to skip its first step would keep momentum buffers that nobody has filled."""
    plans, plugin = Plans(), plugin_of(retries=0)
    model = fit(plugin, fused("sgd-momentum", fault=overflowing_at(0)), callbacks=[plans])
    assert plans.exact == [True, True, *[False] * 6]
    kept = DataLoader([*regression_data()][1:], batch_size=None)
    assert_bitwise_equal(weights(model), weights(fit(plugin_of(exact=True), fused("sgd-momentum"), kept)))


def test_patience_ends_a_run_one_step_later() -> None:
    plugin = plugin_of(min_scale=SCALE, patience=3)
    with pytest.raises(TrainingDivergedError, match=r"step 4 \(batch 4\).* 3 such steps in a row"):
        fit(plugin, fused(fault=overflowing_at(2, 3, 4, 5, 6)))
    assert (plugin.effective_step, plugin.skipped_steps) == (2, 3)


def test_two_late_overflows_at_one_scale_lower_it_once() -> None:
    """Batch 4 was scaled before batch 3 was known of, and tells nothing new."""
    plugin = plugin_of()
    fit(plugin, fused(fault=overflowing_at(3, 4)))
    assert [incident.loss_scale for incident in plugin.incidents] == [SCALE, SCALE]
    assert plugin.loss_scale == SCALE / 2


def test_windows_of_batches_skip_as_a_whole() -> None:
    plugin = plugin_of()
    fit(plugin, fused(fault=overflowing_at(4)), accumulate_grad_batches=2)
    assert (plugin.effective_step, plugin.skipped_steps) == (3, 1)
    assert plugin.incidents[0].step == 2


def test_a_checkpoint_knows_of_the_newest_step(tmp_path: Any) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=4, save_top_k=-1, filename="{step}")
    fit(plugin_of(), fused(fault=overflowing_at(3)), callbacks=[saving], enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=4.ckpt", weights_only=True)["AdaptivePrecision"]
    assert (saved["record"]["effective_step"], saved["record"]["skipped_steps"]) == (3, 1)
    assert saved["scale"] == SCALE / 2


def test_samples_are_those_of_an_exact_run() -> None:
    def samples(exact: bool) -> Any:
        telemetry = Telemetry(every_n_steps=2, max_overhead=1, activations=True)
        plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE), telemetry=telemetry, exact=exact)
        found: list[Any] = []
        connect = plugin.sampler.connect
        plugin.sampler.connect = lambda module, **_: connect(module, report=lambda rows, _: found.extend(rows))  # type: ignore[method-assign, assignment, misc]
        fit(plugin, fused(), **CLIPPED)
        return found

    late, exact = samples(False), samples(True)
    assert late == exact
    assert {each.step for each in late} == {0, 2, 4, 6}


def test_where_waiting_costs_time_it_waits_only_until_all_is_calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU that pretends not to be one: exact at first and after each incident and change of the scale."""
    monkeypatch.setattr("mp_plugin.step_planner.waits_for_nothing", lambda device: False)
    plans = Plans()
    plugin = plugin_of(exact=None, growth_interval=60)
    calm, incident, length = EXACT_STEPS, 30, 100
    model = fused(fault=lambda loss, index: overflowing_at(incident)(loss, index))
    fit(plugin, model, regression_data(batches=length), callbacks=[plans])
    # The incident is known of one step later, whose gradients are the last ones of the old scale.
    expected = [True] * calm + [False] * (incident + 1 - calm)
    expected += [True] * (1 + calm)
    # 60 clean steps later the scale grows, and the host learns of the last of them one step later.
    expected += [False] * (incident + 60 + 2 - len(expected))
    expected += [True] * (length - len(expected))
    assert plans.exact == expected
    assert (plugin.skipped_steps, plugin.loss_scale) == (1, SCALE)


def test_whoever_looks_at_gradients_is_waited_for() -> None:
    class Looking(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            pass

    plans, plugin = Plans(), plugin_of(exact=False)
    fit(plugin, fused(), callbacks=[plans, Looking()])
    assert plans.seen == [(Route.separate.value, True)] * 8
