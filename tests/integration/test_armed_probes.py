"""Where a step cannot be run again, the next ones are traced as they happen; nothing of that stays behind."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_plugin import live_trace
from mp_plugin.telemetry.events import Cause
from tests.helpers.training import Regression
from tests.helpers.twins import Twin, equal, same, train

POISONED = (1, 4)


def spoiled(inputs: Tensor, batch_idx: int, poisoned: tuple[int, ...]) -> Tensor:
    return inputs / 0 if batch_idx in poisoned else inputs


class Watched(Regression):
    """Knows at each training step whether somebody watches it."""

    poisoned: tuple[int, ...] = POISONED

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"optimizer": torch.optim.AdamW, "lr": 0.01, **options})
        first, tanh, last = self.net
        self.net = nn.Sequential(first, nn.BatchNorm1d(16), tanh, nn.Dropout(0.3), last)
        self.watched: list[bool] = []

    def look(self) -> None:
        hooks = any(each._forward_hooks or each._forward_pre_hooks for each in self.modules())
        modes = torch._C._len_torch_dispatch_stack() > 0
        eager = torch._dynamo.eval_frame._stance.stance == "force_eager"
        assert hooks == modes == eager
        self.watched.append(modes)


class WritesToItsBatch(Watched):
    """Automatic optimization."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.look()
        batch[0].mul_(0.5)
        return nn.functional.mse_loss(self.net(spoiled(batch[0], batch_idx, self.poisoned)).float(), batch[1])


class TakesTheIterator(Watched):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        self.look()
        batch, batch_idx, _ = next(dataloader_iter)
        return nn.functional.mse_loss(self.net(spoiled(batch[0], batch_idx, self.poisoned)).float(), batch[1])


class Manual(Watched):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.look()
        optimizer: Any = self.optimizers()
        loss = nn.functional.mse_loss(self.net(spoiled(batch[0], batch_idx, self.poisoned)).float(), batch[1])
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


class Adversarial(Watched):
    """Two networks that learn in turn, each with an optimizer of its own; the second one's loss is spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.look()
        first, second = self.optimizers()  # type: ignore[misc, union-attr]
        self.toggle_optimizer(first)
        loss = self.critic(self.net(batch[0])).float().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        loss = (self.critic(batch[1]) - self.critic(self.net(batch[0]).detach())).float().square().mean()
        loss = loss * float("inf") if batch_idx in self.poisoned else loss
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        return [self.make_optimizer(part.parameters(), lr=0.01) for part in (self.net, self.critic)]


class Collects(Watched):
    """Gradients of two training steps for one optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.look()
        optimizer: Any = self.optimizers()
        self.manual_backward(
            nn.functional.mse_loss(self.net(spoiled(batch[0], batch_idx, self.poisoned)).float(), batch[1])
        )
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


MODELS: dict[str, tuple[Callable[[], Watched], list[int]]] = {
    # The batches that are watched: from the one after the first incident up to the second incident.
    "writes to its batch": (WritesToItsBatch, [2, 3, 4]),
    "takes the iterator": (TakesTheIterator, [2, 3, 4]),
    "manual": (Manual, [2, 3, 4]),
    "two optimizers": (Adversarial, [2, 3, 4]),
    "collects": (Collects, [2, 3, 4, 5]),
}


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.WARNING, logger="mp_plugin"):
        yield caplog


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`:UserWarning")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("name", MODELS)
def test_the_second_incident_is_caught_live_and_then_the_watch_ends(
    name: str, precision: str, warned: pytest.LogCaptureFixture
) -> None:
    make, watched = MODELS[name]
    traced, plain = (train(make, max_traced=count, precision=precision) for count in (20, 0))
    assert [place for place, each in enumerate(traced.model.watched) if each] == watched
    first, second = traced.plugin.incidents
    assert (first.traced, first.evidence["untraced"]) == (False, "no closure")
    assert second.traced, second.evidence
    assert second.cause is Cause.forward
    assert "could not be traced" not in warned.text
    traced.model.watched, plain.model.watched = [], []
    same(traced, plain)
    nothing_is_left(traced, plain)


def nothing_is_left(traced: Twin, plain: Twin) -> None:
    assert traced.plugin.explainer.live is None
    for one, other in zip(traced.model.modules(), plain.model.modules(), strict=True):
        assert vars(one).keys() == vars(other).keys()
        assert not one._forward_hooks
        assert not one._forward_pre_hooks


def test_fp16_is_watched_as_well() -> None:
    """The loss scale moves between the incidents."""

    class OverflowsAtFirst(Manual):
        poisoned = ()

    traced, plain = (train(OverflowsAtFirst, max_traced=count, precision="fp16") for count in (20, 0))
    assert traced.traced
    assert {incident.cause for incident in traced.plugin.incidents} <= {Cause.backward, Cause.loss}
    same(traced, plain)


def test_a_watch_in_vain_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_trace, "ARMED_STEPS", 3)

    class Once(Manual):
        poisoned = (1,)

        def on_train_batch_end(self, *_: Any) -> None:
            self.is_armed = self.trainer.precision_plugin.explainer.live is not None  # type: ignore[union-attr]

    twin = train(Once, max_traced=20, precision="fp32")
    assert [place for place, each in enumerate(twin.model.watched) if each] == [2, 3, 4]
    assert not twin.model.is_armed, "what it holds is let go"


def test_the_last_watched_step_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_trace, "ARMED_STEPS", 3)
    twin = train(Manual, max_traced=20, precision="fp32")
    assert [incident.traced for incident in twin.plugin.incidents] == [False, True]


def test_a_fit_that_fails_while_it_is_watched_leaves_nothing_behind() -> None:
    class Fails(Manual):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            if batch_idx == 3:
                raise ZeroDivisionError

    model = Fails()
    with pytest.raises(ZeroDivisionError):
        train(lambda: model, max_traced=20, precision="fp32")
    assert model.watched == [False, False, True, True]
    assert torch._C._len_torch_dispatch_stack() == 0
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in model.modules())
    again = train(lambda: model, max_traced=20, precision="fp32", limit_train_batches=1)
    assert again.model.watched[-1] is False


def test_an_incident_that_can_be_run_again_ends_the_watch_too() -> None:
    class WritesOnce(Watched):
        poisoned = (1, 4, 6)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.look() if not self.trainer.precision_plugin.start.is_rehearsing else None
            if batch_idx == 1:
                batch[0].mul_(0.5)
            return nn.functional.mse_loss(self.net(spoiled(batch[0], batch_idx, self.poisoned)).float(), batch[1])

    traced, plain = (train(WritesOnce, max_traced=count, precision="fp32") for count in (20, 0))
    assert [place for place, each in enumerate(traced.model.watched) if each] == [2, 3, 4]
    assert [incident.evidence.get("untraced") for incident in traced.plugin.incidents] == ["no closure", None, "repeat"]
    traced.model.watched = plain.model.watched = []
    same(traced, plain)


def test_two_optimizers_that_overflow_in_one_step_arm_once() -> None:
    class Both(Adversarial):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            super().training_step([spoiled(batch[0], batch_idx, self.poisoned), batch[1]], batch_idx)

    twin = train(Both, max_traced=20, precision="fp32")
    untraced = [incident.evidence.get("untraced") for incident in twin.plugin.incidents]
    assert untraced[:2] == ["no closure"] * 2
    assert untraced[2] is None
    equal(twin.model.state_dict(), train(Both, max_traced=0, precision="fp32").model.state_dict())
