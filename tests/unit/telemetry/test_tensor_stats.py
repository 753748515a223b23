import math

from mp_plugin.telemetry.tensor_stats import TensorStats

ONE = TensorStats(
    numel=9,
    zeros=1,
    nans=2,
    infs=3,
    amax=4.0,
    smallest=0.5,
    sum_of_squares=18.0,
    flushed=1,
    subnormal=2,
    saturated=3,
    exponents={-1: 1, 2: 2},
)
OTHER = TensorStats(numel=1, amax=3.0, smallest=3.0, sum_of_squares=9.0, exponents={-3: 5, 2: 1})


def test_merging_adds_counts_and_keeps_extremes_in_either_order():
    both = TensorStats(
        numel=10,
        zeros=1,
        nans=2,
        infs=3,
        amax=4.0,
        smallest=0.5,
        sum_of_squares=27.0,
        flushed=1,
        subnormal=2,
        saturated=3,
        exponents={-3: 5, -1: 1, 2: 3},
    )
    assert ONE.merged(OTHER) == both == OTHER.merged(ONE)
    assert list(ONE.merged(OTHER).exponents) == [-3, -1, 2]


def test_nothing_merged_with_something_is_something():
    assert ONE.merged(TensorStats()) == ONE == TensorStats().merged(ONE)
    assert TensorStats().merged(TensorStats()) == TensorStats()


def test_the_root_mean_square_is_that_of_finite_values():
    assert ONE.non_finite == 5
    assert ONE.rms == math.sqrt(18.0 / 4)
    assert TensorStats(numel=3, nans=3).rms == 0.0
    assert TensorStats().rms == 0.0
