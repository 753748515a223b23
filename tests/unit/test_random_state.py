import io
import random

import numpy as np
import torch

from mp_plugin.random_state import RandomState, capture_random_state


def draw() -> list[float]:
    # A normal number of Python and NumPy leaves a second one behind, which is part of the state.
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), np.random.randn(), torch.rand(1).item()]


def test_every_stream_goes_back() -> None:
    draw()
    before = capture_random_state(torch.device("cpu"))
    first = draw()
    assert draw() != first
    before.restore()
    assert draw() == first


def test_a_saved_state_goes_back_as_well() -> None:
    draw()
    file = io.BytesIO()
    torch.save(capture_random_state(torch.device("cpu")).state_dict(), file)
    first = draw()
    assert draw() != first
    RandomState.from_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True)).restore()
    assert draw() == first
