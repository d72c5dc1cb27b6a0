"""A user's function as a judge: what is a number, what is no verdict, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.errors import ConfigError, DataError
from consilience.judge import judge_of_function
from consilience.judge.functions import load_function, rate_by_function
from consilience.records import VerdictState


def judged(said: Any) -> Any:
    (judgment,) = judge_of_function("mine", score=lambda prompt, reply: said).rates()(["p"], ["r"])
    return judgment


@pytest.mark.parametrize(("said", "value"), [(2, 2.0), (True, 1.0), (np.float32(0.5), 0.5), (np.int64(3), 3.0)])
def test_numbers(said: Any, value: float) -> None:
    assert (judged(said).state, judged(said).value) == (VerdictState.OK, value)


@pytest.mark.parametrize("said", [None, float("nan"), float("inf"), -float("inf"), np.float64("nan")])
def test_no_verdict(said: Any) -> None:
    assert (judged(said).state, judged(said).value) == (VerdictState.UNPARSED, None)
    assert judged(said).reason == f"the function gave {said}"
    (compared,) = judge_of_function("mine", compare=lambda prompt, a, b: said).compares()(["p"], ["r"], ["s"])
    assert (compared.state, compared.value) == (VerdictState.UNPARSED, None)


@pytest.mark.parametrize("said", ["good", [0.5], {"score": 1}, np.array([1.0, 2.0])])
def test_what_is_no_number_is_named(said: Any) -> None:
    with pytest.raises(DataError, match=r"the function mine gives .* for a reply to 'p'; expected a number, or None"):
        judged(said)
    with pytest.raises(DataError, match=r"\(str\)"):
        judge_of_function("mine", compare=lambda prompt, a, b: "A").compares()(["p"], ["r"], ["s"])


def test_a_third_parameter_is_the_row_where_there_are_rows() -> None:
    found = rate_by_function("mine", lambda prompt, reply, row: row["n"], ["p", "q"], ["r", "r"], [{"n": 1}, {"n": 2}])
    assert [judgment.value for judgment in found] == [1.0, 2.0]
    found = rate_by_function("mine", lambda prompt, reply: 5, ["p"], ["r"], [{"n": 1}])
    assert [judgment.value for judgment in found] == [5.0]
    with pytest.raises(ConfigError, match="takes a row of the data, which only `consilience prefer` has"):
        judge_of_function("mine", score=lambda prompt, reply, row: 1)
    (optional,) = judge_of_function("mine", score=lambda prompt, reply, row=None: 1).rates()(["p"], ["r"])
    assert optional.value == 1


def test_where_a_function_stops_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(prompt, reply):\n    return {}[reply]\n\ndef compare(p, a, b):\n    1 / 0\n"
    )
    score, compare = (load_function(f"mine.py:{name}", tmp_path) for name in ("score", "compare"))
    with pytest.raises(DataError, match=r"mine stopped at a reply to 'p': KeyError: 'r' \(mine.py, line 2\)"):
        judge_of_function("mine", score=score).rates()(["p"], ["r"])
    with pytest.raises(DataError, match=r"stopped at a reply to 'p': ZeroDivisionError.*line 5\)"):
        judge_of_function("mine", compare=compare).compares()(["p"], ["r"], ["s"])
    for text, says in (("def f(:", "line 1"), ("import nowhere", "No module named 'nowhere'")):
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(ConfigError, match=f"mine.py cannot be loaded: .*{says}"):
            load_function("mine.py:f", tmp_path)
