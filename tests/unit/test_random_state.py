import random

import numpy as np
import torch

from mp_plugin.random_state import capture_random_state


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), torch.rand(1).item()]


def test_every_stream_goes_back() -> None:
    restore = capture_random_state(torch.device("cpu"))
    first = draw()
    assert draw() != first
    restore()
    assert draw() == first
