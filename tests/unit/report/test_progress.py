from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from mp_plugin.report.progress import Ending, progress
from mp_plugin.telemetry.events import Action
from tests.helpers.planted_runs import UPDATED, info, overflow, planted_run, sample

NOW = datetime.fromisoformat(UPDATED)


@pytest.mark.parametrize(("status", "ending"), [("finished", Ending.finished), ("stopped", Ending.stopped)])
def test_an_end_that_was_written_down(status: str, ending: Ending) -> None:
    assert progress(planted_run(info=info(status=status)), now=NOW + timedelta(days=9)).ending is ending


@pytest.mark.parametrize(
    ("began", "silent_for", "ending"),
    [
        ("2026-02-03T04:00:00.000+00:00", timedelta(minutes=9), Ending.running),
        ("2026-02-03T04:00:00.000+00:00", timedelta(minutes=11), Ending.silent),
        # A run of ten days writes less often.
        ("2026-01-24T05:00:00.000+00:00", timedelta(hours=11), Ending.running),
        ("2026-01-24T05:00:00.000+00:00", timedelta(hours=13), Ending.silent),
        ("long ago", timedelta(minutes=11), Ending.silent),
    ],
)
def test_a_run_that_writes_nothing_any_more(began: str, silent_for: timedelta, ending: Ending) -> None:
    run = planted_run(info=replace(info(status="running"), run=began))
    assert progress(run, now=NOW + silent_for).ending is ending


def test_a_time_that_is_none() -> None:
    found = progress(planted_run(info=replace(info(status="running"), updated="yesterday")), now=NOW)
    assert (found.ending, found.updated) == (Ending.running, None)


def test_a_time_without_a_zone_is_utc() -> None:
    found = progress(planted_run(info=replace(info(), updated="2026-02-03T05:00:00")))
    assert found.updated == NOW


def test_without_run_json_samples_and_incidents_tell_how_far_it_came() -> None:
    found = progress(planted_run([sample("a", step=300)], incidents=(overflow(411),)))
    assert (found.ending, found.steps, found.skipped, found.updated) == (Ending.unknown, 412, 1, None)
    assert progress(planted_run()).steps == 0


def test_incidents_may_be_newer_than_the_summary() -> None:
    lost = tuple(overflow(step) for step in range(3))
    saved = overflow(3, action=Action.retry, cured=True)
    zeroed = overflow(4, action=Action.zeroed)
    found = progress(planted_run(info=info(steps=100, skipped=1), incidents=(*lost, saved, zeroed)))
    assert (found.steps, found.skipped) == (100, 3)


@pytest.mark.parametrize("summary", [{}, {"steps": "many", "skipped_steps": None}, {"steps": -1}, {"steps": True}])
def test_a_summary_that_makes_no_sense_counts_nothing(summary: dict[str, object]) -> None:
    run = planted_run([sample("a", step=7)], info=replace(info(), summary=summary))
    assert (progress(run).steps, progress(run).skipped) == (8, 0)
