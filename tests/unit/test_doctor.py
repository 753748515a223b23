import io

import pytest
from rich.console import Console

from mp_plugin.devices import Device
from mp_plugin.doctor import GROUPS, measure, reader, remark, report
from mp_plugin.modes import parse_mode
from mp_plugin.numerics.grad_stats import Backend
from mp_plugin.scaling.step_plan import Route

CPU = Device(type="cpu")


def test_every_precision_of_this_machine_gets_a_row_and_a_remark() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report())
    text = console.export_text()
    for group in GROUPS:
        assert text.count(f" {group} ") >= 2
    assert "torch" in text


def test_it_says_who_reads_the_gradients_and_which_way_they_go() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report())
    text = console.export_text()
    assert "PyTorch: one read" in text
    assert all(f"{route.value} route" in text for route in Route)


@pytest.mark.parametrize(("backend", "words"), [(Backend.triton, "a Triton kernel"), (Backend.pytorch, "in two reads")])
def test_a_gpu_without_triton_is_told_of(monkeypatch: pytest.MonkeyPatch, backend: Backend, words: str) -> None:
    monkeypatch.setattr("mp_plugin.doctor.backend_of", lambda device: backend)
    assert words in reader("cuda")


def test_fp32_is_the_measure() -> None:
    ratios = measure(CPU)
    assert ratios["fp32"] == 1.0
    assert set(ratios) == {"fp32", "bf16", "fp16", "bf16_true", "fp16_true"}
    assert all(ratio > 0 for ratio in ratios.values())


def test_fp16_on_a_cpu_is_called_slow_in_plain_words() -> None:
    assert "slow on a CPU" in remark(parse_mode("fp16"), CPU, 1.0)
    assert "slow" in remark(parse_mode("bf16"), CPU, None)


def test_remarks_follow_the_facts() -> None:
    ampere = Device(type="cuda", capability=(8, 0))
    assert remark(parse_mode("bf16"), ampere, 0.4) == "good"
    assert remark(parse_mode("fp16"), ampere, 0.4) == "with dynamic loss scaling"
    assert remark(parse_mode("bf16"), ampere, 2.0) == "slower than fp32 here (2.0 times the step, at this small size)"
    assert remark(parse_mode("tf32"), CPU, None) == "runs, and is the same as fp32 here"
    assert remark(parse_mode("bf16"), Device(type="meta"), None) == "cannot run here"
