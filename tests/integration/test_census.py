"""A census in the middle of a fit: what it tells, and that nothing of it remains."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mp_plugin import AdaptivePrecision
from mp_plugin.errors import UnsupportedError
from mp_plugin.scaling.verdict import gather
from mp_plugin.take_census import take_census
from mp_plugin.telemetry.census import Census, merged
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, fit, regression_data, weights


class Counted(Regression):
    """Takes a census at the first step, or none."""

    def __init__(self, *, takes: bool = True) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))
        self.net.insert(2, torch.nn.Dropout(0.5))
        self.takes = takes
        self.census: Census | None = None
        self.passes = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        self.passes += 1
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.takes and self.census is None:
            self.census = take_census(self.trainer.precision_plugin.start)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp16", "fp16"), ("bf16", "bf16"), ("fp32", "fp32"), ("bf16_true", "bf16")]
)
@pytest.mark.parametrize("accumulate", [1, 4])
def test_it_tells_what_ran_and_leaves_nothing(precision: str, expected: str, accumulate: int) -> None:
    torch.manual_seed(3)
    counted = fit(AdaptivePrecision(precision), Counted(), accumulate_grad_batches=accumulate)
    torch.manual_seed(3)
    plain = fit(AdaptivePrecision(precision), Counted(takes=False), accumulate_grad_batches=accumulate)
    names = ("net.0", "net.1", "net.2", "net.3", "net.4")
    assert counted.census.formats(counted) == dict.fromkeys(names, expected)
    assert counted.census.counts["net.0"]["aten.addmm.default"] == {expected: 1}
    assert "aten.mse_loss.default" in counted.census.counts[""]
    # One forward pass more, bitwise without effect: weights, running statistics and random streams.
    assert counted.losses[1:] != counted.losses[:-1]
    assert_bitwise_equal(weights(counted), weights(plain))
    assert_bitwise_equal(list(counted.buffers()), list(plain.buffers()))
    assert counted.passes == plain.passes  # the counter of the extra pass was put back


def test_a_step_that_cannot_be_run_again_is_refused() -> None:
    class Manual(Counted):
        def __init__(self) -> None:
            super().__init__(takes=False)
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            with pytest.raises(UnsupportedError, match="No census can be taken of this step; accepted: automatic"):
                take_census(self.trainer.precision_plugin.start)  # type: ignore[union-attr]
            self.passes += 1

    assert fit(AdaptivePrecision("bf16"), Manual(), limit_train_batches=2).passes == 2


def _on_each_rank(strategy: str) -> None:
    model = fit(
        AdaptivePrecision("bf16"),
        Counted(),
        regression_data(),
        strategy=strategy,
        devices=2,
        use_distributed_sampler=True,
    )
    both = merged(gather(model.census))
    assert both.counts["net.0"]["aten.addmm.default"] == {"bf16": 2}
    assert both.formats(model)["net.0"] == "bf16"


@pytest.mark.xdist_group("ranks")
def test_all_ranks_take_it_together() -> None:
    run_on_ranks(_on_each_rank, "ddp")
