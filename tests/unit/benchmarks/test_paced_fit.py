"""Trainings that take turns are the trainings that they are alone."""

from importlib import import_module

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from mp_plugin import AdaptivePrecision, Telemetry
from tests.helpers.training import assert_bitwise_equal, quiet_trainer, weights


@pytest.fixture
def paced():
    return import_module("helpers.paced_fit")


def start(paced, plugin, tmp_path, **options):
    model = import_module("helpers.models").MODELS["GPT"]["tiny"]
    trainer = {"default_root_dir": tmp_path, **options}
    return paced.PacedFit(model, plugin, device="cpu", optimizer={"foreach": True}, trainer=trainer)


def test_turns_train_as_one_fit_does(paced, tmp_path):
    stock = start(paced, MixedPrecision("bf16-mixed", "cpu"), tmp_path, gradient_clip_val=1.0)
    ours = start(paced, AdaptivePrecision("bf16"), tmp_path, gradient_clip_val=1.0)
    for _ in range(2):
        assert ours.run(1) > 0
        assert stock.run(2) > 0
    assert [fit._trainer.global_step for fit in (stock, ours)] == [4, 2]
    stock.finish()
    ours.finish()
    assert [fit._trainer.global_step for fit in (stock, ours)] == [5, 3]
    for fit, plugin, steps in (
        (stock, MixedPrecision("bf16-mixed", "cpu"), 5),
        (ours, AdaptivePrecision("bf16"), 3),
    ):
        model = import_module("helpers.models").MODELS["GPT"]["tiny"]
        alone = paced.Training(model, "cpu", {"foreach": True})
        quiet_trainer(plugins=[plugin], max_steps=steps, max_epochs=None, gradient_clip_val=1.0).fit(alone)
        assert_bitwise_equal(weights(fit.training), weights(alone))


def test_the_time_of_others_is_not_training_time(paced, tmp_path):
    ours = start(paced, AdaptivePrecision("bf16", telemetry=Telemetry(directory=str(tmp_path))), tmp_path)
    ours.run(2)
    clock = ours.plugin.sampler.clock
    assert clock.seconds > 0
    assert clock.seconds == clock.seconds
    ours.finish()


def test_a_turn_runs_within_a_context_of_its_own_thread(paced, tmp_path):
    fit = start(paced, MixedPrecision("bf16-mixed", "cpu"), tmp_path)
    seen = []

    class Seen(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    fit.run(1, within=Seen())
    num_seen = len(seen)
    fit.run(1)
    assert len(seen) == num_seen > 0
    fit.finish()


def test_an_error_of_the_training_is_raised_where_it_was_given_a_turn(paced, tmp_path):
    fit = start(paced, MixedPrecision("bf16-mixed", "cpu"), tmp_path)
    fit.training.net = None
    with pytest.raises(TypeError, match="not callable"):
        fit.run(1)
