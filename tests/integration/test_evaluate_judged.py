"""Tasks with a judge, from the prompts that are asked to the panel on the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_endpoint import Reply, choices, fake_server
from verdict_words import VERDICT_WORDS, spoken

Command = Callable[..., Any]
WORDS = ("river", "lamp", "birds", "bread", "stars", "maps", "sea", "hill", "oak", "owl", "road", "bell")


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def finished(path: Path, lengths: list[int]) -> dict[str, str]:
    return {"answers": lines(path, [{"id": i, "reply": "word " * n} for i, n in enumerate(lengths)])}


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """Three models' finished replies of known lengths, and a judge who prefers the longer one, or the one shown first
    where the two differ by a word."""
    rows = [{"id": i, "prompt": f"Say {word}", "group": "ab"[i % 2]} for i, word in enumerate(WORDS)]
    lines(tmp_path / "q.jsonl", rows)
    (tmp_path / "judge.py").write_text(
        "def compare(prompt, first, second):\n"
        "    more = len(first.split()) - len(second.split())\n"
        "    return 1.0 if abs(more) == 1 else 0.5 + 0.5 * ((more > 0) - (more < 0))\n"
        "def rate(prompt, reply):\n"
        "    words = len(reply.split())\n"
        "    return words if words != 7 else None\n"
    )
    return {
        "models": {
            "base": finished(tmp_path / "base.jsonl", [4] * 12),
            "long": finished(tmp_path / "long.jsonl", [9, 8, 6, 6, 5, 5, 4, 4, 3, 2, 2, 7]),
            "short": finished(tmp_path / "short.jsonl", [3, 2, 2, 1, 5, 5, 2, 2, 4, 6, 1]),
        },
        "judges": {
            "longer": {"kind": "function", "function": "judge.py:compare", "compares": True},
            "words": {"kind": "function", "function": "judge.py:rate"},
        },
        "tasks": {
            "versus": {"kind": "pairwise", "path": "q.jsonl", "judge": "longer", "baseline": "base"},
            "rated": {"kind": "rated", "path": "q.jsonl", "judge": "words"},
        },
        "reference": "base",
    }


def write(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_pairs_against_a_model_of_the_recipe(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    versus = answer.json["tasks"]["versus"]
    found = versus["comparisons"]["win rate against base"]["models"]
    assert set(found) == {"long", "short"}
    # long: 9 8 6 6 7 win, 5 5 3 differ by a word (both orders: a tie), 4 4 tie, 2 2 lose.
    assert found["long"]["estimate"]["value"] == pytest.approx(100 * (5 + 0.5 * 5) / 12)
    # short: of eleven replies 3 5 5 4 are ties, 6 wins.
    assert found["short"]["estimate"]["value"] == pytest.approx(100 * (1 + 0.5 * 4) / 11)
    assert found["short"]["statuses"] == {"scored": 11, "no reply to judge": 1}
    assert (found["short"]["bounds"]["least"], found["short"]["bounds"]["most"]) == pytest.approx((25, 100 / 3))
    bias = versus["judge"]["bias"]["long"]
    # Nine of the ten pairs that were shown at all changed nothing but for three, where the first one shown won.
    assert bias["order"]["value"] == pytest.approx(100 * 3 / 10)
    assert bias["consistent"]["value"] == pytest.approx(100 * 7 / 10)
    assert bias["to_first"]["value"] == pytest.approx(100)
    assert bias["decided_by_order"] == 3
    # Longer than the baseline's: 9 8 6 6 7 won, 5 5 tied; the other five: 4 4 3 tied, 2 2 lost.
    assert bias["longer"]["value"] == pytest.approx(100 * (6 / 7 - 1.5 / 5))
    assert set(versus["length_control"]["fits"]) | set(versus["length_control"]["refused"]) == {"long", "short"}


def test_ratings_unread_verdicts_and_the_page(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    rated = answer.json["tasks"]["rated"]["comparisons"]["rating"]
    assert rated["models"]["base"]["estimate"]["value"] == 4
    assert rated["models"]["long"]["statuses"] == {"scored": 11, "unparsed verdict": 1}
    assert rated["models"]["long"]["bounds"]["least"] == pytest.approx((54 + 1) / 12)
    assert [(pair["first"], pair["second"]) for pair in rated["pairs"] if pair["shown"]] == [
        ("long", "base"), ("short", "base"),
    ]  # fmt: skip
    assert any("another judge" in line for line in rated["not_included"])
    page = (tmp_path / "run/report.html").read_text()
    assert 'id="task-0-judge"' in page
    assert not VERDICT_WORDS.search(spoken(page))
    assert "<b>" not in page
    assert page.count("<svg") <= page.count("<table")
    shown = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert "win rate against base" in shown.out
    read = consilience("compare", tmp_path / "run", "--metric", "rated: rating", "--json").json
    assert read["models"]["long"]["statuses"] == rated["models"]["long"]["statuses"]


def test_a_stopped_judge_is_gone_on_with(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = write(tmp_path, tree)
    assert consilience("evaluate", recipe, "--out", tmp_path / "run").code == 0
    whole = (tmp_path / "run/scores.jsonl").read_bytes()
    stage = tmp_path / "run/judgments/versus/short"
    (stage / "stage.json").unlink()
    stage.rename(stage.with_name("short.partial"))
    (tmp_path / "run/scores.jsonl").unlink()
    assert consilience("evaluate", recipe, "--out", tmp_path / "run").code == 0
    assert (tmp_path / "run/scores.jsonl").read_bytes() == whole


PROMPTS = [
    {
        "name": name,
        "system_prompt": "Be fair.",
        "prompt_template": text,
        "output_format": "[[rating]]",
    }
    for name, text in {
        "single-v1": "Q {question} A {answer}",
        "single-math-v1": "Q {question} R {ref_answer_1} A {answer}",
        "single-v1-multi-turn": "Q {question_1} A {answer_1} Q {question_2} A {answer_2}",
        "single-math-v1-multi-turn": "Q {question_1} R {ref_answer_1} {ref_answer_2} A {answer_2}",
    }.items()
]


def test_two_turns_behind_a_server(consilience: Command, tmp_path: Path) -> None:
    """What the model is asked in the second turn, at which temperature, and what the judge is shown."""
    rows = [
        {"question_id": 1, "category": "writing", "turns": ["Write {x}.", "Shorter."]},
        {"question_id": 2, "category": "math", "turns": ["1+1?", "And 2+2?"]},
        {"question_id": 3, "category": "math", "turns": ["3+1?", "And 5+2?"]},
    ]
    references = [{"question_id": i, "choices": [{"turns": ["two", "four"]}]} for i in (2, 3)]

    def behave(body: dict[str, Any], nth: int) -> Reply:
        said = body["messages"][-1]["content"]
        if body["messages"][0]["role"] == "system":  # the judge
            return Reply(choices("Rating: [[7]]" if " R " in said else "no mark" if "Shorter" in said else "[[3]]"))
        if said == "3+1?":
            return Reply({"error": {"message": "no"}}, status=400)
        return Reply(choices(f"reply to {said}"))

    lines(tmp_path / "p.jsonl", PROMPTS)
    with fake_server(behave) as server:
        endpoint = {"url": server.url, "model": "m", "retries": 0}
        tree = {
            "models": {"served": {"endpoint": endpoint}},
            "judges": {"j": {"kind": "mt_bench", "endpoint": endpoint, "prompts": "p.jsonl"}},
            "tasks": {
                "mt": {
                    "kind": "mt_bench",
                    "path": lines(tmp_path / "q.jsonl", rows),
                    "references": lines(tmp_path / "r.jsonl", references),
                    "judge": "j",
                }
            },
        }
        answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
        assert answer.code == 0, answer.err
        bodies = [asked.body for asked in server.asked]
    drawn = [body for body in bodies if body["messages"][0]["role"] != "system"]
    assert {body["messages"][0]["content"]: body["temperature"] for body in drawn} == {
        "Write {x}.": 0.7, "1+1?": 0.0, "3+1?": 0.0,
    }  # fmt: skip
    second = [[turn["content"] for turn in body["messages"]] for body in drawn if len(body["messages"]) == 3]
    assert sorted(second) == [["1+1?", "reply to 1+1?", "And 2+2?"], ["Write {x}.", "reply to Write {x}.", "Shorter."]]
    judged = [body["messages"][-1]["content"] for body in bodies if body["messages"][0]["role"] == "system"]
    assert sorted(judged) == [
        "Q 1+1? R two A reply to 1+1?",
        "Q 1+1? R two four A reply to And 2+2?",
        "Q Write {x}. A reply to Write {x}.",
        "Q Write {x}. A reply to Write {x}. Q Shorter. A reply to Shorter.",
    ]
    found = answer.json["tasks"]["mt"]["comparisons"]["rating"]["models"]["served"]
    assert found["estimate"]["value"] == pytest.approx((3 + 7 + 7) / 3)
    # The question whose first turn got no reply is there with both turns.
    assert found["statuses"] == {"scored": 3, "unparsed verdict": 1, "no reply to judge": 2}


def test_two_turns_against_a_model_of_the_recipe(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    rows = [{"question_id": i, "category": "writing", "turns": ["Say it.", "Again."]} for i in range(4)]
    lengths = {"base": [(4, 4)] * 4, "long": [(9, 2), (4, 4), (8, 5), (1, 1)]}
    for name, of in lengths.items():
        turns = [{"question_id": i, "choices": [{"turns": ["word " * n for n in pair]}]} for i, pair in enumerate(of)]
        lines(tmp_path / f"{name}.jsonl", turns)
    tree["models"] = {name: {"answers": f"{name}.jsonl"} for name in lengths}
    path = lines(tmp_path / "mt.jsonl", rows)
    tree["tasks"] = {"mt": {"kind": "mt_bench", "path": path, "judge": "longer", "baseline": "base"}}
    (tmp_path / "judge.py").write_text(
        "def compare(prompt, first, second):\n"
        "    first, second = (reply if isinstance(reply, str) else reply[-1].content for reply in (first, second))\n"
        "    return 0.5 + 0.5 * ((len(first) > len(second)) - (len(first) < len(second)))\n"
        "rate = compare\n"
    )
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    found = answer.json["tasks"]["mt"]["comparisons"]["win rate against base"]["models"]
    assert set(found) == {"long"}
    # Turns: won 9, 8, 5; tied 4, 4; lost 2, 1, 1. Of the eight, four questions are the units.
    assert found["long"]["estimate"]["value"] == pytest.approx(100 * (3 + 2 * 0.5) / 8)
    assert (found["long"]["estimate"]["n"], found["long"]["estimate"]["units"]) == (4, "questions")
    assert answer.json["tasks"]["mt"]["judge"]["pairs"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks.versus.judge": "longr"}, "no judge is called 'longr'. Did you mean 'longer'?"),
        ({"tasks.versus.baseline": "bas"}, "no model is called 'bas'. Did you mean 'base'?"),
        ({"tasks.versus.baseline": None}, "no 'output' to compare with; there are id, prompt, group"),
        ({"tasks.rated.judge": "longer"}, "compares replies and does not rate them"),
        ({"judges.words.function": "none.py:f"}, "judges.words.function: no file"),
        ({"tasks.versus.length_control": {"gamed": "none.csv"}}, "tasks.versus.gamed: no file"),
        ({"tasks.mt": {"kind": "mt_bench", "path": "q.jsonl", "judge": "words"}}, "expected 'question_id'"),
    ],
    ids=str,
)
def test_bad_recipes_are_one_line(
    consilience: Command, tree: dict[str, Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    for key, value in change.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert answer.code == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1


@pytest.mark.slow
def test_the_recipe_that_is_shipped(consilience: Command, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tiny-evaluate.yaml"
    answer = consilience("evaluate", recipe, "--out", tmp_path / "run", "--set", "tiny.steps_scale=0.05", "--json")
    assert answer.code == 0, answer.err
    assert {name: task["kind"] for name, task in answer.json["tasks"].items()} == {
        "sums": "checked", "stars_drawn": "checked", "stars_choice": "choice", "two_turns": "mt_bench",
        "against_pivot": "pairwise",
    }  # fmt: skip
    said = [line for line in answer.json["not_included"] if "every item was answered once" in line]
    assert "stars_drawn" not in said[0]
    assert "sums" in said[0]
