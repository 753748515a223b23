import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch.nn.parallel import DataParallel

from mp_plugin.errors import UnsupportedError
from mp_plugin.step_start import StepStart
from mp_plugin.strategies import lightning_module, refuse_strategy, tell_of_each_batch
from tests.helpers.training import Regression, quiet_trainer


def test_the_module_is_found_inside_its_wrappers() -> None:
    module = Regression()
    assert lightning_module(module) is module
    assert lightning_module(DataParallel(torch.nn.DataParallel(module))) is module


def test_a_strategy_that_scales_losses_itself_is_refused() -> None:
    refuse_strategy(SingleDeviceStrategy())
    # Without DeepSpeed installed its strategy cannot be built; its class is what counts.
    with pytest.raises(UnsupportedError, match="DeepSpeedStrategy scales losses and steps by itself"):
        refuse_strategy(DeepSpeedStrategy.__new__(DeepSpeedStrategy))


class Listening(SingleDeviceStrategy):
    """A strategy with a hook of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[int] = []

    def on_train_batch_start(self, batch: object, batch_idx: int) -> None:
        self.heard.append(batch_idx)


def test_the_strategy_s_own_hook_is_called_too() -> None:
    module = Regression()
    strategy = Listening()
    module.trainer = quiet_trainer()
    undo = tell_of_each_batch(strategy, StepStart(module, may_step_again=False))
    strategy.on_train_batch_start([], 3)
    undo()
    assert strategy.heard == [3]
    assert "on_train_batch_start" not in vars(strategy)
