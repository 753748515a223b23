import math
import random

import pytest
import torch

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.layer_histograms import layer_histograms
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.stats_row import gradient_ranges
from tests.helpers.samples import sample, table

ACTIVATION, GRADIENT, WEIGHTS = TensorKind


@pytest.mark.parametrize("seed", range(20))
def test_all_samples_together_and_the_worst_of_them(seed: int) -> None:
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        (step, layer, kind): torch.randn(chance.randint(1, 50), generator=generator) * 2.0 ** chance.randint(-60, 60)
        for step in range(chance.randint(1, 6))
        for layer in ("stem", "block", "head")
        for kind in TensorKind
        if chance.random() < 0.8
    }
    tensors = {key: values * (chance.random() > 0.1) for key, values in tensors.items()}  # some all zeros
    found = layer_histograms(table(sample(layer, kind, x, step=step) for (step, layer, kind), x in tensors.items()))
    assert [(each.layer, each.kind) for each in found] == list(dict.fromkeys(key[1:] for key in tensors))
    for each in found:
        parts = {step: x for (step, *key), x in tensors.items() if key == [each.layer, each.kind]}
        whole = gradient_ranges([("x", torch.cat(list(parts.values())))])["x"]
        assert (each.samples, each.left_out, each.broke_at) == (len(parts), 0, None)
        assert (each.stats.amax, each.stats.zeros, each.stats.exponents) == (whole.amax, whole.zeros, whole.exponents)
        for exponent in range(-90, 90, 7):
            shares = {
                step: float((x[x != 0].double().abs() <= 2.0**exponent).double().mean())
                for step, x in parts.items()
                if x.any()
            }
            share, step = each.worst_at_or_below(exponent)
            assert share == pytest.approx(max(shares.values(), default=0.0))
            assert step is None or shares[step] == pytest.approx(share)


def test_what_is_not_finite_is_left_out_and_blamed_on_the_first() -> None:
    good, bad = torch.tensor([1.0, 2.0]), torch.tensor([4.0, math.nan])
    steps = [
        {"stem": good, "block": good, "head": good},
        {"stem": good, "block": bad, "head": bad},
        {"stem": good, "block": good, "head": torch.tensor([math.inf])},
    ]
    rows = [sample(layer, ACTIVATION, x, step=step) for step, each in enumerate(steps) for layer, x in each.items()]
    stem, block, head = layer_histograms(table(rows))
    assert (stem.samples, stem.left_out, stem.broke_at) == (3, 0, None)
    assert (block.samples, block.left_out, block.broke_at) == (2, 1, 1)
    assert (head.samples, head.left_out, head.broke_at) == (1, 2, 2)
    assert block.stats.amax == 2.0


@pytest.mark.parametrize(
    ("origins", "expected"),
    [
        ({}, {"head": 5}),
        ({5: "wide"}, {"wide": 5}),
        ({5: None}, {}),
        ({5: "not.sampled"}, {"head": 5}),
        ({4: "wide"}, {"head": 5}),
    ],
)
def test_what_an_incident_tells_of_an_origin_counts_more_than_the_order_of_the_model(
    origins: dict[int, str | None], expected: dict[str, int]
) -> None:
    # The head comes first where layers are listed, and last when they are called.
    bad = torch.tensor([math.inf])
    rows = [sample(layer, ACTIVATION, bad, step=step) for step in (5, 6) for layer in ("head", "wide")]
    rows.append(sample("stem", ACTIVATION, torch.ones(1), step=5))
    known = {6: None, **origins}
    found = layer_histograms(table(rows), origins=known)
    assert {each.layer: each.broke_at for each in found if each.broke_at is not None} == expected


def test_gradients_that_are_not_finite_are_nobodys_fault() -> None:
    rows = [sample("stem", kind, torch.tensor([math.inf]), step=3) for kind in (GRADIENT, WEIGHTS)]
    rows.append(sample("stem", ACTIVATION, torch.ones(1), step=3))
    assert [(each.left_out, each.broke_at) for each in layer_histograms(table(rows))] == [
        (1, None),
        (1, None),
        (0, None),
    ]


def test_samples_from_before_histograms_were_switched_on_do_not_count() -> None:
    rows = [sample("stem", ACTIVATION, torch.ones(2), step=0, histograms=False)]
    rows += [sample("stem", ACTIVATION, torch.ones(2) / 2, step=1)]
    (found,) = layer_histograms(table(rows))
    assert (found.samples, found.stats.amax, found.stats.exponents) == (1, 0.5, {-1: 2})


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        ([], "no samples of its layers"),
        ([sample("stem", ACTIVATION, torch.ones(2), histograms=False)], "samples without histograms"),
    ],
)
def test_a_run_without_histograms_is_refused(rows: list[object], missing: str) -> None:
    with pytest.raises(TelemetryError, match=rf"The run has {missing}, .*histograms=True"):
        layer_histograms(table(rows))  # type: ignore[arg-type]
