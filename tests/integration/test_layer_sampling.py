"""What a run samples of its layers is what went through them, each value once, and training is the same with it."""

import gc
import weakref
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from tests.helpers.training import (
    Regression,
    assert_bitwise_equal,
    infinite_at,
    overflowing_at,
    quiet_trainer,
    regression_data,
    weights,
)

ACTIVATION, BACK, PARAMETER = TensorKind
BATCH = 4


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    """As in a process of its own: where something is, steps are run once more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def full(**options: Any) -> Telemetry:
    return Telemetry(**{"every_n_steps": 2, "activations": True, "histograms": True, "max_overhead": 1, **options})


def train(
    plugin: AdaptivePrecision, model: Any = None, *, batches: int = 6, **options: Any
) -> tuple[list[LayerSample], Any]:
    """Train for an epoch and return all samples, and the model."""
    model = Regression() if model is None else model
    samples: list[LayerSample] = []
    connect = plugin.sampler.connect
    plugin.sampler.connect = lambda module, report: connect(module, report=lambda seen, step: samples.extend(seen))  # type: ignore[method-assign]
    quiet_trainer(plugins=[plugin], **options).fit(model, regression_data(batches=batches))
    return samples, model


def of(samples: list[LayerSample], kind: TensorKind, layer: str) -> list[LayerSample]:
    return [sample for sample in samples if sample.kind is kind and sample.layer == layer]


class Remembers(Regression):
    """Keeps what its layers put out and what came back, as a user's own hooks see it, in float64."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seen: dict[tuple[int, str, str], list[Tensor]] = {}
        for name, layer in self.net.named_children():
            layer.register_forward_hook(self.remember(f"net.{name}"))

    def remember(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if torch.is_grad_enabled():
                batch = self.trainer.fit_loop.batch_idx
                self.seen.setdefault((batch, name, "activation"), []).append(output.detach().double().clone())
                output.register_hook(
                    lambda grad: self.seen.setdefault((batch, name, "activation_gradient"), []).append(
                        grad.detach().double().clone()
                    )
                )

        return hook

    def on_after_backward(self) -> None:
        batch = self.trainer.fit_loop.batch_idx
        scale = self.trainer.precision_plugin.loss_scale
        for name, layer in self.net.named_children():
            grads = [each.grad.double().flatten() / scale for each in layer.parameters()]
            if grads:
                self.seen[batch, f"net.{name}", "parameter_gradient"] = [torch.cat(grads)]


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "bf16_true"])
def test_samples_are_what_went_through_the_layers(precision: str) -> None:
    plugin = AdaptivePrecision(precision, telemetry=full())
    samples, model = train(plugin, Remembers())
    assert sorted({sample.step for sample in samples}) == [0, 2, 4]
    assert {sample.layer for sample in samples} == {"net.0", "net.1", "net.2"}
    for sample in samples:
        values = torch.cat([each.flatten() for each in model.seen[sample.step, sample.layer, sample.kind.value]])
        if sample.kind is BACK:
            values = values / sample.loss_scale
        assert sample.stats.numel == values.numel()
        assert sample.stats.amax == values.abs().max()
        assert sample.stats.rms == pytest.approx(values.square().mean().sqrt().item(), rel=1e-6)
        assert sum(sample.stats.exponents.values()) == values.count_nonzero()
    assert len(samples) == 3 * (3 + 3 + 2)


def test_the_format_and_the_scale_of_each_kind_are_told() -> None:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**10), telemetry=full())
    samples, _ = train(plugin)
    kinds = {(each.kind, each.dtype, each.compute_dtype, each.loss_scale) for each in samples}
    assert kinds == {
        (ACTIVATION, "fp16", "fp16", 1.0),
        (BACK, "fp16", "fp16", 1024.0),
        (PARAMETER, "fp32", "fp16", 1024.0),
    }


def test_what_is_not_wanted_is_not_sampled() -> None:
    samples, _ = train(AdaptivePrecision("bf16", telemetry=full(gradients=False)))
    assert {each.kind for each in samples} == {ACTIVATION}
    samples, _ = train(AdaptivePrecision("bf16", telemetry=full(activations=False, histograms=False)))
    assert {each.kind for each in samples} == {PARAMETER}
    assert not any(each.stats.exponents for each in samples)
    for nothing in ({"every_n_steps": 0}, {"activations": False, "gradients": False}):
        assert train(AdaptivePrecision("bf16", telemetry=full(**nothing)))[0] == []


class Dropping(Regression):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.net.insert(1, nn.BatchNorm1d(16))
        self.net.insert(2, nn.Dropout(0.5))


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_the_same_with_it(precision: str, accumulate: int) -> None:
    def run(telemetry: Telemetry) -> tuple[Any, Any]:
        plugin, model = AdaptivePrecision(precision, telemetry=telemetry), Dropping()
        torch.manual_seed(7)
        samples, model = train(plugin, model, accumulate_grad_batches=accumulate, gradient_clip_val=0.1)
        assert bool(samples) == bool(telemetry.every_n_steps)
        buffers = [each.clone() for each in model.buffers()]
        return weights(model) + buffers + [torch.get_rng_state()], model.losses

    watched, losses = run(full(every_n_steps=1))
    plain, plain_losses = run(Telemetry(every_n_steps=0))
    assert_bitwise_equal(watched, plain)
    assert losses == plain_losses


def test_an_accumulated_batch_counts_once() -> None:
    plugin = AdaptivePrecision("bf16", telemetry=full(every_n_steps=1))
    samples, _ = train(plugin, batches=6, accumulate_grad_batches=3)
    assert [each.step for each in of(samples, ACTIVATION, "net.0")] == [0, 1]
    assert {each.stats.numel for each in of(samples, ACTIVATION, "net.0")} == {3 * BATCH * 16}
    assert {each.stats.numel for each in of(samples, BACK, "net.0")} == {3 * BATCH * 16}
    assert {each.stats.numel for each in of(samples, PARAMETER, "net.0")} == {8 * 16 + 16}


class Checkpointed(Regression):
    def __init__(self, *, use_reentrant: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.use_reentrant = use_reentrant

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        outputs = checkpoint(self.net, self.stem(batch[0]), use_reentrant=self.use_reentrant)
        return nn.functional.mse_loss(outputs.float(), batch[1])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_layer_counts_once(use_reentrant: bool) -> None:
    plugin = AdaptivePrecision("bf16", telemetry=full(every_n_steps=1))
    samples, _ = train(plugin, Checkpointed(use_reentrant=use_reentrant), batches=3)
    for layer, width in (("stem", 8), ("net.0", 16), ("net.1", 16), ("net.2", 1)):
        for kind in (ACTIVATION, BACK):
            assert [each.stats.numel for each in of(samples, kind, layer)] == [BATCH * width] * 3, (layer, kind)


class Compiled(Regression):
    """Compiles a function of its own, which nobody sees from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.graphs = 0
        self.run = torch.compile(self.net.forward, backend=self.backend, fullgraph=True)

    def backend(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.run(batch[0]).float(), batch[1])


@pytest.mark.parametrize("wholly", [False, True])
def test_compiled_layers_are_sampled_without_another_graph(wholly: bool) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def run(telemetry: Telemetry) -> tuple[list[LayerSample], Any, int]:
        model: Any = Compiled()
        if wholly:
            model = Regression()
            model.net = torch.compile(model.net, backend=backend, fullgraph=True)
        graphs.clear()
        samples, _ = train(AdaptivePrecision("bf16", telemetry=telemetry), model)
        return samples, weights(model), len(graphs) if wholly else model.graphs

    samples, watched, num_graphs = run(full())
    assert {(each.step, each.layer, each.kind) for each in samples} == {
        (step, layer, kind)
        for step in (0, 2, 4)
        for layer in ("net.0", "net.1", "net.2")
        for kind in TensorKind
        if (layer, kind) != ("net.1", PARAMETER)
    }
    torch._dynamo.reset()
    _, plain, plain_graphs = run(Telemetry(every_n_steps=0))
    assert_bitwise_equal(watched, plain)
    assert num_graphs == plain_graphs == 1


class Manual(Regression):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        loss = nn.functional.mse_loss(self.net(batch[0]).float(), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_manual_optimization_is_sampled_as_it_goes() -> None:
    samples, watched = train(AdaptivePrecision("fp16", telemetry=full()), Manual())
    assert [each.step for each in of(samples, ACTIVATION, "net.0")] == [0, 2, 4]
    assert [each.step for each in of(samples, BACK, "net.0")] == [0, 2, 4]
    assert [each.step for each in of(samples, PARAMETER, "net.0")] == [0, 2, 4]
    _, plain = train(AdaptivePrecision("fp16", telemetry=Telemetry(every_n_steps=0)), Manual())
    assert_bitwise_equal(weights(watched), weights(plain))


def test_compiled_parts_of_manual_optimization_are_not_compiled_for_a_sample() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model: Any = Manual()
    model.net = torch.compile(model.net, backend=backend)
    samples, _ = train(AdaptivePrecision("bf16", telemetry=full()), model)
    assert len(graphs) == 1
    assert [each.step for each in of(samples, PARAMETER, "net.0")] == [0, 2, 4]


def test_a_batch_that_is_run_again_counts_once() -> None:
    scaling = LossScaling(init_scale=2.0**24, max_scale=2.0**24, retries=20)
    plugin = AdaptivePrecision("fp16", scaling=scaling, telemetry=full(every_n_steps=1))
    samples, _ = train(plugin, batches=3)
    assert plugin.retried_steps
    assert [each.stats.numel for each in of(samples, ACTIVATION, "net.0")] == [BATCH * 16] * 3


def test_a_skipped_step_shows_its_activations() -> None:
    plugin = AdaptivePrecision("bf16", telemetry=full())
    samples, _ = train(plugin, Regression(fault=overflowing_at(2)), batches=4)
    assert plugin.skipped_steps == 1
    skipped = [each for each in samples if each.step == 2]
    assert {each.kind for each in skipped} == {ACTIVATION, BACK}
    assert of(skipped, BACK, "net.2")[0].stats.non_finite == BATCH


def test_layers_in_fp32_are_told_apart() -> None:
    plugin = AdaptivePrecision("fp16", fallback=Fallback(layers=["net.0"]), telemetry=full())
    samples, _ = train(plugin)
    assert {each.dtype for each in of(samples, ACTIVATION, "net.0")} == {"fp32"}
    assert {each.dtype for each in of(samples, ACTIVATION, "net.2")} == {"fp16"}


def test_a_shared_layer_has_one_sample() -> None:
    class Twice(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            first, second = self.net(batch[0]), self.net(batch[0] + 1)
            return nn.functional.mse_loss((first + second).float(), batch[1])

    samples, _ = train(AdaptivePrecision("bf16", telemetry=full()), Twice())
    assert [each.stats.numel for each in of(samples, ACTIVATION, "net.0")] == [2 * BATCH * 16] * 3
    assert [each.stats.numel for each in of(samples, BACK, "net.0")] == [2 * BATCH * 16] * 3


def test_the_budget_leaves_samples_out(monkeypatch: Any) -> None:
    # However quick the machine is: samples are not free of the budget, and that is next to nothing.
    monkeypatch.setattr("mp_plugin.telemetry.sample_budget.FREE_SECONDS", 0.0)
    plugin = AdaptivePrecision("bf16", telemetry=full(every_n_steps=1, max_overhead=1e-6))
    samples, _ = train(plugin, batches=20)
    told = plugin.summary()["telemetry"]
    assert told["taken"] == len({each.step for each in samples}) == 1
    assert told["left_out"] == 19
    assert told["share"] == pytest.approx(told["seconds"] / told["training_seconds"], rel=1e-2)
    assert told["share"] > 1e-6


def test_what_cannot_be_sampled_is_told_once_and_training_goes_on(caplog: Any, monkeypatch: Any) -> None:
    def broken(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("mp_plugin.layer_sampling.stats_row", broken)
    plugin = AdaptivePrecision("bf16", telemetry=full())
    samples, model = train(plugin)
    assert samples == []
    assert plugin.effective_step == 6
    assert plugin.summary()["telemetry"]["taken"] == 0
    assert [each.getMessage() for each in caplog.records if "sampled" in each.getMessage()] == [
        "activation of net.0 cannot be sampled; what cannot is left out."
    ]


@pytest.mark.parametrize("broken", ["held_gradients", "SampleRows.read_back", "in_order"])
def test_an_error_of_its_own_never_stops_a_run(caplog: Any, monkeypatch: Any, broken: str) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(f"mp_plugin.layer_sampling.{broken}", fail)
    plugin = AdaptivePrecision("bf16", telemetry=full())
    train(plugin)
    assert plugin.effective_step == 6
    told = [each for each in caplog.records if each.name.startswith("mp_plugin")]
    assert [each.getMessage() for each in told] == ["A sample of the layers was lost; training goes on."]


def test_a_plugin_does_not_keep_a_model() -> None:
    plugin = AdaptivePrecision("bf16", telemetry=full())
    model = weakref.ref(train(plugin)[1])
    gc.collect()
    assert model() is None
    assert plugin.summary()["telemetry"]["taken"] == 3


def test_no_hook_is_left_and_a_plugin_can_sample_twice() -> None:
    plugin, model = AdaptivePrecision("bf16", telemetry=full()), Regression()
    first, _ = train(plugin, model)
    plugin.sampler.connect = type(plugin.sampler).connect.__get__(plugin.sampler)  # type: ignore[method-assign]
    second, _ = train(plugin, model)
    assert {each.step for each in second} == {each.step for each in first} == {0, 2, 4}
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("logger", [False, True])
def test_nothing_is_written_that_nobody_asked_for(tmp_path: Path, logger: bool) -> None:
    trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16")], default_root_dir=tmp_path)
    trainer.fit(Regression(), regression_data())
    assert list(tmp_path.iterdir()) == []
    if logger:
        csv = pl.loggers.CSVLogger(tmp_path)
        trainer = quiet_trainer(plugins=[AdaptivePrecision("bf16")], default_root_dir=tmp_path, logger=csv)
        trainer.fit(Regression(), regression_data())
        assert len(list(tmp_path.rglob("telemetry/stats/part-*.parquet"))) == 1


def test_a_run_that_ends_by_an_exception_keeps_its_samples(tmp_path: Path) -> None:
    class Stops(Regression):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            if batch_idx == 5:
                raise RuntimeError("enough")
            return super().training_step(batch, batch_idx)

    plugin = AdaptivePrecision("bf16", telemetry=full(directory=str(tmp_path)))
    with pytest.raises(RuntimeError, match="enough"):
        quiet_trainer(plugins=[plugin]).fit(Stops(), regression_data())
    from mp_plugin.telemetry.store import open_run

    run = open_run(tmp_path)
    assert run.info is not None
    assert run.info.status == "stopped"
    assert sorted(set(run.samples["step"].to_pylist())) == [0, 2, 4]


def test_a_first_step_that_is_skipped_shows_its_activations() -> None:
    samples, _ = train(AdaptivePrecision("bf16", telemetry=full()), Regression(fault=infinite_at(0)))
    assert {each.kind for each in samples if each.step == 0} == {ACTIVATION, BACK}
    assert sorted({each.step for each in samples}) == [0, 2, 4]
