"""Steps written by hand: who is to blame for what?"""

from typing import Any

import pytest

from mp_plugin.numerics.finiteness import FINITE, Kind
from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.origin import Origin, Source, Step, find_origin

NAN, INF, MASK = Kind.nan, Kind.inf, Kind.negative_inf


def step(*sources: Source, holds: Any = NAN, made: Any = None, **more: Any) -> Step:
    """A step whose output holds these kinds; without a source it made them."""
    kinds = frozenset([holds] if isinstance(holds, Kind) else holds)
    made = (kinds if not sources else FINITE) if made is None else frozenset(made)
    common = {"operator": "op", "direction": Direction.forward, "layer": "", "location": None}
    return Step(kinds=kinds, made=made, sources=sources, **{**common, **more})


def of(maker: int | None, kind: Kind, into: Kind | None = None) -> Source:
    return Source(maker=maker, storage=0 if maker is None else maker, kind=kind, into=into or kind)


def blamed(*steps: Step) -> Origin | None:
    """The origin of everything that the last step holds."""
    last = len(steps) - 1
    return find_origin(steps, [of(last, kind) for kind in steps[last].kinds])


THERE = of(None, NAN)
INF_THERE = of(None, INF)
MASK_THERE = of(None, MASK)
KEEPS = {"takes_masks": True}
MASKED = step(holds=MASK, is_given=True, **KEEPS)
BOTH = step(of(0, MASK), of(1, INF), holds={MASK, INF})


@pytest.mark.parametrize(
    ("steps", "origin"),
    [
        # A chain leads to its beginning.
        ([step()], Origin(0)),
        ([step(), step(of(0, NAN)), step(of(1, NAN))], Origin(0)),
        ([step(holds=INF), step(of(0, INF), holds=INF), step(of(1, INF, NAN))], Origin(0)),
        # What leads nowhere is not to blame; of two that lead here the earlier one is.
        ([step(), step(), step(of(1, NAN))], Origin(1)),
        ([step(), step(), step(of(1, NAN), of(0, NAN))], Origin(0)),
        # A NaN comes from a NaN if there is one, and an Inf from an Inf of its own kind.
        ([step(holds=INF), step(), step(of(1, NAN))], Origin(1)),
        ([step(holds=MASK), step(holds=INF), BOTH, step(of(2, INF), holds=INF)], Origin(1)),
        ([step(holds=MASK), step(holds=INF), BOTH, step(of(2, MASK), holds=MASK)], Origin(0)),
        # -Inf is more often a mask than +Inf.
        ([step(holds=MASK), step(holds=INF), step(of(0, MASK, NAN), of(1, INF, NAN))], Origin(1)),
        # In part made here, beside a mask.
        ([MASKED, step(of(0, MASK), holds={MASK, INF}, made={INF}, **KEEPS), step(of(1, INF, NAN))], Origin(1)),
        ([MASKED, step(of(0, MASK), holds=MASK, made={MASK}, **KEEPS), step(of(1, MASK, NAN))], Origin(1)),
        # There before.
        ([step(THERE)], Origin(0, THERE)),
        ([step(INF_THERE, holds=INF), step(of(0, INF, NAN))], Origin(0, INF_THERE)),
        ([step(THERE), step(), step(of(0, NAN), of(1, NAN))], Origin(0, THERE)),
        # A mask is no accident; a row that is masked as a whole is one, of the operator that meets it.
        ([MASKED, step(of(0, MASK), holds=MASK, **KEEPS), step(of(1, MASK, NAN), **KEEPS)], Origin(2)),
        ([MASKED, step(of(0, MASK, NAN))], Origin(1)),
        ([step(MASK_THERE, holds=MASK, **KEEPS), step(of(0, MASK, NAN), **KEEPS)], Origin(1)),
        # What is multiplied with others was none.
        ([step(MASK_THERE, holds=MASK, **KEEPS), step(of(0, MASK, NAN))], Origin(1, MASK_THERE)),
        ([step(MASK_THERE, holds=MASK), step(of(0, MASK, NAN), **KEEPS)], Origin(0, MASK_THERE)),
        ([MASKED, step(of(0, MASK), holds=MASK)], Origin(0)),
        # Should there be nothing else, the mask it is.
        ([MASKED, step(of(0, MASK), holds=MASK, **KEEPS)], Origin(0)),
        ([step(MASK_THERE, holds=MASK, **KEEPS)], Origin(0, MASK_THERE)),
        ([MASKED, step(), step(of(0, MASK), of(1, NAN), holds={MASK, NAN}, **KEEPS)], Origin(1)),
        # A NaN constant is a mistake.
        ([step(is_given=True)], Origin(0)),
        # What other ranks brought was not made here.
        ([step(is_collective=True)], None),
        ([step(is_collective=True), step(of(0, NAN))], None),
        ([step(is_collective=True), step(), step(of(0, NAN), of(1, NAN))], Origin(1)),
        # A kind that nobody saw written there: whatever was written.
        ([step(holds=INF), step(of(0, NAN))], Origin(0)),
    ],
)  # fmt: skip
def test_who_is_to_blame(steps: list[Step], origin: Origin | None) -> None:
    assert blamed(*steps) == origin


def test_nothing_is_said_of_what_nobody_saw() -> None:
    assert find_origin([step()], []) is None
    assert find_origin([step()], [THERE]) is None


def test_of_several_sinks_the_earliest_origin_counts_unless_it_is_a_mask() -> None:
    steps = [MASKED, step(holds=INF), step(holds=INF)]
    assert find_origin(steps, [of(2, INF), of(1, INF), of(0, MASK)]) == Origin(1)


def test_a_chain_of_many_thousand_steps() -> None:
    steps = [step(), *(step(of(place, NAN)) for place in range(20_000))]
    assert blamed(*steps) == Origin(0)


def test_who_makes_something() -> None:
    assert step().is_maker
    assert step(of(0, INF, NAN)).is_maker
    assert not step(of(0, NAN)).is_maker
    assert not step(of(0, INF), holds=INF).is_maker
    assert step(of(0, MASK), holds={MASK, INF}, made={INF}).is_maker
    assert not step(is_collective=True).is_maker
