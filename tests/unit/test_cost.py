from dataclasses import replace

import pytest
import torch

from mp_plugin import cost as cost_module
from mp_plugin.cost import CostClock, RankCost, Spent, add, cost_of
from mp_plugin.step_times import WARM_UP_STEPS

FIRST = RankCost(
    steps=10,
    train_seconds=4.0,
    fit_seconds=5.0,
    step_seconds=[0.1 * step for step in range(1, 12)],
    samples_per_second=100.0,
    waiting_share=0.25,
    peak_memory_bytes=1000,
    peak_memory_of="cuda:0, allocated",
    energy_joules=50.0,
    energy_source="nvml",
)
SECOND = replace(
    FIRST, samples_per_second=60.0, waiting_share=0.5, peak_memory_bytes=2000, peak_memory_of="cuda:1, allocated"
)


def test_ranks_train_together():
    cost = cost_of(Spent(), [FIRST, SECOND])
    assert cost["steps"] == 10
    assert cost["train_seconds"] == 4.0
    assert cost["step_ms"] == pytest.approx({"median": 600, "p10": 200, "p90": 1000})
    assert cost["samples_per_second"] == 160.0
    assert cost["waiting_share"] == 0.5
    assert (cost["peak_memory_bytes"], cost["peak_memory_of"]) == (2000, "cuda:1, allocated")
    assert (cost["energy_joules"], cost["energy_source"]) == (100.0, "nvml")


def test_ranks_of_one_cpu_count_its_energy_once():
    cost = cost_of(Spent(), [replace(FIRST, energy_source="rapl"), replace(FIRST, energy_joules=0.0, energy_source="")])
    assert (cost["energy_joules"], cost["energy_source"]) == (50.0, "rapl")


def test_what_one_rank_cannot_tell_nobody_makes_up():
    broken = replace(SECOND, energy_joules=None, energy_source="not measured: no NVML", samples_per_second=None)
    cost = cost_of(Spent(), [FIRST, broken])
    assert (cost["energy_joules"], cost["energy_source"]) == (None, "not measured: no NVML")
    assert cost["samples_per_second"] is None
    silent = cost_of(Spent(), [FIRST, None])
    assert (silent["energy_joules"], silent["samples_per_second"]) == (None, None)
    assert silent["energy_source"] == "not measured: a rank could not be asked"
    assert silent["steps"] == 10


def test_sessions_add_up():
    former = add(Spent(), [FIRST])
    cost = cost_of(former, [replace(FIRST, steps=7, train_seconds=1.0, fit_seconds=1.5, energy_joules=5.0)])
    assert (cost["steps"], cost["train_seconds"], cost["fit_seconds"], cost["energy_joules"]) == (17, 5.0, 6.5, 55.0)
    assert cost["sessions"] == 2


def test_energy_that_a_former_session_did_not_count_is_not_left_out_of_a_sum():
    cost = cost_of(replace(add(Spent(), [FIRST]), energy_joules=None), [FIRST])
    assert cost["energy_joules"] is None
    assert cost["energy_source"] == "not measured: the run was resumed, and what it used before was not counted"


def test_waiting_of_the_warm_up_does_not_count(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = CostClock(torch.device("cpu"))
    clock.times.go()
    for step in range(WARM_UP_STEPS + 4):
        clock.ask()
        now += 100.0 if step < WARM_UP_STEPS else 1.0
        clock.ask()
        clock.receive()
        now += 3.0
        clock.receive()
        clock.end_batch(samples=5, ends_step=True)
    cost = clock.read()
    assert cost.waiting_share == pytest.approx(0.25)
    assert cost.samples_per_second == pytest.approx(5 / 4)
    assert cost.train_seconds == pytest.approx(WARM_UP_STEPS * 103 + 4 * 4)


def test_the_counters_of_energy_are_looked_at_before_they_go_round(monkeypatch):
    now, looks = 0.0, []
    monkeypatch.setattr("time.perf_counter", lambda: now)
    clock = CostClock(torch.device("cpu"))
    monkeypatch.setattr(clock._energy, "look", lambda: looks.append(now))
    for _ in range(100):
        now += 10.0
        clock.look()
    assert len(looks) >= 1000 / cost_module.SECONDS_BETWEEN_LOOKS - 3
    assert max(b - a for a, b in zip(looks, looks[1:], strict=False)) <= cost_module.SECONDS_BETWEEN_LOOKS + 10
