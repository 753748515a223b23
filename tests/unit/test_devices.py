from typing import Any

import pytest
import torch

from mp_plugin.devices import Device, Support, allow_tf32, check_device, present_types, this_machine, without_tf32
from mp_plugin.errors import ConfigError, UnsupportedError
from mp_plugin.modes import MODES, parse_mode

VOLTA, AMPERE = Device(type="cuda", capability=(7, 0)), Device(type="cuda", capability=(8, 0))
OLD_CPU, NEW_CPU = Device(type="cpu"), Device(type="cpu", cpu_flags=frozenset({"avx512_bf16"}))


@pytest.mark.parametrize(
    ("device", "compute", "support"),
    [
        (VOLTA, "fp16", Support.native),
        (VOLTA, "bf16", Support.converted),
        (VOLTA, "tf32", Support.same_as_fp32),
        (Device(type="cuda", capability=(6, 1)), "fp16", Support.converted),
        (AMPERE, "bf16", Support.native),
        (AMPERE, "tf32", Support.native),
        (OLD_CPU, "fp32", Support.native),
        (OLD_CPU, "bf16", Support.converted),
        (NEW_CPU, "bf16", Support.native),
        (NEW_CPU, "fp16", Support.converted),
        (NEW_CPU, "tf32", Support.same_as_fp32),
        (Device(type="meta"), "bf16", Support.none),
    ],
)
def test_support(device: Device, compute: str, support: Support) -> None:
    assert device.supports(compute) is support


@pytest.mark.parametrize("name", MODES)
def test_a_cpu_runs_every_precision(name: str) -> None:
    check_device(MODES[name], "cpu")


@pytest.mark.parametrize("device", ["warp", "cpu:0", 0, ["cpu"], torch.device("cpu"), ""])
def test_what_is_no_device_type_is_refused(device: object) -> None:
    with pytest.raises(ConfigError, match=r"device=.* is not a device type; accepted: 'cpu'"):
        check_device(parse_mode("bf16"), device)


def test_a_device_that_is_not_here_is_refused() -> None:
    absent = next(name for name in ("mps", "xpu", "cuda") if name not in present_types())
    with pytest.raises(UnsupportedError, match=f"device='{absent}' is not available on this machine; accepted: 'cpu'"):
        check_device(parse_mode("bf16"), absent)


def test_this_machine_has_a_cpu_first() -> None:
    assert [device.type for device in this_machine()] == present_types()
    assert present_types()[0] == "cpu"


@pytest.mark.parametrize("convolution", [False, True])
def test_tf32_is_undone(monkeypatch: pytest.MonkeyPatch, convolution: bool) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", convolution)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    undo = allow_tf32()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
    undo()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch before 2.9")
def test_tf32_is_off_for_a_while(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    backends: Any = torch.backends
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    settings = [owner.fp32_precision for owner in owners]
    try:
        with without_tf32():
            assert {owner.fp32_precision for owner in owners} == {"ieee"}
        assert [owner.fp32_precision for owner in owners] == settings
        assert torch.get_float32_matmul_precision() == before
    finally:
        torch.set_float32_matmul_precision("highest")
