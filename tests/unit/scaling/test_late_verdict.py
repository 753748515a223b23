import math

import pytest
import torch

from mp_plugin.numerics.grad_totals import grad_totals
from mp_plugin.scaling.late_verdict import LateVerdict, explain_late
from mp_plugin.scaling.verdict import Verdict, ask
from mp_plugin.scaling.where import Where
from mp_plugin.telemetry.events import Cause


def late(found: float = 1.0, *losses: float) -> LateVerdict:
    answers = ask(
        torch.tensor([found]),
        has_gradients=True,
        amax=torch.tensor(3.0),
        norm=torch.tensor(4.0),
        losses=[torch.tensor(loss) for loss in losses],
    )
    return LateVerdict(answers, [], grad_totals([]), 2.0**15, Where(batch_idx=3, rank=0))


@pytest.mark.parametrize("found", [0.0, 1.0])
@pytest.mark.parametrize("loss", [1.0, math.nan])
def test_it_tells_what_all_ranks_know(loss: float, found: float) -> None:
    expected = Verdict(
        overflowed=bool(found), has_gradients=True, amax=3.0, norm=4.0, loss_is_finite=math.isfinite(loss)
    )
    assert late(found, loss).read() == expected


@pytest.mark.parametrize(
    ("losses", "cause"),
    [
        ((1.0,), Cause.backward),
        ((1.0, 2.0), Cause.backward),
        ((math.nan,), Cause.unknown),
        ((1.0, math.inf), Cause.unknown),
        ((-math.inf, 1.0), Cause.unknown),
        ((), Cause.backward),
    ],
)
def test_its_losses_are_all_that_is_left_to_explain_it(losses: tuple[float, ...], cause: Cause) -> None:
    given = late(1.0, *losses)
    explanation = explain_late(given.read(), given)
    assert (explanation["cause"], explanation["loss_scale"]) == (cause, 2.0**15)
    evidence = explanation["evidence"]
    assert evidence["loss_finite"] is (cause is Cause.backward)
    assert evidence["untraced"] == "seen late"
    assert "exact=True" in evidence["missing"][0]
