import math

import pytest

from mp_plugin.checks import is_count, is_number


@pytest.mark.parametrize("value", [True, math.nan, math.inf, -math.inf, "1", None, 0.5, 3.5, 10**400])
def test_what_is_no_number_from_1_to_3(value: object) -> None:
    assert not is_number(value, lowest=1, highest=3)


@pytest.mark.parametrize("value", [1, 3, 2.5])
def test_numbers_from_1_to_3(value: object) -> None:
    assert is_number(value, lowest=1, highest=3)


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_an_integer_beyond_the_range_of_floats_is_no_number(value: int) -> None:
    assert not is_number(value, lowest=-math.inf)


@pytest.mark.parametrize(("value", "expected"), [(2, True), (1, False), (2.0, False), (True, False), ("2", False)])
def test_whole_numbers_from_2(value: object, expected: bool) -> None:
    assert is_count(value, lowest=2) is expected
