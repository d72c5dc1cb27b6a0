"""Bradley-Terry by hand for two and three models, and what has no rating."""

import math

import numpy as np
import pytest
from scipy.special import logit

from consilience.errors import DataError
from consilience.stats import difference
from consilience.stats.bradley_terry import bradley_terry

ELO = 400 / math.log(10)


def test_two_models_by_hand():
    # 7 won, 2 tied, 1 lost of 10: a share of 0.8, so 400 log10(4); SE = sd / (sqrt(10) 0.8 0.2), delta method.
    wins = [1.0] * 7 + [0.5] * 2 + [0.0]
    found = bradley_terry(["a"] * 10, ["b"] * 10, wins, reference="b")
    assert found["a"].value == pytest.approx(400 * math.log10(4))
    assert found["a"].standard_error == pytest.approx(ELO * np.std(wins, ddof=1) / math.sqrt(10) / 0.16)
    assert (found["b"].value, found["b"].standard_error) == (0, 0)


def test_a_chain_of_three_by_hand():
    # a and c never meet: c is 1:3 to b, b is 1:2 to a.
    first = ["a"] * 3 + ["b"] * 4
    second = ["b"] * 3 + ["c"] * 4
    found = bradley_terry(first, second, [1, 1, 0, 1, 1, 1, 0], reference="a")
    assert found["c"].value == pytest.approx(-ELO * (logit(2 / 3) + logit(3 / 4)))


def test_without_a_reference_the_mean_is_zero():
    rng = np.random.default_rng(0)
    first, second = rng.choice([*"abcd"], 200), np.array([*"efgh"])[rng.integers(0, 4, 200)]
    found = bradley_terry([*first], [*second], rng.choice([0, 0.5, 1], 200), [str(i // 4) for i in range(200)])
    assert sum(estimate.value for estimate in found.values()) == pytest.approx(0, abs=1e-8)
    assert sum(estimate.influence for estimate in found.values()) == pytest.approx(np.zeros(50), abs=1e-6)
    assert found["a"].n == 50


def test_the_side_does_not_matter():
    first, second, wins = [*"aabbc"] * 4, [*"bccab"] * 4, [1, 0, 0.5, 0, 1] * 4
    one = bradley_terry(first, second, wins)
    other = bradley_terry(second, first, [1 - win for win in wins])
    for name in "abc":
        assert one[name].value == pytest.approx(other[name].value)
        assert difference(one[name], other[name]).standard_error == pytest.approx(0, abs=1e-9)


def test_far_apart_models_still_converge():
    found = bradley_terry(["a"] * 1000 + ["b"] * 1000, ["b"] * 1000 + ["c"] * 1000, ([1] * 999 + [0]) * 2)
    assert found["a"].value - found["c"].value == pytest.approx(2 * 400 * math.log10(999))


@pytest.mark.parametrize(
    ("battles", "options", "message"),
    [
        ((["a", "a"], ["b", "b"], [1, 1]), {}, "won all or lost all battles"),
        ((["a", "a", "c", "c"], ["b", "b", "d", "d"], [1, 0, 1, 0]), {}, "never met them"),
        ((["a", "a"], ["b", "a"], [1, 0]), {}, "'a' battles itself"),
        ((["a"], ["b", "b"], [1, 0]), {}, "1 first and 2 second models for 2 wins"),
        ((["a", "a"], ["b", "b"], [1, 2]), {}, "wins go from 1 to 2"),
        ((["a", "a"], ["b", "b"], [1, 0], ["q", "q"]), {}, "all 2 items are of 1 prompts"),
        ((["a", "a"], ["b", "b"], [1, 0]), {"reference": "z"}, "'z' is in no battle; there are a, b"),
        (([], [], []), {}, "at least one"),
    ],
)
def test_what_has_no_rating_says_so(battles, options, message):
    with pytest.raises(DataError, match=message):
        bradley_terry(*battles, **options)
