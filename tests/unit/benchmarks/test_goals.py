"""A goal is judged by its worst figure, and only by figures that it is about."""

import pytest


def cell(*, precision="fp16", optimizer="fused", clips=True, light=0.9, stock_seconds=0.05, waits=0, extra=0):
    return {
        "model": "GPT",
        "precision": precision,
        "optimizer": optimizer,
        "clips": clips,
        "seconds": {"stock": [stock_seconds] * 3},
        "spread": {"light": {"median": light}},
        "waits_per_step": {"light": {"item": waits} if waits else {}},
        "peak_bytes": {"stock": 10_000, "light": 10_000 + extra},
        "parameter_tensors": 10,
    }


@pytest.fixture
def judge():
    from helpers.goals import GOALS

    def judged(what, *cells):
        (goal,) = [goal for goal in GOALS if goal.what.startswith(what)]
        return goal.judge({"cells": list(cells)})

    return judged


def test_the_worst_of_all_figures_counts(judge):
    shown, is_met = judge("fp16, clipping", cell(light=0.9), cell(light=0.98, optimizer="foreach"))
    assert (shown, is_met) == ("0.98 (worst of 2: GPT, fp16, foreach, clipping)", "no")
    assert judge("fp16, clipping", cell(light=0.9), cell(light=0.97))[1] == "yes"


def test_figures_that_a_goal_is_not_about_do_not_count(judge):
    others = (cell(light=2.0, precision="bf16"), cell(light=2.0, clips=False))
    assert judge("fp16, clipping", cell(light=0.9), *others) == ("0.90 (GPT, fp16, fused, clipping)", "yes")
    assert judge("light telemetry", cell(light=1.01), cell(light=2.0, stock_seconds=0.019))[1] == "yes"
    assert judge("light telemetry", cell(light=1.01), cell(light=2.0, stock_seconds=0.02))[1] == "no"


def test_a_figure_that_just_misses_does_not_look_as_if_it_met_the_bound(judge):
    assert judge("bf16", cell(precision="bf16", light=1.0012)) == ("1.0012 (GPT, bf16, fused, clipping)", "no")


def test_waits_are_counted_by_optimizer(judge):
    cells = (cell(waits=1, optimizer="foreach"), cell(waits=0))
    assert judge("host syncs per healthy step, fused", *cells)[1] == "yes"
    assert judge("host syncs per healthy step, not fused", *cells)[1] == "yes"
    assert judge("host syncs per healthy step, fused", cell(waits=1))[1] == "no"


def test_a_wait_that_leaves_the_device_with_work_is_no_sync(judge):
    late = {**cell(), "waits_per_step": {"light": {"event of an earlier step": 1.0}}}
    assert judge("host syncs per healthy step, fused", late) == ("0 (GPT, fp16, fused, clipping)", "yes")


def test_memory_counts_by_parameter_tensor(judge):
    assert judge("device memory", cell(extra=10_000)) == ("1,000 (GPT, fp16, fused, clipping)", "yes")
    assert judge("device memory", cell(extra=10_020))[1] == "no"
    assert judge("device memory", {**cell(), "peak_bytes": None}) == ("-", "nothing to judge by")


def test_a_share_must_be_at_least_its_bound():
    from helpers.goals import GOALS

    (goal,) = [goal for goal in GOALS if goal.is_floor]

    def row(share, num_bytes):
        return {
            "shapes": "one",
            "dtype": "fp32",
            "bytes": num_bytes,
            "share_of_copy": {"grad_stats": {"median": share}},
        }

    assert goal.judge({"rows": [row(0.9, 10**9), row(0.86, 10**8), row(0.1, 10**7)]}) == (
        "0.86 (worst of 2: one, fp32)",
        "yes",
    )
    assert goal.judge({"rows": [row(0.9, 10**9), row(0.84, 10**8)]})[1] == "no"
