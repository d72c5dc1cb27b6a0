"""The store of codings: whose turn it is, undo, history, extension, and that a killed process loses nothing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from gold_example import code, gold_store, gold_texts

from consilience.annotate.coding.store import ADJUDICATOR, CODED, CODER, OPEN, GoldStore, Progress
from consilience.errors import DataError


def test_texts_come_in_coding_order_and_a_text_of_one_coder_is_not_given_to_another(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    assert store.next_for("anna") == "t0"
    assert store.next_for("ben") == "t0"  # for two coders
    code(store, "anna", "t0", "glad")
    code(store, "anna", "t1", "glad")
    code(store, "ben", "t0", "sad")
    assert store.next_for("anna") == "t2"  # held by anna now
    assert store.next_for("ben") == "t1"
    code(store, "ben", "t1", "sad")
    assert store.next_for("ben") == "t3"  # t2 is anna's
    assert store.progress("anna") == Progress(done=2, left=3)  # t2, t4, t5; ben holds t3
    for item in ("t2", "t4", "t5"):
        code(store, "anna", item, "glad")
    assert store.progress("ben") == Progress(done=2, left=1)
    code(store, "ben", "t3", "glad")
    assert store.next_for("ben") is None
    assert store.next_for("anna") is None


def test_a_held_text_is_free_again_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = gold_store(tmp_path, texts=gold_texts(2, twice=0))
    assert store.next_for("anna") == "t0"
    assert store.next_for("ben") == "t1"
    monkeypatch.setattr("consilience.annotate.coding.store._now", lambda: "9999-01-01")
    store.add_coder("carla")
    assert store.next_for("carla") == "t0"


def test_texts_passed_over_come_last(tmp_path: Path) -> None:
    store = gold_store(tmp_path, texts=gold_texts(3, twice=0))
    assert store.next_for("anna", skipping=["t0"]) == "t1"
    code(store, "anna", "t1", "glad")
    code(store, "anna", "t2", "glad")
    assert store.next_for("anna", skipping=["t0"]) == "t0"


def test_undo_brings_back_what_was_said_before_and_keeps_the_record(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    code(store, "anna", "t0", "glad")
    code(store, "anna", "t0", "sad", note="hm")
    code(store, "ben", "t0", "angry")
    assert store.undo("anna") == "t0"
    assert store.coding_of("t0", "anna").value == "glad"  # type: ignore[union-attr]
    assert store.undo("anna") == "t0"
    assert store.coding_of("t0", "anna") is None
    assert store.undo("anna") is None
    assert store.coding_of("t0", "ben").value == "angry"  # type: ignore[union-attr]
    assert [(row["value"], row["undone"] is not None) for row in store.history()] == [
        ("glad", True),
        ("sad", True),
        ("angry", False),
    ]


def test_key_presses_of_one_burst_are_one_coding_unless_another_came_between(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    first = code(store, "anna", "t0", "glad", note="a")
    assert code(store, "anna", "t0", "glad", note="ab", continues=first) == first
    assert [row["note"] for row in store.history()] == ["ab"]
    second = code(store, "anna", "t0", "sad")
    assert code(store, "anna", "t0", "glad", note="abc", continues=first) not in (first, second)


def test_adjudications_are_apart_from_codings(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    code(store, "anna", "t0", "glad")
    code(store, "anna", "t0", "sad", role=ADJUDICATOR)
    assert store.coding_of("t0", "anna").value == "glad"  # type: ignore[union-attr]
    assert store.progress("anna").done == 1
    assert store.undo("anna", ADJUDICATOR) == "t0"
    assert store.coding_of("t0", "anna", CODER).value == "glad"  # type: ignore[union-attr]


def test_a_note_alone_is_no_coding(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    code(store, "anna", "t0", "", status=OPEN, note="look again")
    assert store.progress("anna").done == 0
    assert store.next_for("anna") == "t0"
    assert store.codings() == {}
    assert store.coded_by("anna") == ["t0"]


@pytest.mark.parametrize("name", ["", "  ", "a" * 41, "red\x1b[31m", "=SUM(A1)", "two\u202elines"])
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="a coder's name is"):
        gold_store(tmp_path).add_coder(name)


def test_a_name_in_other_case_is_the_same_coder(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    assert store.add_coder("  ANNA ") == "anna"
    assert store.coders() == ["anna", "ben"]


def test_unknown_coders_and_texts(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    with pytest.raises(DataError, match="no coder is called 'ana'"):
        code(store, "ana", "t0", "glad")
    with pytest.raises(DataError, match="'t9' is not in the gold sample"):
        code(store, "anna", "t9", "glad")


def test_an_extension_keeps_what_is_coded_and_sets_new_probabilities(tmp_path: Path) -> None:
    store = gold_store(tmp_path)
    code(store, "anna", "t3", "glad")
    longer = [replace(text, part_probability=0.9) for text in reversed(gold_texts(8))]
    assert store.extend({}, longer) == 2
    assert [text.item for text in store.texts()] == ["t0", "t1", "t2", "t3", "t4", "t5", "t7", "t6"]
    assert {text.part_probability for text in store.texts()} == {0.9}
    assert store.coding_of("t3", "anna").value == "glad"  # type: ignore[union-attr]
    with pytest.raises(DataError, match="does not hold text 't0'"):
        store.extend({}, longer[:-1])
    with pytest.raises(DataError, match="does not hold text 't7'"):
        store.extend({}, [replace(longer[0], text="other words"), *longer[1:]])


def test_nothing_is_drawn_over_a_sample(tmp_path: Path) -> None:
    gold_store(tmp_path).close()
    before = (tmp_path / "gold.sqlite").read_bytes()
    with pytest.raises(DataError, match="is there already"):
        gold_store(tmp_path)
    assert (tmp_path / "gold.sqlite").read_bytes() == before


def test_files_that_are_no_sample(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Draw one first: consilience gold plan"):
        GoldStore(tmp_path / "gold.sqlite")
    (tmp_path / "gold.sqlite").write_text("not a database at all, but long enough to look" * 20)
    with pytest.raises(DataError, match="is not a gold sample"):
        GoldStore(tmp_path / "gold.sqlite")


def test_coders_at_once_share_the_texts_without_coding_one_too_often(tmp_path: Path) -> None:
    store = gold_store(tmp_path, texts=gold_texts(24, twice=8))
    for name in ("carla", "dora"):
        store.add_coder(name)

    def work(coder: str) -> None:
        with GoldStore(tmp_path / "gold.sqlite") as own:
            while (item := own.next_for(coder)) is not None:
                code(own, coder, item, "glad")

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(work, store.coders())] == [None] * 4
    assert {item: len(found) for item, found in store.codings().items()} == {
        f"t{i}": 2 if i < 8 else 1 for i in range(24)
    }


def test_a_killed_process_loses_no_coding(tmp_path: Path) -> None:
    gold_store(tmp_path).close()
    killed = f"""
import os, signal
from pathlib import Path
from consilience.annotate.coding.store import GoldStore
store = GoldStore(Path({str(tmp_path / "gold.sqlite")!r}))
for i in range(5):
    store.code(f"t{{i}}", "anna", status="coded", value="glad")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed]).returncode == -9
    with GoldStore(tmp_path / "gold.sqlite") as store:
        assert [(item, found[0].status) for item, found in store.codings().items()] == [
            (f"t{i}", CODED) for i in range(5)
        ]
