"""From codings to final labels, probabilities and the gold table."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from gold_example import FREE, INTERVAL, MULTI, NOMINAL, SPAN, code, gold_store, gold_texts

from consilience.annotate.codebook import Codebook
from consilience.annotate.coding.labels import disagreements, gold_labels, write_gold
from consilience.annotate.coding.store import ADJUDICATOR, UNCLEAR
from consilience.annotate.coding.values import checked
from consilience.errors import DataError


def test_final_labels_by_hand(tmp_path: Path) -> None:
    store = gold_store(tmp_path, texts=gold_texts(8, twice=8))
    store.add_coder("carla")
    for item, codes in {
        "t0": {"anna": "glad", "ben": "glad"},  # alike
        "t1": {"anna": "glad", "ben": "sad"},  # one against one
        "t2": {"anna": "glad", "ben": "sad", "carla": "sad"},  # two of three
        "t3": {"anna": "glad"},  # the second coder is still to come
    }.items():
        for coder, value in codes.items():
            code(store, coder, item, value)
    code(store, "anna", "t4", "", status=UNCLEAR)
    code(store, "anna", "t5", "glad")
    code(store, "ben", "t5", "", status=UNCLEAR)
    code(store, "anna", "t6", "glad")
    code(store, "ben", "t6", "sad")
    code(store, "carla", "t6", "angry", role=ADJUDICATOR)
    found = {label.text.item: (label.status, label.label, label.adjudicated) for label in gold_labels(store, NOMINAL)}
    assert found == {
        "t0": ("coded", "glad", False),
        "t1": ("disagreement", "", False),
        "t2": ("coded", "sad", False),
        "t3": ("coded", "glad", False),
        "t4": ("unclear", "", False),
        "t5": ("disagreement", "", False),
        "t6": ("coded", "angry", True),
        "t7": ("uncoded", "", False),
    }
    to_settle = [label.text.item for label in disagreements(gold_labels(store, NOMINAL))]
    assert to_settle == ["t1", "t2", "t5", "t6"]  # not t3 and t4: their second coders are still to come


def test_numbers_are_averaged(tmp_path: Path) -> None:
    store = gold_store(tmp_path, INTERVAL)
    code(store, "anna", "t0", "3")
    code(store, "ben", "t0", "4.5")
    assert gold_labels(store, INTERVAL)[0].label == "3.75"


def test_the_gold_table(tmp_path: Path) -> None:
    store = gold_store(tmp_path, MULTI)
    for coder in ("anna", "ben"):
        code(store, coder, "t0", "work|play")
    code(store, "anna", "t2", "")
    code(store, "anna", "t4", "", status=UNCLEAR)
    write_gold(store, MULTI, tmp_path / "gold.csv")
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "gold.csv").open())}
    assert list(rows["t0"]) == [*"id split probability stratum cluster label gold_status coder:anna coder:ben".split()]
    assert (rows["t0"]["label"], rows["t0"]["coder:ben"], rows["t0"]["stratum"]) == ("work|play", "work|play", "even")
    assert (rows["t2"]["label"], rows["t2"]["gold_status"]) == ("(none)", "coded")
    assert (rows["t4"]["label"], rows["t4"]["gold_status"], rows["t4"]["coder:anna"]) == ("", "unclear", "")
    assert (rows["t5"]["label"], rows["t5"]["gold_status"]) == ("", "uncoded")
    assert float(rows["t0"]["probability"]) == 0.4  # as drawn; what is not coded is reckoned with where gold is read


@pytest.mark.parametrize(
    ("codebook", "given", "kept"),
    [
        (NOMINAL, "Sad", "sad"),
        (NOMINAL, "2.0", "sad"),
        (MULTI, ["play", "work"], "work|play"),
        (MULTI, [], ""),
        (MULTI, "(none)", ""),
        (INTERVAL, 3, "3"),
        (INTERVAL, "2.50", "2.5"),
        (FREE, "Anything at all.", "Anything at all."),
        (SPAN, [[5, 7, "blame"], [0, 4, "claim"], [0, 4, "claim"]], '[[0, 4, "claim"], [5, 7, "blame"]]'),
        (SPAN, "[]", "[]"),
    ],
)
def test_values_as_the_codebook_writes_them(codebook: Codebook, given: object, kept: str) -> None:
    assert checked(given, codebook, "Ten words.") == kept


@pytest.mark.parametrize(
    ("codebook", "given", "said"),
    [
        (NOMINAL, "sadd", "no label of the codebook. Did you mean 'sad'"),
        (NOMINAL, "4", "no label of the codebook"),
        (NOMINAL, True, "expected a label"),
        (MULTI, ["work", "wrok"], "Did you mean 'work'"),
        (MULTI, 3, "expected a list of labels"),
        (INTERVAL, "11", "outside the range"),
        (INTERVAL, "nan", "outside the range"),
        (FREE, "x" * 20_001, "at most 20000"),
        (SPAN, [[0, 11, "claim"]], "within 10 characters"),
        (SPAN, [[2, 2, "claim"]], "expected \\[start, end, label\\]"),
        (SPAN, [[0, 4, "clam"]], "the label 'clam' of a span"),
        (SPAN, "claim", "not JSON"),
    ],
)
def test_values_that_the_codebook_does_not_have(codebook: Codebook, given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked(given, codebook, "Ten words.")
