"""Agreement over spans against trusted libraries on the characters themselves, and free text by hand."""

from __future__ import annotations

import json
from typing import Any

import krippendorff
import numpy as np
import pytest
from gold_example import FREE, SPAN, code, gold_store, gold_texts
from sklearn.metrics import f1_score

from consilience.annotate.agreement import Design, codings_of, left_out, measures_of
from consilience.annotate.coding.summary import gold_status
from consilience.annotate.gold import GoldItem
from consilience.annotate.spans import Span, runs
from consilience.annotate.validate import Coded, agreement_with_gold, validate
from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats import unitizing_alpha

ALONE = Design(None, None)
EVERY, CLAIM = "F1 over characters, any label", "F1 over characters, claim"
LENGTHS = (40, 25, 60, 30)


def spans_of(rng: np.random.Generator, length: int) -> str:
    found = []
    for _ in range(int(rng.integers(0, 4))):
        start = int(rng.integers(0, length - 5))
        found.append([start, start + int(rng.integers(1, 5)), str(rng.choice(SPAN.names))])
    return json.dumps(found)


def marks(spans: str, length: int, label: str | None = None) -> list[int]:
    """Character by character."""
    return [
        int(any(start <= i < end and label in (None, name) for start, end, name in json.loads(spans)))
        for i in range(length)
    ]


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str]]:
    rng = stream(5, "spans")
    return [(spans_of(rng, length), spans_of(rng, length)) for length in LENGTHS]


def test_alpha_and_f1_are_those_of_the_characters(rows: list[tuple[str, str]]) -> None:
    measures = measures_of(rows, SPAN, ALONE, LENGTHS)
    for label, named in ((None, "any label"), ("claim", "claim"), ("blame", "blame")):
        first, second = ([m for row, n in zip(rows, LENGTHS) for m in marks(row[r], n, label)] for r in (0, 1))
        alpha = measures[f"Krippendorff's alpha (characters), {named}"](0.95)
        assert alpha.value == pytest.approx(
            krippendorff.alpha(np.array([first, second]), level_of_measurement="nominal")
        )
        assert (alpha.n, alpha.unit_kind) == (4, "texts")  # characters of a text go together
        f1 = measures[f"F1 over characters, {named}"](0.95)
        assert f1.value == pytest.approx(f1_score(first, second))
        assert 0 <= f1.low <= f1.value < f1.high <= 1


def test_weights_stand_for_that_many_texts(rows: list[tuple[str, str]]) -> None:
    """A text of weight 2 counts as if it were there twice."""
    twice = measures_of([*rows, rows[0]], SPAN, ALONE, (*LENGTHS, LENGTHS[0]))
    weighted = measures_of(rows, SPAN, Design((2.0, 1.0, 1.0, 1.0), None), LENGTHS)
    assert weighted[EVERY](0.95).value == pytest.approx(twice[EVERY](0.95).value)
    name = "Krippendorff's alpha (characters), any label"
    # Alpha's (n - 1) / n knows how many characters there were.
    assert weighted[name](0.95).value == pytest.approx(twice[name](0.95).value, abs=0.005)


def test_same_spans_and_no_answer_by_hand() -> None:
    """Gold marks 4 of 10 characters thrice; the model marks the same, half of it, and gives no answer."""
    gold = '[[0, 4, "claim"]]'
    found = [('[[0, 4, "claim"]]', "ok"), ('[[0, 2, "claim"]]', "ok"), (None, "refused")]
    coded = [Coded(GoldItem(str(i), gold), label, status, length=10) for i, (label, status) in enumerate(found)]
    measures = agreement_with_gold(coded, SPAN, ALONE)
    assert measures["same spans, any label"]["value"] == pytest.approx(1 / 3)
    assert measures[EVERY]["value"] == pytest.approx(2 * (4 + 2 + 0) / (8 + 6 + 4))
    assert "F1 over characters, blame" not in measures  # nobody marked any
    assert "1 of 3 texts have no label of the model" in validate(coded, SPAN)["note"]


def test_full_agreement_has_an_interval() -> None:
    same = [('[[0, 4, "claim"]]', '[[0, 4, "claim"]]')] * 5
    f1 = measures_of(same, SPAN, ALONE, [10] * 5)[EVERY](0.95)
    assert (f1.value, f1.high) == (1, 1)
    assert f1.low == pytest.approx(1 - 0.4345, abs=1e-3)  # Wilson's upper limit for none of five


def test_runs_of_characters_by_hand() -> None:
    marked = [(Span(2, 5, "a"),), (Span(4, 8, "a"), Span(8, 10, "b")), None]
    assert runs(marked, 10) == [
        (2, (False, False, None)),
        (2, (True, False, None)),
        (1, (True, True, None)),
        (3, (False, True, None)),
        (2, (False, True, None)),
    ]
    assert runs([(), ()], 3) == [(3, (False, False))]
    assert runs([(), ()], 0) == []


def test_coders_of_spans_and_of_free_text_are_compared(tmp_path: Any) -> None:
    spans = gold_store(tmp_path, SPAN, gold_texts(3, twice=3))
    for item, first, second in (
        ("t0", [[0, 4, "claim"]], [[0, 4, "claim"]]),
        ("t1", [[0, 4, "claim"]], []),
        ("t2", [], []),
    ):
        code(spans, "anna", item, json.dumps(first))
        code(spans, "ben", item, json.dumps(second))
    found = gold_status(spans, SPAN)["agreement"]["variables"]["claims: any label"]["measures"]
    assert found["same spans"]["value"] == pytest.approx(2 / 3)
    assert found["F1 over characters"]["value"] == pytest.approx(8 / 12)
    (tmp_path / "free").mkdir()
    free = gold_store(tmp_path / "free", FREE, gold_texts(2, twice=2))
    for item, first, second in (("t0", "It  rains.", "it rains."), ("t1", "Sun.", "Snow.")):
        code(free, "anna", item, first)
        code(free, "ben", item, second)
    (measures,) = gold_status(free, FREE)["agreement"]["variables"].values()
    assert {name: number["value"] for name, number in measures["measures"].items()} == {
        "same text, but for blanks and capitals": 0.5
    }


def test_a_coding_that_is_no_spans_is_refused() -> None:
    with pytest.raises(DataError, match="not JSON"):
        codings_of([("claim", "[]")], SPAN, [5])
    assert left_out(["a", "b"], SPAN) == ""


def test_unitizing_alphas_of_overlapping_spans() -> None:
    """Where labels do not matter a coder's overlapping spans are one; with labels only such as exclude each other."""
    apart = ('[[0, 2, "claim"], [4, 6, "blame"]]', '[[0, 4, "claim"], [4, 6, "claim"]]')
    over = ('[[0, 3, "claim"], [2, 6, "blame"]]', '[[0, 6, "claim"]]')
    measures = measures_of([apart, apart], SPAN, ALONE, [10, 10])
    one = unitizing_alpha([[[(0, 2, ""), (4, 6, "")], [(0, 4, ""), (4, 6, "")]]] * 2, [10, 10])
    assert measures["Krippendorff's |u-alpha (units), any label"](0.95).value == pytest.approx(one.value)
    assert measures["Krippendorff's u-alpha (units and labels), any label"](0.95).value < one.value
    measures = measures_of([over, apart, (apart[0], "(refused)")], SPAN, ALONE, [10, 10, 10])
    joined = [[[(0, 6, "")], [(0, 6, "")]], [[(0, 2, ""), (4, 6, "")], [(0, 4, ""), (4, 6, "")]]]
    expected = unitizing_alpha(joined, [10, 10]).value
    assert measures["Krippendorff's |u-alpha (units), any label"](0.95).value == pytest.approx(expected)
    with pytest.raises(DataError, match="units overlap"):
        measures["Krippendorff's u-alpha (units and labels), any label"](0.95)
    assert "Krippendorff's u-alpha (units and labels), claim" not in measures
