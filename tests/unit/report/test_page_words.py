import pytest

from mp_plugin.report.page_words import number, power, powers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.0**15, "2<sup>15</sup>"),
        (2.0**-14, "2<sup>−14</sup>"),
        (8.0, "8"),
        (3000.0, "3,000"),
        (0.0, "0"),
        (None, "none"),
    ],
)
def test_powers_of_two_are_shown_as_such(value, shown):
    assert str(power(value)) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.0036, "0.0036"),
        (3921.04, "3,921"),
        (123456.7, "123,457"),
        (1.23456e-7, "1.235e−07"),
        (-2.5, "−2.5"),
        (float("inf"), "inf"),
        (None, "none"),
    ],
)
def test_numbers_have_four_digits(value, shown):
    assert number(value) == shown


def test_powers_in_a_text_are_raised_and_the_rest_escaped():
    assert str(powers("<2^12 to 2^-3>")) == "&lt;2<sup>12</sup> to 2<sup>−3</sup>&gt;"
