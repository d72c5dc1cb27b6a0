"""Win rates by hand, and their interval where all is won."""

import math

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.stats.proportions import wilson
from consilience.stats.win_rate import discrete_win_rate, win_counts, win_rate


def test_win_rate_by_hand():
    # Mean of 1, 0.5, 0.2, 0.1 is 0.45; squared residuals 0.3025 + 0.0025 + 0.0625 + 0.1225 = 0.49.
    found = win_rate([1, 0.5, 0.2, 0.1])
    assert found.value == pytest.approx(45)
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.49 / 3 / 4))
    assert discrete_win_rate([1, 0.5, 0.2, 0.1]).value == pytest.approx(100 * 1.5 / 4)
    assert win_counts([1, 0.5, 0.2, 0.1]) == (1, 2, 1)


def test_both_orders_of_a_prompt_are_one_unit():
    found = win_rate([1, 0, 1, 1], ["a", "a", "b", "b"])
    assert found.n == 2
    assert found.value == 75
    assert found.standard_error == pytest.approx(25)  # 50 and 100: sd 35.4 over sqrt(2)


def test_all_won_has_the_width_of_as_many_verdicts():
    # Student's t on 19 degrees of freedom is 2.093; Wilson's lower end at n of n is n / (n + z^2).
    found = win_rate([1.0] * 20)
    assert (found.low, found.high) == pytest.approx((100 * 20 / (20 + 2.093024**2), 100))


def test_interval_of_plain_verdicts_nears_wilson_and_stays_within_0_and_100():
    verdicts = np.repeat([1.0, 0.0], [30, 970])
    found = win_rate(verdicts)
    assert (found.low / 100, found.high / 100) == pytest.approx(wilson(30, 1000), abs=1e-4)
    assert win_rate([0.02, 0.0, 0.0, 0.01, 0.0]).low >= 0


@pytest.mark.parametrize(
    ("wins", "message"),
    [
        ([1.5, 1.2], "2 of 2 wins are outside 0 to 1"),
        ([math.nan, math.nan], "2 of 2 wins are not finite"),
        ([], "at least one"),
        ([1.0], "takes at least two"),
    ],
)
def test_what_is_no_win_says_so(wins, message):
    with pytest.raises(DataError, match=message):
        win_rate(wins)
