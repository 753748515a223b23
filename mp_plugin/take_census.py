"""Count what really runs in a training step, by running its forward pass once more."""

from mp_plugin.errors import UnsupportedError
from mp_plugin.rehearsal import forward, rehearsal
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.census import Census
from mp_plugin.telemetry.census_taker import CensusTaker


def take_census(start: StepStart) -> Census:
    """Run the forward pass of a step's first batch once more, and count its operators; nothing of it remains.

    All ranks together; each counts its own. Not between a forward pass and its backward pass: buffers that the first
    has saved would count as written to. Code that is compiled runs eagerly meanwhile: the formats are the same, the
    operators are those before fusion.

    Args:
        start: where the step began.

    Raises:
        UnsupportedError: for a step that cannot be run again, as in manual optimization.
    """
    if not start.can_run_again or not start.window:
        raise UnsupportedError(
            "No census can be taken of this step; accepted: automatic optimization, a training_step without "
            "dataloader_iter, and a batch that is still held."
        )
    taker = CensusTaker(start.module)
    with rehearsal(start), taker:
        start.restore_batches()  # for which the step may have taken something out
        forward(start.module, start.window[0])
    return taker.census()
