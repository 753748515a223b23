from typing import Any

import pytest
import torch
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from mp_plugin.checkpoint import OFFERED_KEYS, STOCK_KEYS, adopt_stock, offer_to_stock, pack, unpack
from mp_plugin.config import LossScaling
from mp_plugin.errors import CheckpointError
from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.record import RunRecord


def scaler_at(scale: float) -> LossScaler:
    return LossScaler(LossScaling(init_scale=scale))


def record_of(steps: int) -> RunRecord:
    record = RunRecord()
    for _ in range(steps):
        record.took_step(1.0)
    return record


def test_round_trip() -> None:
    into = scaler_at(2)
    record = unpack(pack("16-mixed", scaler_at(64).state_dict(), record_of(3)), into).record
    assert (into.get_scale(), record) == (64, record_of(3))


@pytest.mark.parametrize(("saved", "loaded"), [("16-mixed", "bf16-mixed"), ("bf16-mixed", "16-mixed")])
def test_a_run_may_change_its_precision(saved: str, loaded: str) -> None:
    state = pack(saved, scaler_at(64).state_dict() if saved == "16-mixed" else {}, record_of(3))
    into = scaler_at(2) if loaded == "16-mixed" else None
    assert unpack(state, into).record == record_of(3)
    assert into is None or into.get_scale() == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"version": 2}, r"version=2; accepted: 1"),
        ({"version": None}, r"version=None; accepted: 1"),
        ({"version": True}, r"version=True; accepted: 1"),
        ({"version": torch.ones(3)}, r"version=tensor\(.*; accepted: 1"),
        ({"version": torch.ones(())}, r"version=tensor\(.*; accepted: 1"),
        ({"precision": None}, r"precision=None; accepted: 32-true, tf32, bf16-mixed, 16-mixed, "),
        ({"precision": "fp16"}, r"precision='fp16'; accepted: 32-true, "),
        ({"precision": ["16-mixed"]}, r"precision=\['16-mixed'\]; accepted: 32-true, "),
        ({"precision": torch.ones(3)}, r"precision=tensor\(.*; accepted: 32-true, "),
        ({"growth_factor": "x"}, r"growth_factor='x'; accepted: a finite number"),
        ({"backoff_factor": torch.ones(3)}, r"backoff_factor=tensor\(.*; accepted: a finite number"),
        ({"growth_interval": True}, r"growth_interval=True; accepted: a finite number"),
        ({"record": {**record_of(1).state_dict(), "bogus": 1}}, r"unknown \['bogus'\] in record; accepted: \['by_cau"),
        ({"record": None}, r"record=None; accepted: a dict of counters"),
        ({"record": {}}, r"effective_step=None"),
        ({"record": {**record_of(1).state_dict(), "by_parameter": 7}}, r"by_parameter=7; accepted: a dict of counts"),
        ({"record": {**record_of(1).state_dict(), "by_parameter": {"a": "b"}}}, r"accepted: a dict of counts"),
        ({"record": {**record_of(1).state_dict(), "lowest_scale": "x"}}, r"lowest_scale='x'; accepted: a number"),
        ({"scale": -1.0}, r"scale=-1.0; accepted: a finite number above 0"),
        ({"scael": 8.0}, r"unknown \['scael'\]; accepted: \['_growth_tracker', "),
    ],
)
def test_damage_is_refused_and_nothing_loaded(damage: dict[str, Any], message: str) -> None:
    into = scaler_at(2)
    with pytest.raises(CheckpointError, match=message):
        unpack({**pack("16-mixed", scaler_at(64).state_dict(), record_of(3)), **damage}, into)
    assert into.get_scale() == 2


@pytest.mark.parametrize("key", ["version", "precision", "record", "scale", "_growth_tracker"])
@pytest.mark.parametrize("into", [scaler_at(2), None], ids=["fp16", "bf16"])
def test_a_missing_part_is_refused_whoever_loads(key: str, into: LossScaler | None) -> None:
    state = pack("16-mixed", scaler_at(64).state_dict(), record_of(3))
    del state[key]
    with pytest.raises(CheckpointError, match=f"state has {key}=None; accepted: "):
        unpack(state, into)
    assert into is None or into.get_scale() == 2


@pytest.mark.parametrize("saved", ["16-mixed", "bf16-mixed"])
def test_an_unknown_key_is_refused_without_a_scaler_too(saved: str) -> None:
    state = pack(saved, scaler_at(64).state_dict() if saved == "16-mixed" else {}, record_of(3))
    with pytest.raises(CheckpointError, match=r"state has unknown \['scael'\]; accepted: \['_growth_tracker', "):
        unpack({**state, "scael": 8.0}, None)


def test_a_state_without_what_stock_does_not_know_is_taken() -> None:
    state, into = pack("16-mixed", scaler_at(64).state_dict(), record_of(3)), scaler_at(2)
    for key in ("hysteresis_tracker", "overflows_at_floor", "growth_factor", "backoff_factor", "growth_interval"):
        del state[key]
    unpack(state, into)
    assert into.get_scale() == 64


@pytest.mark.parametrize("state", [None, "junk", [1]])
def test_a_state_that_is_no_dict_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="The precision state is .*; accepted: a dict"):
        unpack(state, None)


def test_a_scale_is_taken_from_a_16_mixed_run_only() -> None:
    into = scaler_at(2)
    unpack({**pack("16-mixed", scaler_at(64).state_dict(), record_of(1)), "precision": "bf16-mixed"}, into)
    assert into.get_scale() == 2


@pytest.mark.parametrize(
    ("key", "stock"),
    [("MixedPrecision", torch.amp.GradScaler("cpu")), ("FSDPPrecision", ShardedGradScaler(device="cpu"))],
)
def test_a_stock_scaler_loads_what_we_leave_for_it(key: str, stock: torch.amp.GradScaler) -> None:
    checkpoint: dict[str, Any] = {}
    offer_to_stock(checkpoint, scaler_at(64))
    assert set(checkpoint) == set(OFFERED_KEYS)
    stock.load_state_dict(checkpoint[key])
    stock.scale(torch.zeros(1))
    assert stock.get_scale() == 64


def test_without_a_scaler_there_is_nothing_to_leave() -> None:
    checkpoint: dict[str, Any] = {}
    offer_to_stock(checkpoint, None)
    assert checkpoint == {}


@pytest.mark.parametrize("key", STOCK_KEYS)
def test_we_load_what_stock_left(key: str) -> None:
    """Trap 37: under every key that stock has used."""
    stock = torch.amp.GradScaler("cpu", init_scale=256.0)
    stock.scale(torch.zeros(1))
    into = scaler_at(2)
    adopt_stock({key: stock.state_dict()}, into)
    assert into.get_scale() == 256


def test_a_checkpoint_of_another_kind_changes_nothing() -> None:
    into = scaler_at(2)
    adopt_stock({"MixedPrecision": {}, "state_dict": {}}, into)
    adopt_stock({"MixedPrecision": {"scale": 4.0}}, None)
    assert into.get_scale() == 2


def test_what_a_scaler_derived_from_stock_left_besides_is_not_ours_to_judge() -> None:
    into = scaler_at(2)
    adopt_stock({"MixedPrecision": {**torch.amp.GradScaler("cpu").state_dict(), "scale": 8.0, "tolerance": 0.1}}, into)
    assert into.get_scale() == 8


def test_a_stock_state_that_is_damaged_is_refused() -> None:
    stock = {**torch.amp.GradScaler("cpu").state_dict(), "scale": 8.0}
    for state in ("junk", torch.ones(3), {"growth_factor": 2.0}, {**stock, "growth_interval": "x"}):
        with pytest.raises(CheckpointError, match="The loss scaler state"):
            adopt_stock({"MixedPrecision": state}, scaler_at(2))


def test_the_precision_map_comes_along() -> None:
    layers = {"head": LayerFormat(format="fp32", why="proved", since_step=3, is_island=True, bears_parameters=True)}
    observed = PrecisionMap(precision="bf16-mixed", layers=layers)
    state = pack("bf16-mixed", {}, record_of(3), precision_map=observed)
    assert unpack(state, None).precision_map == observed
    assert unpack(pack("bf16-mixed", {}, record_of(3)), None).precision_map is None
    with pytest.raises(CheckpointError, match="The precision state has precision_map=3; .*accepted: a table"):
        unpack({**state, "precision_map": 3}, None)
