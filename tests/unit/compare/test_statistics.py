"""The tests of the comparison, against scipy's own and against planted truths."""

import math

import numpy as np
import pytest
from scipy import stats

from mp_plugin.compare.statistics import (
    SIGNIFICANCE,
    Line,
    Method,
    equivalence_interval,
    equivalence_p,
    line,
    paired,
    spread,
    unpaired,
)

GROUPS = [
    ([0.91, 0.90, 0.93, 0.915], [0.90, 0.905, 0.91, 0.90]),
    ([1.0, 2.0], [1.5, 1.0]),
    ([3.0, 3.5, 2.0, 8.0, 1.0], [1e-3, 2e-3, 3e-3]),
]


@pytest.mark.parametrize(("ours", "theirs"), GROUPS)
def test_welch_is_that_of_scipy(ours, theirs):
    found, expected = unpaired(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False)
    interval = expected.confidence_interval(0.95)
    assert found.method is Method.welch
    assert found.degrees == pytest.approx(expected.df, rel=1e-9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-9)


@pytest.mark.parametrize(("ours", "theirs"), GROUPS[:2])
def test_the_paired_test_is_that_of_scipy(ours, theirs):
    found, expected = paired(np.subtract(ours, theirs).tolist()), stats.ttest_rel(ours, theirs)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.degrees) == pytest.approx((interval.low, interval.high, expected.df))


@pytest.mark.parametrize("margin", [0.001, 0.01, 0.03])
@pytest.mark.parametrize("is_paired", [True, False])
def test_equivalence_is_the_worse_of_two_one_sided_tests(margin, is_paired):
    ours, theirs = GROUPS[0]
    if is_paired:
        differences = np.subtract(ours, theirs)
        found = equivalence_p(paired(differences.tolist()), margin)
        lower = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        upper = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    else:
        found = equivalence_p(unpaired(ours, theirs), margin)
        shifted = [np.add(ours, shift) for shift in (margin, -margin)]
        lower = stats.ttest_ind(shifted[0], theirs, equal_var=False, alternative="greater").pvalue
        upper = stats.ttest_ind(shifted[1], theirs, equal_var=False, alternative="less").pvalue
    assert found == pytest.approx(max(lower, upper))


@pytest.mark.parametrize("is_paired", [True, False])
def test_the_interval_covers_the_truth_in_95_of_100_studies(is_paired):
    random = np.random.default_rng(0)
    studies, truth, covered = 4000, 0.3, 0
    for _ in range(studies):
        # Seeds move both runs of a pair alike, and the candidate spreads three times as much.
        seeds = random.normal(0, 2, 5) if is_paired else 0
        ours = truth + seeds + random.normal(0, 3, 5)
        theirs = seeds + random.normal(0, 1, 5 if is_paired else 4)
        found = paired((ours - theirs).tolist()) if is_paired else unpaired(ours.tolist(), theirs.tolist())
        covered += found.low <= truth <= found.high
    error = 3 * math.sqrt(0.95 * 0.05 / studies)
    # Welch's degrees of freedom are an approximation, which is off by less than that again.
    assert abs(covered / studies - 0.95) < error if is_paired else abs(covered / studies - 0.95) < 2 * error


def test_at_the_margin_equivalence_is_claimed_in_5_of_100_studies():
    random = np.random.default_rng(1)
    studies, margin = 4000, 1.0
    claims = sum(equivalence_p(paired(random.normal(margin, 0.3, 5).tolist()), margin) < 0.05 for _ in range(studies))
    assert abs(claims / studies - 0.05) < 3 * math.sqrt(0.05 * 0.95 / studies)


def test_at_the_line_it_is_held_in_25_and_broken_in_25_of_1000_studies():
    random = np.random.default_rng(2)
    studies, margin = 4000, 1.0
    found = [
        line(paired(random.normal(-margin, 0.3, 5).tolist()), margin, higher_is_better=True) for _ in range(studies)
    ]
    error = 3 * math.sqrt(0.025 * 0.975 / studies)
    assert abs(found.count(Line.holds) / studies - 0.025) < error
    assert abs(found.count(Line.worse) / studies - 0.025) < error


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([-0.001, 0.001, 0.0], Line.holds),
        ([-0.05, -0.051, -0.049], Line.worse),
        ([-0.05, 0.04, 0.01], Line.not_shown),
        ([-0.009], Line.holds),
        ([-0.011], Line.worse),
    ],
)
def test_the_line(differences, expected):
    assert line(paired(differences), 0.01, higher_is_better=True) is expected
    assert line(paired([-each for each in differences]), 0.01, higher_is_better=False) is expected


def test_what_lies_on_the_line_but_for_rounding_holds_it():
    one, other = (float(np.float32(value)) for value in (0.502, 0.507))  # in float32, as metrics are
    for difference in (0.745 - 0.75, one - other):
        assert difference < -0.005
        assert line(paired([difference]), 0.005, higher_is_better=True) is Line.holds
        assert line(paired([difference]), 0.00499, higher_is_better=True) is Line.worse


def test_a_spread_of_rounding_is_none():
    pairs = [(269, 270), (260, 261), (199, 200)]  # each one right answer of 270 apart
    found = [float(np.float32(one / 270)) - float(np.float32(other / 270)) for one, other in pairs]
    assert len(set(found)) > 1
    assert paired(found).method is Method.point


def test_a_single_pair_has_no_test():
    found = paired([0.2])
    assert (found.mean, found.method, found.low, found.standard_error) == (0.2, Method.point, None, None)
    assert equivalence_p(found, 1.0) is None
    assert unpaired([1.0], [1.0, 2.0]).method is Method.point
    assert spread([1.0]) is None


def test_the_same_results_are_called_the_same():
    assert paired([0.0, 0.0]).method is Method.same
    assert unpaired([0.5, 0.5], [0.5, 0.5, 0.5]).method is Method.same
    # Means of 0.776 differ in rounding, by how many there are.
    found = unpaired([0.776, 0.776], [0.776, 0.776, 0.776])
    assert (found.method, found.mean) == (Method.same, 0.0)
    third = float(np.float32(1 / 3))
    assert unpaired([0.9, 0.9], [third, third]).method is Method.point
    # One pair, or a mean that is the same by chance, is no such thing.
    assert paired([0.0]).method is Method.point
    assert paired([-0.5, 0.5]).method is Method.paired
    assert unpaired([1.0, 1.0, 1.0], [1.0]).method is Method.point


@pytest.mark.parametrize("differences", [[0.1, 0.2, 0.3], [-0.01, 0.02, 0.0, 0.015], [1.0, -1.0]])
def test_equivalence_is_an_interval_within_the_margin(differences):
    found = paired(differences)
    low, high = equivalence_interval(found)
    t = stats.ttest_1samp(differences, 0.0).confidence_interval(0.9)
    assert (low, high) == pytest.approx((t.low, t.high), rel=1e-9)
    edge = max(abs(low), abs(high))
    assert equivalence_p(found, 1.001 * edge) < SIGNIFICANCE < equivalence_p(found, 0.999 * edge)


def test_differences_without_a_spread_are_untested():
    for found in (paired([0.25, 0.25]), unpaired([1.25, 1.25], [1.0, 1.0])):
        assert (found.mean, found.method, found.low, found.high) == (0.25, Method.point, None, None)
        assert equivalence_p(found, 0.5) is None
