"""When a run is looked at. What it finds then: tests/integration/test_fallback_map.py."""

from typing import Any

import pytest

from mp_plugin import AdaptivePrecision, Fallback, Telemetry
from mp_plugin.fallback.policy import Demoted, FallbackState
from tests.helpers.training import Regression, fit


class Counts(Regression):
    """Counts the looks, and moves a layer by hand before some batches."""

    looks = 0

    def __init__(self, moves: dict[int, tuple[str, ...]]) -> None:
        super().__init__()
        self.moves = moves
        self.after: list[int] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.moves:
            shell: Any = self.trainer.precision_plugin.layer_fallback  # type: ignore[union-attr]
            demoted = {name: Demoted(why="by hand", since_step=batch_idx) for name in self.moves[batch_idx]}
            shell.state = FallbackState(demoted=demoted)
            shell.settle()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.precision_plugin.start.is_rehearsing:  # type: ignore[union-attr]
            Counts.looks += 1  # what a module counts itself is put back
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, *_: Any) -> None:
        self.after.append(Counts.looks)


def looks_after_each_batch(
    plugin: AdaptivePrecision, moves: dict[int, tuple[str, ...]] | None = None, **options: Any
) -> list[int]:
    Counts.looks = 0
    model = fit(plugin, Counts(moves or {}), limit_train_batches=6, **options)
    return model.after  # type: ignore[no-any-return]


@pytest.mark.parametrize("plugin", [{"fallback": Fallback(auto=True)}, {"telemetry": Telemetry(census=True)}])
def test_a_look_is_taken_after_the_first_step_and_no_more_if_nothing_changes(plugin: dict[str, Any]) -> None:
    assert looks_after_each_batch(AdaptivePrecision("bf16", **plugin)) == [1] * 6


def test_without_a_fallback_nobody_looks() -> None:
    assert looks_after_each_batch(AdaptivePrecision("bf16")) == [0] * 6


def test_a_look_is_taken_at_each_change() -> None:
    plugin = AdaptivePrecision("bf16", fallback=Fallback(auto=True))
    assert looks_after_each_batch(plugin, {2: ("net.0",), 3: ("net.0",), 5: ()}) == [1, 1, 2, 2, 2, 3]
    assert plugin.census is not None
    assert plugin.census.format_of("net.0") == "bf16"


def test_in_a_window_a_look_is_taken_at_its_end() -> None:
    plugin = AdaptivePrecision("bf16", fallback=Fallback(layers=["net.0"]))
    assert looks_after_each_batch(plugin, accumulate_grad_batches=3) == [0, 0, 1, 1, 1, 1]


def test_each_fit_is_looked_at_anew() -> None:
    plugin = AdaptivePrecision("bf16", fallback=Fallback(layers=["net.0"]))
    assert looks_after_each_batch(plugin) == looks_after_each_batch(plugin) == [1] * 6
