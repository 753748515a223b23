from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import MixedPrecision
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import UnsupportedError
from mp_plugin.fsdp import refuse_fp32_beside_half_weights
from mp_plugin.modes import parse_mode
from tests.helpers.training import quiet_trainer

FP32, FP16, BF16 = torch.float32, torch.float16, torch.bfloat16


def owner(cls: type, name: str) -> Any:
    return next(base for base in cls.__mro__ if name in vars(base))


def test_nothing_of_lightnings_own_fsdp_plugin_is_left_but_its_name() -> None:
    """What it does to losses, steps and casts would be done twice; a hook that a later Lightning adds shows here."""
    hooks = [name for name, value in vars(FSDPPrecision).items() if callable(value) or isinstance(value, property)]
    assert len(hooks) > 10
    assert {name for name in hooks if owner(AdaptivePrecision, name) is FSDPPrecision} == set()


@pytest.mark.parametrize(
    ("precision", "formats"),
    [
        ("fp32", (FP32, FP32, FP32)),
        ("tf32", (FP32, FP32, FP32)),
        ("fp16", (FP16, FP32, FP32)),
        ("bf16", (BF16, FP32, FP32)),
        ("fp16_true", (FP16, FP16, FP16)),
        ("bf16_true", (BF16, BF16, BF16)),
    ],
)
def test_sums_and_statistics_stay_in_fp32_while_weights_are(precision: str, formats: tuple[torch.dtype, ...]) -> None:
    """Trap 21: with the fp16 that stock chooses for 16-mixed, a sum over ranks overflows by itself."""
    config = AdaptivePrecision(precision).mixed_precision_config
    assert (config.param_dtype, config.reduce_dtype, config.buffer_dtype) == formats


@pytest.mark.parametrize(("precision", "gathered"), [("fp16", FP32), ("bf16", FP32), ("bf16_true", BF16)])
def test_weights_are_gathered_in_fp32_where_layers_may_run_in_it(precision: str, gathered: torch.dtype) -> None:
    """A layer cannot compute in FP32 from weights that were rounded on their way."""
    plugin = AdaptivePrecision(precision)
    plugin._has_fallback = True
    assert plugin.mixed_precision_config.param_dtype is gathered


def test_fp32_layers_in_half_models_are_refused_where_all_weights_are_gathered_in_half() -> None:
    mode = parse_mode("bf16_true")
    message = "Layer 'head' cannot run in FP32: with precision='bf16-true' FSDPStrategy keeps all weights in torch.bf"
    with pytest.raises(UnsupportedError, match=message):
        refuse_fp32_beside_half_weights(FSDPStrategy(), ["head", "norm"], mode)
    refuse_fp32_beside_half_weights(FSDPStrategy(), [], mode)
    refuse_fp32_beside_half_weights(ModelParallelStrategy(), ["head"], mode)


def test_inputs_are_left_to_autocast() -> None:
    """FSDP would round every floating-point input, targets too, to the format of the weights."""
    assert not AdaptivePrecision("fp16").mixed_precision_config.cast_root_forward_inputs


def test_the_strategy_asks_the_plugin_unless_the_user_decides() -> None:
    plugin, own = AdaptivePrecision("bf16"), MixedPrecision(reduce_dtype=BF16)
    assert FSDPStrategy(precision_plugin=plugin).mixed_precision_config == plugin.mixed_precision_config
    assert FSDPStrategy(precision_plugin=plugin, mixed_precision=own).mixed_precision_config is own


class _Norm(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))


@pytest.mark.parametrize(
    ("options", "gathered"), [({}, FP32), ({"auto_wrap_policy": {torch.nn.Linear}}, FP16)], ids=["whole", "by layer"]
)
def test_weights_are_gathered_in_fp32_where_batch_norm_is_not_kept_apart(options: Any, gathered: torch.dtype) -> None:
    plugin, module = AdaptivePrecision("fp16"), _Norm()
    trainer = quiet_trainer(plugins=[plugin], strategy=_FSDP(**options), devices=2)
    trainer.strategy.connect(module)
    module.trainer = trainer
    plugin.convert_module(module)
    assert plugin.mixed_precision_config.param_dtype is gathered


class _FSDP(FSDPStrategy):
    """Lightning refuses FSDPStrategy itself on a CPU."""


def stock_fsdp() -> Any:
    return FSDPPrecision("16-mixed", scaler=ShardedGradScaler(device="cpu", init_scale=2.0**10))


def ours() -> Any:
    return AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2**10))


def test_stock_refuses_any_scaler_for_fsdp_and_ours_is_configured() -> None:
    """Fault L8: it asks for its precision before it has one."""
    with pytest.raises(ValueError, match="`precision='16-mixed'` does not use a scaler"):
        stock_fsdp()
    assert quiet_trainer(plugins=[ours()], strategy=_FSDP(), devices=2).precision_plugin.loss_scale == 2**10


def test_stock_refuses_fp16_with_model_parallelism_and_ours_does_not() -> None:
    with pytest.raises(ValueError, match="The `ModelParallelStrategy` does not support .*16-mixed"):
        quiet_trainer(precision="16-mixed", strategy=ModelParallelStrategy(), devices=2)
    assert quiet_trainer(plugins=[ours()], strategy=ModelParallelStrategy(), devices=2).precision == "16-mixed"
