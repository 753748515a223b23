"""The planted faults are what they claim to be: seen with torch alone, without the plugin."""

import math

import pytest
import torch

from mp_plugin.telemetry.events import Cause
from tests.helpers.faults.catalogue import FAULTS
from tests.helpers.faults.fault import SCALING, Fault, Origin
from tests.helpers.faults.oracle import Spoiling, replay

MEANT = {
    "masked-log",
    "masked-exp",
    "after-a-log-mask",
    "logits = logits + is_word[:, None, None, :].to(q.dtype).log()",
}
"""Lines of which the forward pass makes an -inf or inf that a mask takes away again."""

each_fault = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def fits(origin: Origin, spoiling: Spoiling) -> bool:
    names = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
    return (
        spoiling.operator in origin.operators
        and spoiling.direction == origin.direction
        and spoiling.line == origin.marker
        and spoiling.kind in origin.kinds
        and origin.dtype in (None, names[spoiling.dtype])
    )


@each_fault
def test_the_fault_strikes_where_it_is_planted(fault: Fault) -> None:
    """The first operator that spoils anything, apart from what a mask hides, is one of the accepted answers."""
    found = replay(fault)
    assert found.victims
    if any(origin.operators for origin in fault.accepted):
        in_chain = [each for each in found.spoilings if each.line not in MEANT or each.direction == "backward"]
        candidates = [each for each in found.spoilings if any(fits(origin, each) for origin in fault.accepted)]
        assert candidates, found.spoilings
        assert candidates[0] in (found.spoilings[0], in_chain[0]), found.spoilings


@each_fault
def test_without_the_fault_all_is_well(fault: Fault) -> None:
    for index in range(5):
        found = replay(fault, spoiled=False, index=index)
        assert math.isfinite(found.loss)
        assert found.victims == ()
        assert {each.line for each in found.spoilings} <= MEANT


@each_fault
def test_the_cause_follows_from_the_passes(fault: Fault) -> None:
    """A forward fault spoils the loss; a backward fault or a scale does not."""
    (cause,) = {origin.cause for origin in fault.accepted} - ({Cause.forward} if len(fault.accepted) > 1 else set())
    is_finite = math.isfinite(replay(fault).loss)
    assert is_finite == (cause in (Cause.backward, Cause.loss))


@pytest.mark.parametrize("fault", [each for each in FAULTS if each.cured is not None], ids=lambda fault: fault.name)
def test_a_lower_scale_cures_what_it_should(fault: Fault) -> None:
    assert (replay(fault, scale=SCALING.init_scale * SCALING.backoff_factor).victims == ()) == fault.cured
