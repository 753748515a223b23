import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from torch.nn.parallel import DataParallel

from mp_plugin.errors import UnsupportedError
from mp_plugin.strategies import lightning_module, refuse_strategy
from tests.helpers.training import Regression


def test_the_module_is_found_inside_its_wrappers() -> None:
    module = Regression()
    assert lightning_module(module) is module
    assert lightning_module(DataParallel(torch.nn.DataParallel(module))) is module


def test_a_strategy_that_scales_losses_itself_is_refused() -> None:
    refuse_strategy(SingleDeviceStrategy())
    # Without DeepSpeed installed its strategy cannot be built; its class is what counts.
    with pytest.raises(UnsupportedError, match="DeepSpeedStrategy scales losses and steps by itself"):
        refuse_strategy(DeepSpeedStrategy.__new__(DeepSpeedStrategy))
