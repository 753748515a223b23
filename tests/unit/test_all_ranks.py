"""With other ranks: tests/integration/test_rerun_on_ranks.py."""

import logging
from typing import Any

import pytest

from mp_plugin.all_ranks import AllRanks


def fail() -> bool:
    raise RuntimeError("no memory")


def test_what_fails_is_told_and_goes_no_further(caplog: pytest.LogCaptureFixture) -> None:
    evidence: dict[str, Any] = {"missing": ["something else"]}
    assert AllRanks().each(fail, evidence) == [None]
    assert evidence == {"missing": ["something else", "it failed: RuntimeError: no memory"]}
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == "An incident could not be traced; training goes on without it."
    assert record.exc_info is not None


def test_only_the_first_failure_of_a_run_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    all_ranks = AllRanks("Nothing could be observed")
    for _ in range(3):
        all_ranks.each(fail, {})
    assert [record.getMessage() for record in caplog.records] == [
        "Nothing could be observed; training goes on without it."
    ]


def test_what_works_leaves_no_evidence() -> None:
    evidence: dict[str, Any] = {}
    assert AllRanks().each(lambda: 3, evidence) == [3]
    assert evidence == {}


def test_what_ends_a_run_ends_it() -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AllRanks().each(interrupt, {})


@pytest.mark.parametrize(("question", "answer"), [(lambda: True, True), (lambda: False, False), (fail, None)])
def test_a_question_has_an_answer_or_none(question: Any, answer: bool | None) -> None:
    assert AllRanks().everywhere(question, {}) is answer
