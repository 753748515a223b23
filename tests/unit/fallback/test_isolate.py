import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations, islice, product
from typing import Any

import pytest

from mp_plugin.fallback.isolate import Isolation, isolate, max_reruns


class Step:
    """A step that goes wrong unless all the operators of one of a few sets of layers run in FP32.

    It is judged by which layers a set covers, and knows nothing of how sets are searched.
    """

    def __init__(self, layers: list[str], *cures: set[str]) -> None:
        self.layers, self.cures = layers, cures
        self.above = {name: [each for each in layers if f"{name}.".startswith(f"{each}.")] for name in layers}
        self.runs: list[frozenset[str]] = []

    def run(self, islands: frozenset[str]) -> bool:
        assert islands not in self.runs, "the same set was run twice"
        self.runs.append(islands)
        return self.is_cured_by(islands)

    def is_cured_by(self, islands: frozenset[str]) -> bool:
        return any(all(not islands.isdisjoint(self.above[name]) for name in cure) for cure in self.cures)

    def covered(self, islands: frozenset[str]) -> set[str]:
        return {name for name in self.layers if not islands.isdisjoint(self.above[name])}

    def smaller(self, islands: frozenset[str]) -> Iterator[frozenset[str]]:
        """All sets that cover exactly one layer less: one left out, or replaced by what is directly below it."""
        for name in islands:
            yield islands - {name} | frozenset(self.covered(frozenset({name})) - {name})


class Origins:
    """Tells origins from a list, one after the other, and counts how often it was asked."""

    def __init__(self, *origins: str | None) -> None:
        self.origins, self.num_asked = origins, 0

    def __call__(self, islands: frozenset[str]) -> str | None:
        self.num_asked += 1
        return self.origins[min(self.num_asked, len(self.origins)) - 1]


def flat(number: int) -> list[str]:
    return [f"{place}" for place in range(number)]


def transformer(blocks: int) -> list[str]:
    """Layers of a transformer in the order of `named_modules`, those that hold others among them."""
    parts = ("norm1", "attn", "attn.qkv", "attn.proj", "norm2", "mlp", "mlp.fc1", "mlp.fc2")
    inner = [f"blocks.{block}{part and '.'}{part}" for block in range(blocks) for part in ("", *parts)]
    return ["embed", *inner, "norm", "head"]


def assert_minimal(found: Isolation, step: Step) -> None:
    islands = frozenset(found.layers)
    assert step.is_cured_by(islands)
    assert found.is_minimal
    assert list(found.layers) == [name for name in step.layers if name in islands]
    assert not any(step.is_cured_by(smaller) for smaller in step.smaller(islands))


def every(number: int, first: int, origins: Sequence[str | None], layers: list[str]) -> Iterator[tuple[Any, Any]]:
    """Every so many of the pairs of what a trace may say at first, and afterwards."""
    later = (None, layers, layers[::-1], [""], [None])
    yield from islice(product(origins, later), first % number, None, number)


def isolate_one(step: Step, culprit: str, origin: str | None, later: Any, limit: int) -> tuple[Isolation, int]:
    step.cures, step.runs = ({culprit},), []
    says = Origins(*later) if later else None
    found = isolate(step.run, step.layers, origin=origin, next_origin=says, limit=limit)
    return found, len(step.runs) + (says.num_asked if says else 0)


@pytest.mark.parametrize("number", [*range(1, 34), 64, 65, 129, 300])
def test_one_culprit_costs_two_logarithms_wherever_it_is_and_whatever_a_trace_says(number):
    layers = flat(number)
    step, bound = Step(layers), 2 * math.ceil(math.log2(number)) + 6
    assert max_reruns(number) == bound
    for place, culprit in enumerate(layers):
        origins = (culprit, layers[0], layers[-1], "elsewhere", None)
        for origin, later in every(4 if number > 64 else 1, place, origins, layers):
            found, num_runs = isolate_one(step, culprit, origin, later, bound)
            assert (found.layers, found.why, found.is_minimal) == ((culprit,), "cured", True)
            assert found.reruns == num_runs <= bound
            if origin == culprit:
                assert found.reruns == 1


@pytest.mark.parametrize("blocks", [1, 2, 12, 33])
def test_a_layer_that_holds_others_is_found_as_fast_and_only_for_operators_of_its_own(blocks):
    layers = transformer(blocks)
    step, bound = Step(layers), 2 * math.ceil(math.log2(len(layers))) + 6
    for place, culprit in enumerate(layers):
        origins = (*step.above[culprit], "embed", "head", "blocks.0.attn", "blocks.0", None)
        for origin, later in every(4 if blocks > 2 else 1, place, origins, layers):
            found, num_runs = isolate_one(step, culprit, origin, later, bound)
            assert (found.layers, found.is_minimal) == ((culprit,), True)
            assert found.reruns == num_runs <= bound


def test_independent_culprits_that_show_one_after_the_other_cost_two_runs_each():
    layers = transformer(12)
    culprits = ["blocks.2.mlp.fc2", "blocks.5.attn.proj", "blocks.9.norm1"]
    step = Step(layers, set(culprits))
    found = isolate(step.run, layers, origin=culprits[0], next_origin=Origins(*culprits[1:]), limit=99)
    assert set(found.layers) == set(culprits)
    # Three sets that grow, two traces, and for each of the three the proof that it cannot be left out but the last.
    assert found.reruns <= 3 + 2 + 3
    assert_minimal(found, step)


def test_an_origin_on_the_way_that_is_only_a_victim_is_left_out_again():
    step = Step(flat(20), {"7"})
    found = isolate(step.run, step.layers, origin="12", next_origin=Origins("15", "7"), limit=99)
    assert found.layers == ("7",)


@pytest.mark.parametrize("seed", range(100))
def test_several_culprits_against_brute_force(seed):
    chance = random.Random(seed)
    layers = transformer(1) if chance.random() < 0.5 else flat(chance.randint(2, 9))
    cures = [set(chance.sample(layers, min(chance.randint(2, 3), len(layers)))) for _ in range(chance.randint(1, 3))]
    step = Step(layers, *cures)
    origin = chance.choice([*layers, None])
    says = chance.choice([None, Origins(*chance.sample(layers, 2)), Origins(None), Origins("")])
    found = isolate(step.run, layers, origin=origin, next_origin=says, limit=999)
    assert_minimal(found, step)
    covers = {frozenset(step.covered(frozenset(each))) for size in range(1, 4) for each in combinations(layers, size)}
    cures_of_any_size = [each for each in covers if step.is_cured_by(each)]
    minimal = [each for each in cures_of_any_size if not any(other < each for other in cures_of_any_size)]
    assert frozenset(step.covered(frozenset(found.layers))) in minimal


def test_two_interacting_culprits_among_300_layers_cost_a_search_each():
    layers = flat(300)
    chance = random.Random(0)
    for _ in range(200):
        pair = set(chance.sample(layers, 2))
        step = Step(layers, pair)
        found = isolate(step.run, layers, origin=chance.choice([*pair, *layers]), limit=99)
        assert set(found.layers) == pair
        assert found.reruns <= 2 + 2 * (math.ceil(math.log2(300)) + 1) + 2


def test_an_origin_that_is_small_is_kept_whole_and_a_larger_one_is_searched():
    for small, expected in ((True, "blocks.3.attn"), (False, "blocks.3.attn.qkv")):
        step = Step(transformer(12), {"blocks.3.attn.qkv"})
        found = isolate(
            step.run, step.layers, origin="blocks.3.attn", is_small=lambda name, answer=small: answer, limit=9
        )
        assert (found.layers, found.is_minimal) == ((expected,), True)


def test_where_nothing_helps_a_few_runs_say_so():
    step = Step(transformer(12))
    found = isolate(step.run, step.layers, origin="head", next_origin=Origins("head"), limit=50)
    assert (found.layers, found.why, found.is_minimal) == ((), "no set of layers cures it", False)
    assert found.reruns == 3
    assert step.covered(step.runs[-1]) == set(step.layers)
    # The layers that hold others stand for them.
    assert step.runs[-1] == {"embed", "norm", "head", *(f"blocks.{block}" for block in range(12))}


def test_a_model_without_layers_has_no_cure():
    assert isolate(lambda islands: True, [], origin="", limit=9) == Isolation(
        layers=(), reruns=0, is_minimal=False, why="no set of layers cures it"
    )


@pytest.mark.parametrize("limit", range(12))
def test_the_limit_holds_and_what_is_known_by_then_is_told(limit):
    step = Step(flat(64), {"40", "50"})
    found = isolate(step.run, step.layers, origin="3", limit=limit)
    assert found.reruns == len(step.runs) <= limit
    assert not found.is_minimal
    if limit < 2:
        assert (found.layers, found.why) == ((), "limit reached")
    else:  # by the second run it is known that all layers together cure the step
        assert found.why == "cured"
        assert step.is_cured_by(frozenset(found.layers))
    if limit >= 8:
        assert len(found.layers) < 64


def test_a_step_that_gets_worse_with_more_layers_in_fp32_is_still_given_a_cure_of_which_nothing_can_be_left_out():
    for seed in range(300):
        chance = random.Random(seed)
        answers: dict[frozenset[str], bool] = {}

        def run(islands: frozenset[str], chance: random.Random = chance, answers: Any = answers) -> bool:
            assert islands not in answers
            answers[islands] = chance.random() < 0.5
            return answers[islands]

        found = isolate(run, flat(20), origin="3", next_origin=Origins("4", "5", "6"), limit=200)
        assert found.reruns <= 200
        assert bool(found.layers) == (found.why == "cured")
        if found.layers:
            chosen = frozenset(found.layers)
            assert answers[chosen]
            assert not any(answers[chosen - {name}] for name in chosen if len(chosen) > 1)


def test_what_a_run_raises_reaches_the_caller():
    def run(islands: frozenset[str]) -> bool:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        isolate(run, flat(4), origin="1", limit=9)


def test_the_record_names_each_run_and_stays_short():
    step = Step(flat(100), {"77"})
    found = isolate(step.run, step.layers, origin="3", next_origin=Origins("5", ""), limit=99)
    assert [(each.layers, each.outcome) for each in found.tried[:4]] == [
        (("3",), "not cured"),
        (("3",), "next origin: 5"),
        (("3", "5"), "not cured"),
        (("3", "5"), "next origin: "),
    ]
    assert (found.tried[4].num_layers, found.tried[4].layers, found.tried[4].outcome) == (100, tuple(flat(8)), "cured")
    assert len(found.tried) == found.reruns
    assert found.as_dict()["tried"][0] == {"num_layers": 1, "layers": ("3",), "outcome": "not cured"}
