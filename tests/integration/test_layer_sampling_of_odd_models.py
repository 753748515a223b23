"""Samples of models that do unusual things: each value counts once, and training is the same with them."""

from collections import Counter
from functools import partial
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mp_plugin import AdaptivePrecision, Telemetry
from mp_plugin.step_start import MicroBatch
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

ACTIVATION, BACK, PARAMETER = TensorKind
BATCH = 4
FULL = Telemetry(every_n_steps=1, activations=True, histograms=True, max_overhead=1)


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    """As in a process of its own: where something is, steps are run once more."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def train(model: Any, precision: str = "bf16", telemetry: Telemetry = FULL, **options: Any) -> list[LayerSample]:
    """Train for an epoch and return all samples."""
    plugin = AdaptivePrecision(precision, telemetry=telemetry)
    samples: list[LayerSample] = []
    connect = plugin.sampler.connect
    plugin.sampler.connect = lambda module, report: connect(module, report=lambda seen, step: samples.extend(seen))  # type: ignore[method-assign]
    torch.manual_seed(7)
    quiet_trainer(plugins=[plugin], **options).fit(model, regression_data(batches=6))
    return samples


def numel(samples: list[LayerSample], layer: str, kind: TensorKind) -> list[int]:
    return [each.stats.numel for each in samples if each.layer == layer and each.kind is kind]


class Head(Regression):
    """A part before the network of the regression, which sees it through `features`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.part = self.build()

    def build(self) -> Any:
        return nn.Linear(8, 8)

    def features(self, inputs: Tensor) -> Tensor:
        return self.part(inputs)  # type: ignore[no-any-return]

    def outputs(self, inputs: Tensor) -> Tensor:
        return self.net(self.features(inputs))  # type: ignore[no-any-return]

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self.outputs(batch[0]).float(), batch[1])


class Prompt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self) -> Tensor:
        return self.weight


class Prompted(Head):
    """A layer that puts out its own parameter, which stays when the step is over."""

    def build(self) -> Any:
        return Prompt()

    def features(self, inputs: Tensor) -> Tensor:
        return inputs + self.part()  # type: ignore[no-any-return]


class Selective(Head):
    """Whose checkpoint keeps what each operator has put out, in the order in which they were called."""

    def features(self, inputs: Tensor) -> Tensor:
        return super().features(inputs) * (inputs.abs() + 1).sum(1, keepdim=True).rsqrt()

    def outputs(self, inputs: Tensor) -> Tensor:
        keep = partial(create_selective_checkpoint_contexts, lambda *_, **__: CheckpointPolicy.MUST_SAVE)
        inputs = inputs.clone().requires_grad_()
        return checkpoint(super().outputs, inputs, use_reentrant=False, context_fn=keep)  # type: ignore[no-any-return]


class Teacher(Head):
    """A frozen encoder in evaluation, whose parts torch fuses."""

    def build(self) -> Any:
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(False)

    def on_train_batch_start(self, *_: Any) -> None:
        self.part.eval()

    @torch.no_grad()
    def features(self, inputs: Tensor) -> Tensor:
        return self.part(inputs[:, None])[:, 0]  # type: ignore[no-any-return]


class TakesTurns(Head):
    """Whose step takes something that nobody can put back."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = cycle([0.5, 1.0, 2.0, 3.0])

    def features(self, inputs: Tensor) -> Tensor:
        return super().features(inputs * next(self.factors))


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("model", [Prompted, Selective, Teacher, TakesTurns])
def test_training_is_the_same(model: type[Head], precision: str) -> None:
    watched, plain = model(), model()
    assert train(watched, precision)
    assert train(plain, precision, Telemetry(every_n_steps=0)) == []
    assert_bitwise_equal(weights(watched), weights(plain))
    assert not any(parameter._backward_hooks for parameter in watched.parameters())


def test_a_layer_that_puts_out_its_parameter_counts_once() -> None:
    samples = train(Prompted())
    for kind in TensorKind:
        assert numel(samples, "part", kind) == [8] * 6


def test_a_closure_that_is_called_several_times_counts_once() -> None:
    class Within(Head):
        def outputs(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.net, self.features(inputs), use_reentrant=True)  # type: ignore[no-any-return]

    samples = train(Within(optimizer=torch.optim.LBFGS, max_iter=4))
    for layer, inside, outside in (("part", 8, 8), ("net.0", 8, 16)):
        assert numel(samples, layer, ACTIVATION) == [BATCH * outside] * 6
        assert numel(samples, layer, BACK) == [BATCH * outside] * 6
        assert numel(samples, layer, PARAMETER) == [inside * outside + outside] * 6


def test_a_layer_inside_a_reentrant_checkpoint_and_outside_counts_for_both() -> None:
    class Both(Head):
        def outputs(self, inputs: Tensor) -> Tensor:
            features = self.features(inputs)
            return checkpoint(self.net, features, use_reentrant=True) + self.net(features)  # type: ignore[no-any-return]

    samples = train(Both())
    assert numel(samples, "net.0", ACTIVATION) == numel(samples, "net.0", BACK) == [2 * BATCH * 16] * 6


class Penalised(Head):
    """Asks for a gradient on the way, which does not carry the loss scale."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs = batch[0].clone().requires_grad_()
        outputs = self.outputs(inputs).float()
        (gradient,) = torch.autograd.grad(1e4 * outputs.sum(), inputs, create_graph=True)
        return nn.functional.mse_loss(outputs, batch[1]) + 1e-12 * gradient.square().sum()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_only_the_gradients_of_the_loss_count(precision: str) -> None:
    samples = train(Penalised(), precision)
    assert numel(samples, "net.0", BACK) == [BATCH * 16] * 6
    assert max(each.stats.amax for each in samples if each.layer == "net.2" and each.kind is BACK) < 10


class ByHand(Head):
    """Collects the gradients of two batches for a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 2)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


def test_batches_that_manual_optimization_accumulates_count_once() -> None:
    samples = train(ByHand())
    assert sorted({each.step for each in samples}) == [0, 1, 2]
    assert numel(samples, "part", ACTIVATION) == numel(samples, "part", BACK) == [2 * BATCH * 8] * 3
    assert numel(samples, "part", PARAMETER) == [8 * 8 + 8] * 3


def test_a_batch_in_the_memory_of_an_earlier_one_counts(monkeypatch: Any) -> None:
    class InOnePlace(MicroBatch):
        place: Any = None

        def __new__(cls, *_: Any) -> Any:
            cls.place = cls.place or super().__new__(cls)
            return cls.place

    monkeypatch.setattr("mp_plugin.step_start.MicroBatch", InOnePlace)
    assert numel(train(ByHand()), "part", ACTIVATION) == [2 * BATCH * 8] * 3


def test_an_optimizer_that_steps_unseen_does_not_keep_a_sample_open(monkeypatch: Any) -> None:
    class Unseen(ByHand):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            self.manual_backward(Head.training_step(self, batch, batch_idx))
            optimizer.step()

    monkeypatch.setattr("mp_plugin.layer_sampling.MOST_BATCHES", 4)
    assert numel(train(Unseen()), "part", ACTIVATION) == [4 * BATCH * 8]


class Odd(nn.Module):
    """Puts out what has no plain list of values."""

    def forward(self, inputs: Tensor) -> Any:
        return torch.nested.as_nested_tensor([inputs[0], inputs[1]], layout=torch.jagged)


def test_what_cannot_be_sampled_is_left_out_alone(caplog: Any) -> None:
    class Mixed(Head):
        def build(self) -> Any:
            return Odd()

        def features(self, inputs: Tensor) -> Tensor:
            self.part(inputs)
            return inputs

    samples = train(Mixed())
    assert Counter(each.layer for each in samples) == {"net.0": 18, "net.1": 12, "net.2": 18}
    assert [each.getMessage() for each in caplog.records if "sampled" in each.getMessage()] == [
        "activation of part cannot be sampled; what cannot is left out."
    ]


def test_what_torch_func_transforms_is_not_looked_at(caplog: Any) -> None:
    class Mapped(Head):
        def features(self, inputs: Tensor) -> Tensor:
            return torch.func.vmap(self.part)(inputs)  # type: ignore[no-any-return]

    samples = train(Mapped())
    assert numel(samples, "part", ACTIVATION) == []
    assert numel(samples, "part", PARAMETER) == [8 * 8 + 8] * 6
    assert numel(samples, "net.0", ACTIVATION) == [BATCH * 16] * 6
    assert not [each for each in caplog.records if "sampled" in each.getMessage()]


def test_samples_are_in_the_order_of_the_model() -> None:
    class Attends(Head):
        def build(self) -> Any:
            return nn.ModuleList([nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)])

        def features(self, inputs: Tensor) -> Tensor:
            attention, last = self.part
            return last(attention(*[inputs[:, None]] * 3)[0][:, 0])  # type: ignore[no-any-return]

    model = Attends()
    order = [name for name, _ in model.named_modules()]
    seen = list(dict.fromkeys(each.layer for each in train(model, max_steps=1)))
    assert seen == sorted(seen, key=order.index)
    assert "part.0.out_proj" in seen
