from itertools import product

import pytest

from mp_plugin.scaling.skip_action import choose_action
from mp_plugin.telemetry.events import Action


@pytest.mark.parametrize(("lost", "backs_off", "hopeless"), [*product((True, False), repeat=3)])
def test_the_first_that_applies(lost: bool, backs_off: bool, hopeless: bool) -> None:
    expected = {
        (True, True, True): Action.raise_,
        (True, True, False): Action.raise_,
        (True, False, True): Action.raise_,
        (True, False, False): Action.raise_,
        (False, True, True): Action.backoff,
        (False, True, False): Action.backoff,
        (False, False, True): Action.raise_,
        (False, False, False): Action.skip,
    }
    action = choose_action(weights_are_lost=lost, backs_off=backs_off, is_hopeless=hopeless)
    assert action is expected[lost, backs_off, hopeless]
