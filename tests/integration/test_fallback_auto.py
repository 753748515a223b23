"""`Fallback(auto=True)`: a run that fp16 would spoil ends well, with all batches, and the culprits in FP32."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config as functorch_config
from torch import nn
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.isolate import max_reruns
from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Action, Cause, Direction
from tests.helpers.faults.fp32 import FP32_FAULTS, HOPELESS, FP32Fault, Trained, fp32_fault
from tests.helpers.faults.training import checkpoint_blocks
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, fit, quiet_trainer, weights

SCALING = LossScaling(init_scale=2**8)
ALWAYS = range(5)
TWO = "transformer: two"
names = pytest.mark.parametrize("fault", FP32_FAULTS, ids=lambda fault: fault.name)


def plugin_with(fallback: Fallback | None, **options: Any) -> AdaptivePrecision:
    return AdaptivePrecision("fp16", **{"scaling": SCALING, "fallback": fallback, **options})


def train(
    fault: FP32Fault,
    plugin: AdaptivePrecision,
    *,
    faulty: Any = (2,),
    count: int = 5,
    model: Trained | None = None,
    ckpt_path: Path | None = None,
    **options: Any,
) -> Any:
    """Fit a fault's model; returns the trainer."""
    trainer = quiet_trainer(plugins=[plugin], **options)
    data = DataLoader(fault.batches(faulty=faulty, count=count), batch_size=None)  # type: ignore[arg-type]
    trainer.fit(model or fault.make(), data, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


def assert_finite(module: nn.Module) -> None:
    assert all(bool(each.isfinite().all()) for each in (*module.parameters(), *module.buffers()))


@names
def test_one_bad_batch_is_not_lost_and_leaves_the_smallest_set_in_fp32(fault):
    plugin, model = plugin_with(Fallback(auto=True)), fault.make()
    kinds = [type(module) for module in model.modules()]
    train(fault, plugin, model=model)
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert (plugin.skipped_steps, plugin.effective_step, plugin.retried_steps) == (0, 5, 1)
    assert plugin.loss_scale == SCALING.init_scale
    (incident,) = plugin.incidents
    assert (incident.step, incident.batch_idx, incident.action, incident.cured) == (2, 2, Action.fallback, True)
    assert (incident.culprits, incident.layer) == (fault.culprits, fault.origin)
    assert incident.evidence["proof"]["is_minimal"]
    if len(fault.culprits) == 1:
        layers = sum(1 for _ in model.modules())
        assert incident.evidence["proof"]["reruns"] <= max_reruns(layers) + 1  # one more: all of it in FP32
    assert_finite(model)
    # The user's module is as it was.
    assert [type(module) for module in model.modules()] == kinds
    assert "island" not in str(model)


@names
def test_where_every_batch_is_bad_training_is_that_with_the_culprits_in_fp32_from_the_start(fault):
    auto, ruled = plugin_with(Fallback(auto=True)), plugin_with(Fallback(layers=fault.culprits))
    found, told = fault.make(), fault.make()
    train(fault, auto, faulty=ALWAYS, model=found)
    train(fault, ruled, faulty=ALWAYS, model=told)
    assert len(auto.incidents) == 1
    assert ruled.incidents == []
    assert tuple(auto.fp32_layers) == tuple(ruled.fp32_layers) == fault.culprits
    assert auto.effective_step == 5
    assert_bitwise_equal(weights(found), weights(told))


@pytest.mark.parametrize("fault", HOPELESS, ids=lambda fault: fault.name)
def test_what_fp32_does_not_cure_moves_no_layer(fault):
    plugin, without = plugin_with(Fallback(auto=True)), plugin_with(None)
    model, same = fault.make(), fault.make()
    train(fault, plugin, model=model)
    train(fault, without, model=same)
    assert tuple(plugin.fp32_layers) == ()
    assert (plugin.skipped_steps, plugin.effective_step) == (1, 4)
    (incident,) = plugin.incidents
    assert (incident.action, incident.culprits, incident.cured) == (Action.skip, (), False)
    assert_bitwise_equal(weights(model), weights(same))


def test_a_batch_that_nothing_cures_does_not_keep_later_ones_from_their_cure():
    fault = fp32_fault("transformer: inside a layer")
    batches = fault.batches(faulty=(1, 3), count=5)
    batches[1] = batches[1]._replace(knob=torch.full_like(batches[1].knob, 3e38))  # beyond FP32, in the same line
    plugin = plugin_with(Fallback(auto=True))
    quiet_trainer(plugins=[plugin]).fit(fault.make(), DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    assert [(each.batch_idx, each.action) for each in plugin.incidents] == [(1, Action.skip), (3, Action.fallback)]
    assert tuple(plugin.fp32_layers) == fault.culprits


class OneOfAKind(type):
    def __new__(cls, name, bases, members):
        if any(isinstance(base, OneOfAKind) for base in bases):
            raise TypeError("no subclasses")
        return super().__new__(cls, name, bases, members)


class Final(nn.Linear, metaclass=OneOfAKind):
    pass


def test_a_layer_whose_class_cannot_be_exchanged_does_not_end_the_search():
    fault = fp32_fault("mlp: seen later")  # which takes a search over all layers
    plugin, model = plugin_with(Fallback(auto=True)), fault.make()
    model.net.hidden[0] = Final(model.net.hidden[0].in_features, model.net.hidden[0].out_features)
    train(fault, plugin, model=model)
    assert (tuple(plugin.fp32_layers), plugin.skipped_steps) == (fault.culprits, 0)


class FailsOnce(Trained):
    """Runs out of memory in one run of its bad batch, counted from 1."""

    failing, runs = 0, 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        FailsOnce.runs += batch_idx == 2
        if batch_idx == 2 and FailsOnce.runs == self.failing:
            raise MemoryError("no room")
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(("failing", "cured"), [(2, 4), (3, 4), (4, 2), (5, 4)])
def test_a_run_that_failed_proves_nothing(failing, cured, caplog):
    """Traced, at a lower scale, wholly in FP32 (which layers may do without), with the origin in FP32."""
    fault = fp32_fault("mlp: backward")
    plugin, model = plugin_with(Fallback(auto=True)), FailsOnce(fault.make().net)
    model.failing, FailsOnce.runs = failing, 0
    train(fault, plugin, model=model, faulty=(2, 4))
    assert "MemoryError: no room" in str(plugin.incidents[0].evidence["missing"])
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert plugin.incidents[-1].batch_idx == cured


def test_what_has_no_cure_is_searched_ever_less():
    fault = fp32_fault("mlp: inside a layer")
    plugin = plugin_with(Fallback(auto=True, max_fraction=0))
    train(fault, plugin, faulty=range(7), count=7)
    searched = [incident.batch_idx for incident in plugin.incidents if "proof" in incident.evidence]
    assert searched == [0, 1, 3]


@names
def test_a_healthy_run_is_bitwise_the_one_without(fault):
    watched, plain = fault.make(), fault.make()
    train(fault, plugin_with(Fallback(auto=True)), model=watched, faulty=())
    train(fault, plugin_with(None), model=plain, faulty=())
    assert_bitwise_equal(weights(watched), weights(plain))
    assert_bitwise_equal(list(watched.buffers()), list(plain.buffers()))


def test_without_auto_the_batch_is_skipped():
    plugin = plugin_with(Fallback())
    train(fp32_fault(TWO), plugin)
    assert (tuple(plugin.fp32_layers), plugin.skipped_steps) == ((), 1)
    assert plugin.incidents[0].action is Action.skip


def test_layers_that_a_rule_put_into_fp32_stay_and_are_not_proved_again():
    fault = fp32_fault(TWO)
    first, second = fault.culprits
    plugin = plugin_with(Fallback(auto=True, layers=[second]))
    train(fault, plugin)
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert plugin.incidents[0].culprits == (first,)


# What is known of a backward pass from an earlier incident must not hide that no loss scale cures it.
AGAIN = pytest.mark.parametrize("name", ["mlp: inside a layer", "mlp: backward", TWO])


@AGAIN
def test_patience_keeps_a_cure_to_its_batch_until_it_is_needed_again(name):
    fault = fp32_fault(name)
    plugin = plugin_with(Fallback(auto=True, patience=2))
    train(fault, plugin)
    assert (tuple(plugin.fp32_layers), plugin.skipped_steps) == ((), 0)
    assert plugin.incidents[0].culprits == fault.culprits
    train(fault, plugin, faulty=(1, 3))
    assert (tuple(plugin.fp32_layers), plugin.skipped_steps) == (fault.culprits, 0)
    assert [incident.action for incident in plugin.incidents] == [Action.fallback] * 2


@AGAIN
def test_a_layer_that_behaves_is_given_back_and_one_that_fails_twice_stays(name):
    fault = fp32_fault(name)
    plugin = plugin_with(Fallback(auto=True, probation_steps=2))
    train(fault, plugin, faulty=(0,), count=4)
    assert tuple(plugin.fp32_layers) == ()
    # In FP32 at 0; given back after 1; fails at 2, given back after 3; fails at 4, and stays.
    train(fault, plugin, faulty=(0, 2, 4), count=12)
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert [incident.batch_idx for incident in plugin.incidents] == [0, 2, 4]
    assert (plugin.skipped_steps, plugin.effective_step) == (0, 12)


@pytest.mark.parametrize("name", ["transformer: two", "transformer: inside a layer"])
def test_no_more_than_the_largest_share_is_moved(name):
    fault = fp32_fault(name)
    plugin = plugin_with(Fallback(auto=True, max_fraction=0))
    train(fault, plugin)
    assert (tuple(plugin.fp32_layers), plugin.skipped_steps) == ((), 1)
    assert "beyond Fallback.max_fraction=0" in plugin.incidents[0].evidence["proof"]["refused"]
    assert "beyond Fallback.max_fraction=0. Raise it, or name what was proved" in advice(plugin.incidents[0])


def test_at_the_lowest_scale_falling_back_is_a_setting_of_the_loss_scale_too():
    fault = fp32_fault("mlp: backward")
    scaling = LossScaling(init_scale=1, at_min_scale="fallback", patience=2, retries=0)  # type: ignore[arg-type]
    plugin = plugin_with(None, scaling=scaling)
    train(fault, plugin, faulty=ALWAYS)
    assert [incident.action for incident in plugin.incidents] == [Action.skip, Action.fallback]
    assert plugin.incidents[-1].direction is Direction.backward
    assert tuple(plugin.fp32_layers) == fault.culprits


def test_each_batch_of_an_accumulated_window_counts():
    fault = fp32_fault("transformer: inside a layer")
    for place in (2, 3):
        plugin, model = plugin_with(Fallback(auto=True)), fault.make()
        train(fault, plugin, faulty=(place,), count=6, model=model, accumulate_grad_batches=2)
        assert tuple(plugin.fp32_layers) == fault.culprits
        assert (plugin.skipped_steps, plugin.effective_step) == (0, 3)
        assert plugin.incidents[0].batch_idx == place
        assert_finite(model)


class Logging(Trained):
    """Counts in the training step, and in a hook that is not called again when a window is run again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("steps", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.log("ends", 1.0, on_step=False, on_epoch=True, reduce_fx="sum", batch_size=1)


@pytest.mark.parametrize(("accumulated", "place"), [(1, 0), (1, 2), (2, 1), (2, 3)])
def test_what_is_logged_counts_once_for_each_batch(accumulated, place):
    fault = fp32_fault("mlp: inside a layer")
    plugin, model = plugin_with(Fallback(auto=True)), Logging(fault.make().net)
    trainer = train(fault, plugin, faulty=(place,), count=6, model=model, accumulate_grad_batches=accumulated)
    assert plugin.incidents[0].action is Action.fallback
    assert (trainer.callback_metrics["steps"], trainer.callback_metrics["ends"]) == (6, 6)


@pytest.mark.parametrize(("probation_steps", "is_given_back"), [(20, False), (7, True)])
def test_a_resumed_run_has_the_same_layers_in_fp32_clocks_and_counters(probation_steps, is_given_back, tmp_path):
    fault = fp32_fault(TWO)
    config = Fallback(auto=True, probation_steps=probation_steps)
    whole, first, second = plugin_with(config), plugin_with(config), plugin_with(config)
    uninterrupted, resumed = fault.make(), fault.make()
    train(fault, whole, model=uninterrupted, max_epochs=2)
    train(fault, first, max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    assert tuple(first.fp32_layers) == fault.culprits
    train(fault, second, model=resumed, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    # Three clean steps before the checkpoint and five after it.
    assert tuple(second.fp32_layers) == tuple(whole.fp32_layers) == (() if is_given_back else fault.culprits)
    assert second.incidents == []  # the layers were in FP32 already
    assert second.state_dict() == whole.state_dict()
    assert second.layer_fallback.state == whole.layer_fallback.state
    assert_bitwise_equal(weights(resumed), weights(uninterrupted))


class Manual(Trained):
    """Calls its backward pass itself, within the autocast region."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.automatic_optimization = False


class TwoOptimizers(Manual):
    """Has the gradients of both before the first one steps."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(self.loss(self(batch.inputs, batch.knob), batch.targets, batch.knob))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.0) for part in (self.net.stem, self.net.head)]


def test_gradients_that_another_optimizer_still_has_scaled_are_not_sampled():
    fault, plugin = fp32_fault("mlp: inside a layer"), plugin_with(Fallback(auto=True))
    train(fault, plugin, faulty=(), model=TwoOptimizers(fault.make().net))
    assert plugin.scale_window is not None
    assert list(plugin.scale_window.by_layer) == ["net.stem"]


@pytest.mark.parametrize("name", ["mlp: backward", "transformer: two"])
def test_manual_optimization_runs_layers_of_a_rule_in_fp32_in_both_passes(name):
    fault = fp32_fault(name)
    plugin, model = plugin_with(Fallback(layers=fault.culprits)), Manual(fault.make().net)
    train(fault, plugin, model=model, faulty=ALWAYS)
    assert (plugin.incidents, plugin.effective_step) == ([], 5)


@pytest.mark.parametrize("name", ["cnn: inside a layer", TWO, "transformer: two that interact", "transformer: shared"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_models(name, use_reentrant):
    fault = fp32_fault(name)
    plugin, model = plugin_with(Fallback(auto=True)), fault.make()
    checkpoint_blocks(model, use_reentrant=use_reentrant)
    train(fault, plugin, model=model)
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert (plugin.skipped_steps, plugin.effective_step) == (0, 5)
    assert_finite(model)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("name", ["mlp: seen later", "mlp: backward", "cnn: two that interact"])
def test_compiled_models(name, in_place):
    fault = fp32_fault(name)
    plugin, model = plugin_with(Fallback(auto=True)), fault.make()
    if in_place:
        model.net.compile(backend="aot_eager")
    else:
        model.net = torch.compile(model.net, backend="aot_eager")
    train(fault, plugin, model=model)
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert (plugin.skipped_steps, plugin.effective_step) == (0, 5)
    assert_finite(model)


class InFP32ByHand(nn.Linear):
    """Of which torch.compile casts the backward pass, unless it is told not to."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def test_a_healthy_compiled_run_is_bitwise_the_one_without():
    fault = fp32_fault("mlp: inside a layer")

    def trained(fallback: Fallback | None) -> list[torch.Tensor]:
        torch._dynamo.reset()
        model = fault.make()
        model.net.hidden[0].__class__ = InFP32ByHand
        model.net.compile(backend="aot_eager")
        train(fault, plugin_with(fallback), model=model, faulty=())
        return weights(model)

    assert_bitwise_equal(trained(Fallback(auto=True)), trained(None))


@pytest.mark.parametrize("rule", ["net.hidden.3", "net.hidden.4"])
def test_the_compilers_setting_is_given_back_even_if_a_layer_is_refused(rule):
    fault, before = fp32_fault("mlp: inside a layer"), functorch_config.backward_pass_autocast
    model, during = fault.make(), []
    model.net.hidden[4].forward = lambda x: x
    model.on_train_start = lambda: during.append(functorch_config.backward_pass_autocast)
    is_refused = rule == "net.hidden.4"
    with pytest.raises(UnsupportedError, match="net.hidden.4") if is_refused else nullcontext():
        train(fault, plugin_with(Fallback(layers=[rule])), model=model, faulty=())
    assert during == ([] if is_refused else ["off"])
    assert functorch_config.backward_pass_autocast == before


class BadOnRankOne(Trained):
    """Only one rank's batches are bad."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 0:
            batch = batch._replace(knob=torch.ones_like(batch.knob))
        return super().training_step(batch, batch_idx)


def on_a_rank(name: str, directory: str) -> None:
    fault = fp32_fault(name)
    plugin, model = plugin_with(Fallback(auto=True), telemetry=Telemetry(directory=directory)), fault.make()
    model.__class__ = BadOnRankOne
    trainer = train(
        fault, plugin, model=model, strategy="ddp", devices=2, accelerator="cpu", use_distributed_sampler=False
    )
    assert trainer.world_size == 2
    assert tuple(plugin.fp32_layers) == fault.culprits
    assert (plugin.skipped_steps, plugin.effective_step) == (0, 5)
    assert plugin.incidents[0].rank == 1
    assert_finite(model)
    torch.save(weights(model), f"{directory}/{trainer.global_rank}.pt")


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize("name", ["mlp: backward", "mlp: seen later", "cnn: two that interact"])
def test_two_ranks_of_which_one_is_in_trouble_move_the_same_layers(name, tmp_path):
    run_on_ranks(on_a_rank, name, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert_bitwise_equal(first, second)


class OwnRegion(nn.Module):
    """Computes in an autocast region of its own: without the one around it, FP32 weights meet half inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 1)
        with torch.no_grad():
            self.inner.weight.mul_(1e6)

    def forward(self, x):
        with torch.autocast("cpu", torch.float16):
            hidden = torch.tanh(self.inner(x))
        return self.outer(hidden)


def test_a_layer_in_an_autocast_region_of_the_users_own_is_cured_too(caplog):
    model = Regression()
    model.net = OwnRegion()
    plugin = plugin_with(Fallback(auto=True, max_fraction=0.5))
    fit(plugin, model)
    assert (plugin.fp32_layers, plugin.skipped_steps) == (["net.inner"], 0)
    assert "mat1 and mat2" in str(plugin.incidents[0].evidence["missing"])


class HalfNorm(nn.Module):
    """Divides by a mean of squares that fp16 cannot hold: 1/inf is 0, and so is all that comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Normed(Regression):
    """With a norm whose input is in the thousands."""

    def __init__(self) -> None:
        super().__init__()
        first, tanh, last = self.net
        with torch.no_grad():
            first.weight.mul_(1000)
        self.net = nn.Sequential(first, HalfNorm(), tanh, last)


def test_an_inf_that_the_forward_pass_swallows_is_an_origin_too():
    plugin, model = AdaptivePrecision("fp16", fallback=Fallback(auto=True)), Normed()
    fit(plugin, model)
    (incident,) = plugin.incidents
    assert (incident.cause, incident.layer) == (Cause.backward, "net.1")
    assert incident.evidence["swallowed"]["operator"] == "aten.pow.Tensor_Scalar"
    assert (plugin.fp32_layers, plugin.skipped_steps) == (["net.1"], 0)
    assert plugin.loss_scale == 2.0**15
    assert any(weight.grad is not None and weight.grad.any() for weight in model.net[0].parameters())


def test_what_was_swallowed_is_told_without_auto():
    plugin = AdaptivePrecision("fp16")
    fit(plugin, Normed())
    incident = plugin.incidents[0]
    assert incident.action is Action.retry
    assert advice(incident).startswith("Look at net.1 first")


class Divided(Regression):
    """An Inf that is meant, and Inf in FP32 too: nothing for a layer to cure."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        outputs = self.net(inputs).float() + 1 / (torch.zeros_like(targets).reciprocal() + 1)
        return nn.functional.mse_loss(outputs, targets) * 2**12


def test_an_inf_that_fp32_makes_as_well_moves_no_layer():
    plugin = AdaptivePrecision("fp16", fallback=Fallback(auto=True))
    fit(plugin, Divided())
    assert plugin.incidents
    assert {incident.action for incident in plugin.incidents} <= {Action.retry, Action.backoff}
    assert plugin.fp32_layers == []
