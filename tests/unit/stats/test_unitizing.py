"""Unitizing alphas by hand, against another implementation of the equations, and by their properties."""

from __future__ import annotations

import krippendorff
import numpy as np
import pytest

from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats import unitizing_alpha
from consilience.stats.unitizing import UNITIZING, Unit

Text = list[list[Unit] | None]


def cut(rng: np.random.Generator, length: int, longest: int, labels: str = "abc") -> list[Unit]:
    """Units and gaps in turn, of random lengths, begun far before the text: where it begins tells nothing."""
    found, at = [], -20 * longest
    while at < length:
        end = min(length, at + int(rng.integers(1, longest + 1)))
        if end > 0:
            found.append((max(0, at), end, str(rng.choice([*labels]))))
        at = end + int(rng.integers(0, longest))
    return found


def test_two_coders_by_hand() -> None:
    """Ten characters; one coder marks the third to the sixth, the other the fifth to the eighth.

    l_00 = 8, l_01 = l_10 = l_11 = 4, of 20; S = 6 + 6 characters of gaps + 16 + 16:
    1 - 8 (400 - 44) / (20 (400 - 12^2 - 8^2)).
    """
    texts: list[Text] = [[[(2, 6, "x")], [(4, 8, "x")]], [[], []]]
    found = unitizing_alpha(texts, [10, 0])
    assert found.value == pytest.approx(1 - 8 * 356 / (20 * 192))
    assert unitizing_alpha(texts, [10, 0], about="units").value == pytest.approx(found.value)


@pytest.mark.parametrize(("about", "published"), [("units and labels", 0.474), ("units", 0.433), ("labels", 0.779)])
def test_the_example_of_another_implementation(about: str, published: float) -> None:
    """Three coders, two labels: the numbers printed by lindanna/unitized_alpha (Lindahl 2025) for its own example."""
    coders: Text = [
        [(2, 5, "1"), (9, 11, "1"), (12, 20, "2")],
        [(2, 5, "1"), (7, 15, "2")],
        [(2, 5, "1"), (10, 15, "2")],
    ]
    assert unitizing_alpha([coders, [[], [], []]], [20, 0], about=about).value == pytest.approx(published, abs=5e-4)


@pytest.mark.parametrize("about", ["units", "units and labels"])
def test_units_of_one_character_have_the_alpha_of_characters(about: str) -> None:
    rng = stream(1, "characters")
    ratings = rng.integers(0, 3, (3, 90))
    texts: list[Text] = [
        [[(i, i + 1, str(row[at + i])) for i in range(30) if row[at + i]] for row in ratings] for at in (0, 30, 60)
    ]
    shown = ratings if about == "units and labels" else (ratings > 0).astype(int)
    expected = krippendorff.alpha(reliability_data=shown, level_of_measurement="nominal")
    assert unitizing_alpha(texts, [30, 30, 30], about=about).value == pytest.approx(expected)


@pytest.mark.parametrize("about", UNITIZING)
def test_the_same_units_agree_in_full(about: str) -> None:
    rng = stream(2, "same")
    texts: list[Text] = [[units, units, None] for units in (cut(rng, 60, 8) for _ in range(5))]
    found = unitizing_alpha(texts, [60] * 5, about=about)
    assert (found.value, found.high) == (pytest.approx(1), 1)
    assert -1 < found.low < 1


@pytest.mark.parametrize("about", UNITIZING)
def test_texts_in_one_or_several_pieces_and_weights(about: str) -> None:
    """A continuum cut where no unit is has the same alpha; a text that one coder coded counts for nothing."""
    rng = stream(3, "pieces")
    pieces: list[Text] = [[cut(rng, 50, 6), cut(rng, 50, 6), cut(rng, 50, 6)] for _ in range(4)]
    joined: Text = [
        [(50 * i + a, 50 * i + b, name) for i, row in enumerate(pieces) for a, b, name in row[r] or ()]
        for r in range(3)
    ]
    alone: Text = [cut(rng, 50, 6), None, None]
    apart = unitizing_alpha([*pieces, alone], [50] * 5, about=about)
    assert (apart.n, apart.unit_kind) == (4, "items")
    empty: Text = [[], [], []]
    assert apart.value == pytest.approx(unitizing_alpha([joined, empty], [200, 0], about=about).value)
    even = unitizing_alpha(pieces, [50] * 4, about=about, item_weights=[3.0] * 4)
    assert even.value == pytest.approx(apart.value)
    assert even.standard_error == pytest.approx(apart.standard_error)


def test_coders_who_mark_at_random_agree_as_by_chance() -> None:
    rng = stream(4, "chance")
    texts: list[Text] = [[cut(rng, 400, 12), cut(rng, 400, 12), cut(rng, 400, 12)] for _ in range(60)]
    for about in UNITIZING:
        found = unitizing_alpha(texts, [400] * 60, about=about)
        assert abs(found.value) < 3 * found.standard_error < 0.1


def test_what_has_no_alpha_says_why() -> None:
    with pytest.raises(DataError, match="units overlap"):
        unitizing_alpha([[[(0, 5, "a"), (4, 6, "b")], []]] * 2, [9, 9])
    with pytest.raises(DataError, match="text of 9 characters"):
        unitizing_alpha([[[(0, 10, "a")], []]] * 2, [9, 9])
    with pytest.raises(DataError, match="undefined"):
        unitizing_alpha([[[], []]] * 2, [9, 9])
    with pytest.raises(DataError, match="two codings"):
        unitizing_alpha([[[(0, 5, "a")], None]] * 2, [9, 9])
    with pytest.raises(DataError, match="no characters"):
        unitizing_alpha([[[], []]] * 2, [0, 0])
