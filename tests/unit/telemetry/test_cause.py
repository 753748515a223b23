"""The order of the evidence, as the contract has it: batch, weights, forward pass, scaled loss, backward pass."""

from typing import Any

import pytest

from mp_plugin.telemetry.cause import Evidence, decide_cause
from mp_plugin.telemetry.events import Cause, Direction

FORWARD, BACKWARD = Direction.forward, Direction.backward
FINE: dict[str, Any] = {"batch_finite": True, "weights_finite": True, "loss_finite": True, "scaled_loss_finite": True}
LOST: dict[str, Any] = {**FINE, "loss_finite": False, "scaled_loss_finite": False}


@pytest.mark.parametrize(
    ("evidence", "cause"),
    [
        # Nothing was traced.
        ({}, Cause.unknown),
        ({"batch_finite": True, "weights_finite": True}, Cause.unknown),
        ({"batch_finite": False}, Cause.unknown),
        ({"weights_finite": False}, Cause.weights),
        (FINE, Cause.backward),
        ({**FINE, "scaled_loss_finite": False}, Cause.loss),
        (LOST, Cause.forward),
        ({**LOST, "batch_finite": False}, Cause.data),
        ({**LOST, "batch_finite": False, "weights_finite": False}, Cause.data),
        ({**LOST, "weights_finite": False}, Cause.weights),
        ({**FINE, "weights_finite": False}, Cause.weights),
        # A batch may hold a NaN that the step knows to mask: a finite loss clears it.
        ({**FINE, "batch_finite": False}, Cause.backward),
        ({**FINE, "batch_finite": False, "scaled_loss_finite": False}, Cause.loss),
        # Traced.
        ({**LOST, "direction": FORWARD}, Cause.forward),
        ({**FINE, "direction": BACKWARD}, Cause.backward),
        ({**FINE, "direction": FORWARD}, Cause.forward),  # an Inf that was masked, and came back as 0 * inf
        ({**LOST, "direction": FORWARD, "origin_in_batch": True, "batch_finite": False}, Cause.data),
        ({**FINE, "direction": BACKWARD, "origin_in_batch": True}, Cause.data),
        ({**LOST, "direction": FORWARD, "batch_finite": False}, Cause.forward),  # the batch's NaN was masked
        ({**LOST, "direction": FORWARD, "origin_in_weights": True}, Cause.weights),
        ({**LOST, "direction": FORWARD, "weights_finite": False}, Cause.weights),
        ({**LOST, "direction": FORWARD, "origin_in_batch": True, "weights_finite": False}, Cause.data),
        ({**FINE, "scaled_loss_finite": False, "direction": FORWARD, "origin_in_scaling": True}, Cause.loss),
        ({"direction": BACKWARD}, Cause.backward),
    ],
)
def test_the_first_piece_of_evidence_that_speaks_decides(evidence: dict[str, Any], cause: Cause) -> None:
    assert decide_cause(Evidence(**evidence)) is cause
