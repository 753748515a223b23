"""All planted faults."""

from tests.helpers.faults import gradients, image, state, structure, text
from tests.helpers.faults.fault import Fault

FAULTS: tuple[Fault, ...] = (*image.FAULTS, *text.FAULTS, *structure.FAULTS, *gradients.FAULTS, *state.FAULTS)


def fault(name: str) -> Fault:
    """The fault of that name."""
    return next(each for each in FAULTS if each.name == name)
