"""One file of answers, and many who use it at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from consilience.errors import BackendError, DataError
from consilience.models.endpoint.cache import Amount, AnswerCache, Begin
from consilience.models.endpoint.settings import Budget

NOTHING = Amount(0, 0, 0.0)


def answer(cache: AnswerCache, key: str) -> None:
    call = cache.begin([key], NOTHING, None)
    assert isinstance(call, int)
    cache.finish(call, {key: {"message": {"content": key}}}, model="m", cost=Amount(2, 1, 0.5))


def test_many_open_a_new_file_at_once(tmp_path: Path) -> None:
    together, failures = threading.Barrier(12), []

    def work(i: int) -> None:
        together.wait()
        try:
            cache = AnswerCache(tmp_path / "a.sqlite")
            for k in range(5):
                answer(cache, f"{i}-{k}")
            cache.close()
        except Exception as error:  # reported by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures
    cache = AnswerCache(tmp_path / "a.sqlite")
    assert (cache.spent.calls, cache.spent.prompt_tokens, cache.spent.money) == (60, 120, 30)
    cache.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.sqlite"]


def test_a_claim_holds_while_its_owner_lives(tmp_path: Path) -> None:
    one, other = AnswerCache(tmp_path / "a.sqlite"), AnswerCache(tmp_path / "a.sqlite")
    assert isinstance(one.begin(["k"], Amount(5, 5, 3.0), None), int)
    assert other.begin(["k"], NOTHING, None) is Begin.HELD
    assert other.spent.lost == 0
    one.close()  # without an answer, as a kill would
    call = other.begin(["k"], NOTHING, None)
    assert isinstance(call, int)
    assert (other.spent.lost, other.spent.unsure_tokens, other.spent.unsure_money) == (1, 10, 3.0)
    other.finish(call, {"k": {"text": "x"}}, model="m", cost=Amount(1, 1, 0.0))
    assert other.begin(["k"], NOTHING, None) is Begin.ANSWERED
    assert other.get(["k", "l"])["k"].text == "x"


def test_the_dead_do_not_hold_the_budget(tmp_path: Path) -> None:
    one, other = AnswerCache(tmp_path / "a.sqlite"), AnswerCache(tmp_path / "a.sqlite")
    budget = Budget(money=5)
    assert isinstance(one.begin(["k"], Amount(0, 0, 3.0), budget), int)
    assert other.begin(["l"], Amount(0, 0, 3.0), budget) is Begin.HELD
    one.close()
    assert other.begin(["l"], Amount(0, 0, 3.0), budget) is Begin.HELD  # and is counted as lost from now on
    assert other.begin(["l"], Amount(0, 0, 3.0), budget) is Begin.OVER_BUDGET
    assert isinstance(other.begin(["l"], Amount(0, 0, 2.0), budget), int)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="Give the cache another place"):
        AnswerCache(tmp_path / "file" / "a.sqlite")


def test_a_damaged_file_is_named_and_kept(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "a.sqlite")
    for k in range(200):
        answer(cache, f"{k}")
    cache.close()
    whole = (tmp_path / "a.sqlite").read_bytes()
    (tmp_path / "a.sqlite").write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(DataError, match="Move it away"):
        AnswerCache(tmp_path / "a.sqlite").get([str(k) for k in range(200)])
