"""Pairing rules by hand; preference data in the forms that people have it in, and what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.prefer.data import read_preferences, slices
from consilience.prefer.judging import noisy
from consilience.prefer.pairs import OFFLINE, Candidate, Pair, PairStatus, pair_up
from consilience.records import write_jsonl

W, L, Y = (Candidate("chosen", "w", 1.0), Candidate("rejected", "l", 0.0), Candidate("sample 0", "y", 0.5))


@pytest.mark.parametrize(
    ("rule", "candidates", "expected"),
    [
        ("best_worst", [W, L, Y], Pair(PairStatus.OK, "chosen", "rejected")),
        ("best_worst", [W, L, Candidate("sample 0", "y", 2.0)], Pair(PairStatus.OK, "sample 0", "rejected")),
        ("best_worst", [W, L, Candidate("sample 0", "y", -1.0)], Pair(PairStatus.OK, "chosen", "sample 0")),
        ("best_worst", [Y, Candidate("sample 1", "y", 0.7)], Pair(PairStatus.IDENTICAL)),
        ("best_worst", [Y, Candidate("sample 1", "z", 0.5)], Pair(PairStatus.TIED)),
        ("best_worst", [Y, Candidate("sample 1", " \n", 0.9)], Pair(PairStatus.TOO_FEW)),
        ("best_worst", [Y, Candidate("sample 1", "z", None)], Pair(PairStatus.TOO_FEW)),
        # cut off: it may lose, and may not win
        ("best_worst", [W, L, Candidate("sample 0", "y", 2.0, False)], Pair(PairStatus.OK, "chosen", "rejected")),
        ("best_worst", [W, L, Candidate("sample 0", "y", -1.0, False)], Pair(PairStatus.OK, "chosen", "sample 0")),
        ("best_worst", [Candidate(f"sample {i}", f"{i}", i, False) for i in range(2)], Pair(PairStatus.TOO_FEW)),
        ("swap", [W, L, Candidate("sample 0", "y", 9.0)], Pair(PairStatus.OK, "chosen", "rejected")),
        ("swap", [Candidate("chosen", "w", 0), Candidate("rejected", "l", 1)], Pair(PairStatus.OK, *OFFLINE[::-1])),
        ("offline", [Candidate("chosen", "w"), Candidate("rejected", "l")], Pair(PairStatus.OK, "chosen", "rejected")),
        ("offline", [Candidate("chosen", "w"), Candidate("rejected", "w")], Pair(PairStatus.IDENTICAL)),
        ("offline", [Candidate("chosen", "w"), Candidate("rejected", "")], Pair(PairStatus.TOO_FEW)),
    ],
)  # fmt: skip
def test_pairs(rule: str, candidates: list[Candidate], expected: Pair) -> None:
    assert pair_up(rule, candidates) == expected


def test_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'best_worst'"):
        pair_up("bestworst", [W, L])


ASKED = [{"role": "user", "content": "Hi"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Hello"}]
TURNS = [*ANSWERED, {"role": "user", "content": "And?"}]


@pytest.mark.parametrize(
    ("row", "prompt", "replies"),
    [
        ({"prompt": "Hi", "chosen": "a", "rejected": "b"}, ["Hi"], ("a", "b")),
        ({"prompt": TURNS, "chosen": "a", "rejected": "b"}, ["Hi", "Hello", "And?"], ("a", "b")),
        # UltraFeedback: both sides hold the whole conversation, and prompt repeats the first question
        (
            {"prompt": "Hi", "chosen": ANSWERED, "rejected": [*ASKED, {"role": "assistant", "content": "Go"}]},
            ["Hi"],
            ("Hello", "Go"),
        ),
        ({"prompt": TURNS, "chosen": ANSWERED[1:], "rejected": "b"}, ["Hi", "Hello", "And?"], ("Hello", "b")),
        ({"messages": ANSWERED}, ["Hi"], (None, None)),
        ({"messages": TURNS}, ["Hi", "Hello", "And?"], (None, None)),
        # hh-rlhf: the dialogue in one text
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: So:\n\na",
                "rejected": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant: b",
            },
            ["Hi", "Hello", "And?"],
            ("So:\n\na", "b"),
        ),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": " a", "rejected": " b"}, ["Hi"], (" a", " b")),
        # a reply as one turn beside the chat (ShareGPT's names)
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            ["Hi"],
            ("a", "b"),
        ),
    ],
)  # fmt: skip
def test_forms_of_data(tmp_path: Path, row: dict[str, Any], prompt: list[str], replies: tuple[Any, Any]) -> None:
    write_jsonl(tmp_path / "data.jsonl", [row])
    (found,) = read_preferences(tmp_path / "data.jsonl", pairs=False)
    assert [turn.content for turn in found.prompt] == prompt
    assert (found.chosen, found.rejected) == replies


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "chosen": "a"}, "line 2: no rejected; its keys are chosen, prompt"),
        ({"prompt": "Hi"}, "line 2: no chosen and no rejected"),
        ({"chosen": "a", "rejected": "b"}, "line 2: no prompt"),
        (
            {"prompt": "Hi", "chosen": ASKED, "rejected": "b"},
            "line 2: chosen ends with a user turn; expected it to end with an assistant turn",
        ),
        ({"prompt": ANSWERED, "chosen": "a", "rejected": "b"}, "line 2: the prompt ends with the assistant"),
        (["x"], "line 2: got list"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "line 2: prompt is 3; expected a text or a list of turns"),
        ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, "line 2: chosen is 3; expected a text or a list of turns"),
        ({"prompt": "Hi", "chosen": [], "rejected": "b"}, "line 2: chosen has no turns"),
        ({"prompt": "Hi", "chosen": ["a"], "rejected": "b"}, "line 2, chosen: a turn is str, expected an object"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "id": 0}, "line 2: the id '0' is that of .*line 1, too"),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Oh\n\nAssistant: b"},
            "line 2: chosen and rejected answer different prompts",
        ),
        (
            {"chosen": ANSWERED, "rejected": [{"role": "user", "content": "Bye"}, ANSWERED[1]]},
            "line 2: chosen and rejected answer different prompts",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    good = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    (tmp_path / "data.jsonl").write_text(f"{json.dumps(good)}\n{json.dumps(row)}\n")
    with pytest.raises(DataError, match=message):
        read_preferences(tmp_path / "data.jsonl", pairs=True)


def test_a_prompt_id_names_a_prompt_and_not_a_row(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "prompt_id": "p", "chosen": "a", "rejected": "b"}
    write_jsonl(tmp_path / "data.jsonl", [row, row | {"prompt_id": "q"}, row])
    assert [one.id for one in read_preferences(tmp_path / "data.jsonl", pairs=True)] == ["p", "q", "p, row 2"]


def test_slices_are_without_replacement_and_contiguous(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data.jsonl", ({"id": i, "prompt": f"{i}"} for i in range(11)))
    found = read_preferences(tmp_path / "data.jsonl", pairs=False)
    parts = [[int(one.id) for one in part] for part in slices(found, 2, None, seed=3)]
    assert [sorted(part) for part in parts] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert parts != [sorted(part) for part in parts]
    with pytest.raises(DataError, match="3 rounds of 4 prompts need 12, and the data has 11"):
        slices(found, 3, 4, seed=0)


def test_the_noisy_annotator_is_bradley_and_terrys() -> None:
    # P(first over second) = sigmoid(2 * 0.5) = 0.731; standard error 0.007
    wins = [a > b for a, b in (noisy([0.5, 0.0], 2.0, seed=0, names=[f"{i}a", f"{i}b"]) for i in range(4000))]  # type: ignore[operator]
    assert sum(wins) / 4000 == pytest.approx(0.7311, abs=0.025)
    assert noisy([0.5], 2.0, seed=0, names=["same"]) == noisy([0.5], 2.0, seed=0, names=["same"])
