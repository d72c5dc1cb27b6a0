"""How numbers are written, by hand."""

import pytest

from consilience.report.numbers import decimals_of, duration, interval, number, with_interval


def estimate(value, low, high):
    return {"value": value, "low": low, "high": high}


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "text"),
    [
        (0.0314, 3, False, "0.031"),
        (0.0314, 3, True, "+0.031"),
        (-0.0314, 3, True, "−0.031"),
        (-0.0314, 3, False, "−0.031"),
        (-0.0004, 3, True, "0.000"),
        (12.0, 0, False, "12"),
    ],
)
def test_number(value, decimals, signed, text):
    assert number(value, decimals, signed) == text


def test_intervals():
    assert with_interval(estimate(0.031, 0.004, 0.058)) == "0.031 [0.004, 0.058]"
    assert with_interval(estimate(-0.05, -0.11, 0.01), signed=True) == "−0.050 [−0.110, +0.010]"
    assert interval(estimate(0.5, None, None), 2) == "[no interval]"


def test_a_column_has_one_number_of_decimals():
    wide, narrow = estimate(0.5, 0.1, 0.9), estimate(0.5, 0.499, 0.501)  # two digits of 0.4, and of 0.001
    assert decimals_of([wide, None, wide, narrow]) == 2
    assert decimals_of([None]) == 3


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (5.02, "5.0 s"), (133, "2 min 13 s"), (3599.5, "1 h 0 min"), (11045, "3 h 4 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
