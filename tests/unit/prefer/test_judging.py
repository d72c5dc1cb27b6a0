"""Scores from judges that rate, judges that compare, and functions; what is not judged has a state."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilience.errors import ConfigError, DataError
from consilience.judge import JudgeSettings
from consilience.prefer.data import Preference, read_preferences
from consilience.prefer.judging import Scored, Scorer, refuse_useless
from consilience.records import write_jsonl

FUNCTIONS = """
def length(prompt, reply): return float("nan") if reply == "nan" else len(reply)
def answers(prompt, reply, row): return row["answer"] in reply
def longer(prompt, first, second):
    if "fail" in (first, second): return None
    return 0.5 if len(first) == len(second) else float(len(first) > len(second))
def words(prompt, reply): return "good"
"""


def quiet(done: int, total: int) -> None: ...


@pytest.fixture
def prompts(tmp_path: Path) -> list[Preference]:
    (tmp_path / "reward.py").write_text(FUNCTIONS)
    write_jsonl(tmp_path / "data.jsonl", [{"prompt": "2+2?", "answer": "4"}, {"prompt": "2+3?", "answer": "5"}])
    return read_preferences(tmp_path / "data.jsonl", pairs=False)


def scorer(folder: Path, name: str, *, compares: bool = False) -> Scorer:
    settings = JudgeSettings(kind="function", function=f"reward.py:{name}", compares=compares)
    return Scorer(settings, folder, folder / "judge.sqlite")


def values(scored_of: list[list[Scored]]) -> list[list[float | None]]:
    return [[scored.value for scored in scored] for scored in scored_of]


def test_a_function_rates_and_nan_is_no_verdict(tmp_path: Path, prompts: list[Preference]) -> None:
    found = scorer(tmp_path, "length").rank(prompts, [["a", "abc"], ["nan"]], quiet)
    assert values(found) == [[1.0, 3.0], [None]]
    assert found[1][0].state == "unparsed"


def test_a_function_of_three_is_given_the_row(tmp_path: Path, prompts: list[Preference]) -> None:
    assert values(scorer(tmp_path, "answers").rank(prompts, [["4", "5"], ["5"]], quiet)) == [[1.0, 0.0], [1.0]]


def test_comparisons_become_shares(tmp_path: Path, prompts: list[Preference]) -> None:
    # abc beats both; a and b tie and lose to it: (1 + 1) / 2, (0 + 1/2) / 2 each
    judge = scorer(tmp_path, "longer", compares=True)
    assert not judge.rates
    assert values(judge.rank(prompts, [["a", "abc", "b"], ["x", "fail"]], quiet)) == [[0.25, 1.0, 0.25], [None, None]]


def test_policies_are_measured_against_the_start_where_the_judge_only_compares(
    tmp_path: Path, prompts: list[Preference]
) -> None:
    judge = scorer(tmp_path, "longer", compares=True)
    assert [one.value for one in judge.measure(prompts, ["abc", "a"], ["a", "b"], quiet)] == [1.0, 0.5]
    assert [one.value for one in scorer(tmp_path, "length").measure(prompts, ["abc", "a"], ["", ""], quiet)] == [3, 1]


def test_a_judge_that_reads_a_beginning_only_says_so(
    tmp_path: Path, prompts: list[Preference], monkeypatch: pytest.MonkeyPatch
) -> None:
    from consilience.judge import reward
    from tiny_judges import save_ranker

    save_ranker(tmp_path / "ranker")
    monkeypatch.setattr(reward, "SOURCE_TOKENS", 20)
    monkeypatch.setattr(reward, "REPLY_TOKENS", 10)
    with Scorer(JudgeSettings(kind="ranker", model=str(tmp_path / "ranker")), tmp_path, tmp_path / "s") as judge:
        (first, second) = judge.rank(prompts, [["a", "b", "c" * 90], ["a", "b"]], quiet)
    assert [one.cut for one in first] == [True] * 3  # a share of comparisons, some of them with the long one
    assert [one.cut for one in second] == [False] * 2


def test_what_cannot_be_used_is_refused(tmp_path: Path, prompts: list[Preference]) -> None:
    with pytest.raises(DataError, match=r"words gives 'good' \(str\) for a reply to '2\+2\?'; expected a number"):
        scorer(tmp_path, "words").rank(prompts, [["a"], []], quiet)
    with pytest.raises(ConfigError, match="has no function 'lenght'"):
        scorer(tmp_path, "lenght")
    refuse_useless([Scored(1.0, "ok"), Scored(1.0, "ok"), Scored(2.0, "ok")], "round")
    with pytest.raises(DataError, match="gives 1 to all 3 replies"):
        refuse_useless([Scored(1.0, "ok")] * 3, "round")
    with pytest.raises(DataError, match=r"no score for any of 2 replies \(NaN, or api_error, unparsed\)"):
        refuse_useless([Scored(None, "api_error"), Scored(None, "unparsed")], "round")
