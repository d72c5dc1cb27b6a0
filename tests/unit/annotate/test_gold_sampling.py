"""Draws checked over all orders of tiny populations: unbiased, and probabilities that are those that happen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.annotate.coding.sampling import (
    DrawnText,
    Frame,
    Size,
    allocate,
    draw,
    kish_design_effect,
    label_strata,
    seeded_orders,
    units_for_width,
)
from consilience.errors import ConfigError, DataError

VALUES = (3.0, 1.0, 4.0, 1.5, 9.0)
SIMPLE = Frame(units_N=list("abcde"), stratum_of=dict.fromkeys("abcde", ""))
STRATIFIED = Frame(units_N=list("abcde"), stratum_of=dict(zip("abcde", "xyxyx")))
CLUSTERED = Frame(units_N=list("pqpqp"), stratum_of={"p": "", "q": ""})
DESIGNS: dict[str, tuple[Frame, Mapping[str, Size], int | None]] = {
    "simple": (SIMPLE, {"": Size(drawn=3, dev=1)}, None),
    "stratified": (STRATIFIED, {"x": Size(drawn=2, dev=1), "y": Size(drawn=2, dev=1)}, None),
    "one cluster of two, one text of it": (CLUSTERED, {"": Size(drawn=1)}, 1),
    "one cluster of two, two texts of it": (CLUSTERED, {"": Size(drawn=1)}, 2),
    "one cluster of two, whole": (CLUSTERED, {"": Size(drawn=1)}, None),
    "both clusters, one for development": (CLUSTERED, {"": Size(drawn=2, dev=1)}, 2),
}


@pytest.fixture(params=sorted(DESIGNS))
def design(request: pytest.FixtureRequest) -> tuple[Frame, Mapping[str, Size], int | None]:
    return DESIGNS[request.param]


def all_samples(
    frame: Frame, sizes: Mapping[str, Size], per_unit: int | None, twice: float = 0.0
) -> Iterator[list[DrawnText]]:
    """The sample under every order of the units and of the texts, all equally likely."""
    units = len(set(frame.units_N))
    texts = len(frame.units_N)
    text_orders = [tuple(range(texts))] if per_unit is None else list(permutations(range(texts)))
    for unit_order in permutations(range(units)):
        for text_order in text_orders:
            yield draw(frame, sizes, unit_order=unit_order, text_order=text_order, per_unit=per_unit, twice=twice)


def test_horvitz_thompson_means_are_unbiased_over_all_samples(design) -> None:
    for part in ("", "dev", "test"):
        means = []
        for sample in all_samples(*design):
            chosen = [text for text in sample if part in ("", text.part)]
            weighted = [VALUES[t.place] / (t.part_probability if part else t.probability) for t in chosen]
            means.append(sum(weighted) / len(VALUES))
        has_part = not part or any(size.dev if part == "dev" else size.drawn - size.dev for size in design[1].values())
        expected = np.mean(VALUES) if has_part else 0
        assert np.mean(means) == pytest.approx(expected, abs=1e-12)


def test_the_probabilities_are_the_shares_of_samples_that_hold_the_text(design) -> None:
    times: Counter[int] = Counter()
    said: dict[int, float] = {}
    sizes = []
    for sample in all_samples(*design):
        sizes.append(len(sample))
        for text in sample:
            times[text.place] += 1
            assert said.setdefault(text.place, text.probability) == text.probability
    for place, count in times.items():
        assert said[place] == pytest.approx(float(Fraction(count, len(sizes))))
    assert sum(said.values()) == pytest.approx(np.mean(sizes))  # n, where every sample has the same size


def test_texts_coded_twice_are_a_random_share_of_every_part() -> None:
    frame, sizes, _ = DESIGNS["stratified"]
    times = Counter(
        (text.part, text.place)
        for sample in all_samples(frame, sizes, None, twice=0.5)
        for text in sample
        if text.twice
    )
    # One text of each part and stratum (half of one, rounded up): a third of the orders for x (3 texts), half for y.
    assert times == {
        (part, place): 120 // 3 if place % 2 == 0 else 120 // 2 for part in ("dev", "test") for place in range(5)
    }


def test_a_longer_sample_holds_the_shorter_with_probabilities_of_its_own_size() -> None:
    unit_order, text_order = seeded_orders(7, 100, 100)
    frame = Frame(units_N=[f"t{i}" for i in range(100)], stratum_of={f"t{i}": "" for i in range(100)})
    orders = {"unit_order": unit_order, "text_order": text_order, "twice": 0.2}
    shorter = draw(frame, {"": Size(drawn=20, dev=5)}, **orders)
    longer = draw(frame, {"": Size(drawn=50, dev=5)}, **orders)
    assert [(t.place, t.part) for t in shorter] == [(t.place, t.part) for t in longer[:20]]
    assert {t.place for t in shorter if t.twice} <= {t.place for t in longer if t.twice}
    assert {t.probability for t in longer} == {0.5}
    assert {t.part_probability for t in longer} == {0.05, 0.45}
    assert sum(t.twice for t in longer) == 1 + 9


def test_orders_depend_on_the_seed_alone() -> None:
    again = seeded_orders(1, 9, 30)
    for first, second in zip(seeded_orders(1, 9, 30), again):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(seeded_orders(2, 9, 30)[1], again[1])


def test_more_than_a_stratum_has_is_refused() -> None:
    with pytest.raises(DataError, match="4 of stratum 'x'"):
        draw(STRATIFIED, {"x": Size(drawn=4)}, unit_order=range(5), text_order=range(5))


def test_allocation_by_hand() -> None:
    units = {"often": 900, "rare": 60, "once": 1}
    # 25 of the rare, the only one of the third, the rest of the first.
    assert allocate(units, 100, at_least=25) == {"often": 74, "rare": 25, "once": 1}
    assert allocate({"a": 50, "b": 30, "c": 20}, 10) == {"a": 5, "b": 3, "c": 2}
    assert allocate({"a": 50, "b": 30, "c": 2}, 20, equal=True) == {"a": 9, "b": 9, "c": 2}
    # Largest remainders: 10/3 each, the first of equals gets the odd one.
    assert allocate({"a": 10, "b": 10, "c": 10}, 10) == {"a": 4, "b": 3, "c": 3}
    assert allocate(units, 200, at_least=25, already={"rare": 40}) == {"often": 159, "rare": 40, "once": 1}


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    share=st.floats(0, 1),
    more=st.floats(0, 1),
    at_least=st.integers(0, 5),
    equal=st.booleans(),
)
def test_allocations_add_up_and_never_take_back(
    counts: list[int], share: float, more: float, at_least: int, equal: bool
) -> None:
    units = {f"stratum {i}": count for i, count in enumerate(counts)}
    fewest = sum(min(count, at_least) for count in counts)
    total = fewest + round(share * (sum(counts) - fewest))
    first = allocate(units, total, at_least=at_least, equal=equal)
    larger = total + round(more * (sum(counts) - total))
    second = allocate(units, larger, at_least=at_least, equal=equal, already=first)
    for allocation, size in ((first, total), (second, larger)):
        assert sum(allocation.values()) == size
        assert all(min(units[name], at_least) <= count <= units[name] for name, count in allocation.items())
    assert all(second[name] >= count for name, count in first.items())


def test_allocations_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="40 are too few for at least 25"):
        allocate({"a": 50, "b": 30}, 40, at_least=25)
    with pytest.raises(ConfigError, match="90 are to be drawn of 80"):
        allocate({"a": 50, "b": 30}, 90)


def test_kish_design_effect_by_hand() -> None:
    # Weights 1, 1 and 2: 3 * (1 + 1 + 4) / 16.
    assert kish_design_effect([1, 1, 0.5]) == pytest.approx(18 / 16)
    assert kish_design_effect([0.3] * 7) == pytest.approx(1)


def test_units_for_a_width() -> None:
    # Wilson at 1/2: half width^2 = z^2 / (4 (n + z^2)), so n = z^2 / (4 w^2) - z^2 = 384.1 - 3.8.
    simple = units_for_width({"": 10_000}, 0.05)
    assert 380 <= simple <= 382
    assert units_for_width({"": 10_000}, 0.05, per_unit=5, correlation=0.25) == -(-simple * 2 // 5)
    assert units_for_width({"": 100}, 0.05) == 100  # no more than there are
    unequal = units_for_width({"often": 9_000, "rare": 1_000}, 0.05, equal=True)
    # Equal numbers of 9,000 and 1,000: weights 9 to 1, design effect 2 * 82 / 100.
    assert unequal == pytest.approx(simple * 1.64, abs=4)


def test_strata_by_label_and_confidence() -> None:
    assert label_strata(["a", "b"]) == ["a", "b"]
    strata = label_strata(["a"] * 4 + ["b"], [0.9, 0.5, 0.6, 0.8, 0.7], bins=2)
    assert strata[0] == strata[3] == "a, confidence 0.7 to 0.9"
    assert strata[1] == strata[2] == "a, confidence 0.5 to 0.7"
    assert strata[4].startswith("b, confidence")
    assert len(set(label_strata(["a"] * 6, [0.5] * 6, bins=3))) == 1  # all alike: one stratum
