"""Agreement of the coders against a trusted library and by hand; measures that are undefined say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from gold_example import INTERVAL, MULTI, NOMINAL, ORDINAL, code, gold_store, gold_texts

from consilience.annotate.codebook import Codebook
from consilience.annotate.coding.store import UNCLEAR
from consilience.annotate.coding.summary import gold_status

CODES: dict[str, tuple[Codebook, list[tuple[Any, Any]]]] = {
    "nominal": (NOMINAL, [("glad", "glad"), ("glad", "sad"), ("sad", "sad"), ("angry", "angry"), ("glad", "glad")]),
    "ordinal": (ORDINAL, [("cold", "warm"), ("hot", "hot"), ("warm", "warm"), ("cold", "cold"), ("warm", "hot")]),
    "interval": (INTERVAL, [("1", "1.5"), ("4", "4"), ("9", "7"), ("2", "2"), ("5", "6")]),
}


@pytest.mark.parametrize("scale", sorted(CODES))
def test_alpha_is_that_of_the_library_krippendorff(tmp_path: Path, scale: str) -> None:
    codebook, codes = CODES[scale]
    store = gold_store(tmp_path, codebook, gold_texts(6, twice=6))
    for i, pair in enumerate(codes):
        for coder, value in zip(("anna", "ben"), pair):
            code(store, coder, f"t{i}", value)
    code(store, "anna", "t5", codes[0][0])  # coded once: no part of the agreement
    found = gold_status(store, codebook)["agreement"]
    numbers = {name: place for place, name in enumerate(codebook.names)}
    values = np.array([[numbers.get(value, value) for value in pair] for pair in codes], dtype=float).T
    expected = krippendorff.alpha(values, level_of_measurement=scale)
    (measures,) = found["variables"].values()
    assert measures["measures"][f"Krippendorff's alpha ({scale})"]["value"] == pytest.approx(expected)
    assert measures["measures"]["observed agreement"]["value"] == pytest.approx(np.mean([a == b for a, b in codes]))
    assert measures["measures"]["observed agreement"]["n"] == found["texts"] == 5
    assert ("Gwet's AC1" in measures["measures"]) == (scale != "interval")


def test_counts_and_agreement_by_hand(tmp_path: Path) -> None:
    store = gold_store(tmp_path, texts=gold_texts(4, twice=4))
    for item, first, second in (("t0", "glad", "glad"), ("t1", "glad", "sad")):
        code(store, "anna", item, first)
        code(store, "ben", item, second, note="a note")
    code(store, "anna", "t2", "", status=UNCLEAR)
    code(store, "ben", "t2", "", status=UNCLEAR)
    code(store, "anna", "t3", "sad")
    store.undo("anna")
    found = gold_status(store, NOMINAL)
    assert found["status"] == {"coded": 1, "disagreement": 1, "unclear": 1, "uncoded": 1}
    assert found["coders"]["anna"] == {"coded": 2, "unclear": 1, "with_a_note": 0, "undone": 1}
    assert found["coders"]["ben"] == {"coded": 2, "unclear": 1, "with_a_note": 2, "undone": 0}
    measures = found["agreement"]["variables"]["mood"]
    assert measures["measures"]["observed agreement"]["value"] == pytest.approx(2 / 3)
    assert measures["pairs"]["anna and ben"]["value"] == pytest.approx(2 / 3)
    # Of six codings three are glad, one sad, two unclear.
    assert {name: share["value"] for name, share in measures["prevalence"].items()} == pytest.approx(
        {"glad": 1 / 2, "sad": 1 / 6, "angry": 0, "(unclear)": 1 / 3}
    )
    # Gwet: P_e = sum q (1 - q) / (K - 1) = (1/4 + 5/36 + 0 + 2/9) / 3 = 11/54.
    assert measures["measures"]["Gwet's AC1"]["value"] == pytest.approx((2 / 3 - 11 / 54) / (1 - 11 / 54))


def test_texts_drawn_at_a_lower_rate_count_for_more(tmp_path: Path) -> None:
    # Of every text in ten and of every second one: the first stands for 10 texts, the other two for 2 each.
    texts = [
        replace(text, probability=p, item=f"t{i}") for i, (text, p) in enumerate(zip(gold_texts(3, 3), (0.1, 0.5, 0.5)))
    ]
    store = gold_store(tmp_path, texts=texts)
    for item, first, second in (("t0", "glad", "glad"), ("t1", "glad", "sad"), ("t2", "sad", "sad")):
        code(store, "anna", item, first)
        code(store, "ben", item, second)
    found = gold_status(store, NOMINAL)["agreement"]
    assert found["weighted"]
    measures = found["variables"]["mood"]
    assert measures["measures"]["observed agreement"]["value"] == pytest.approx(12 / 14)
    assert measures["prevalence"]["glad"]["value"] == pytest.approx((10 + 1) / 14)
    # Gwet: shares 11/14, 3/14 and 0 of three labels; P_e = (11 * 3 * 2) / 14^2 / 2.
    by_chance = 11 * 3 / 14**2
    assert measures["measures"]["Gwet's AC1"]["value"] == pytest.approx((12 / 14 - by_chance) / (1 - by_chance))


def test_one_category_only_has_an_agreement_but_no_alpha(tmp_path: Path) -> None:
    store = gold_store(tmp_path, texts=gold_texts(4, twice=4))
    for i in range(4):
        code(store, "anna", f"t{i}", "glad")
        code(store, "ben", f"t{i}", "glad")
    measures = gold_status(store, NOMINAL)["agreement"]["variables"]["mood"]
    assert measures["measures"]["observed agreement"]["value"] == 1
    assert measures["measures"]["observed agreement"]["low"] < 0.6  # four texts
    assert "100 % observed agreement" in measures["measures"]["Krippendorff's alpha (nominal)"]["undefined"]


def test_every_label_of_several_is_a_yes_or_no(tmp_path: Path) -> None:
    store = gold_store(tmp_path, MULTI, gold_texts(3, twice=3))
    for item, first, second in (("t0", "work|play", "work"), ("t1", "", "home"), ("t2", "work", "work")):
        code(store, "anna", item, first)
        code(store, "ben", item, second)
    found = gold_status(store, MULTI)["agreement"]["variables"]
    assert {
        name: measures["measures"]["observed agreement"]["value"] for name, measures in found.items()
    } == pytest.approx({"topics: work": 1, "topics: home": 2 / 3, "topics: play": 2 / 3})


def test_clusters_are_the_units_where_texts_have_them(tmp_path: Path) -> None:
    texts = [*gold_texts(4, twice=4, cluster="speech a")[:2], *gold_texts(4, twice=4, cluster="speech b")[2:]]
    store = gold_store(tmp_path, texts=texts)
    for i, value in enumerate(("glad", "sad", "sad", "sad")):
        code(store, "anna", f"t{i}", "sad")
        code(store, "ben", f"t{i}", value)
    observed = gold_status(store, NOMINAL)["agreement"]["variables"]["mood"]["measures"]["observed agreement"]
    assert (observed["n"], observed["units"]) == (2, "clusters")


def test_nothing_coded_twice_is_no_agreement(tmp_path: Path) -> None:
    found = gold_status(gold_store(tmp_path), NOMINAL)
    assert found["agreement"]["texts"] == 0
    assert found["agreement"]["variables"] == {}
