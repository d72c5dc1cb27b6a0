"""`consilience prefer` with replies of a server's model: in the first round, in all of them, as WRPO's source."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fake_endpoint import Reply, choices, fake_server
from preference_recipe import write_recipe, write_rows

Consilience = Callable[..., Any]
QUESTIONS = [f"Say {word}" for word in ("lamp", "maps", "birds", "bread", "seven", "river", "cold", "table")]
HELD_OUT = ["Say water", "Say quiet"]


@pytest.fixture
def prefer(world: Path, tmp_path: Path, consilience: Consilience) -> Consilience:
    """`prefer(**changes)` runs two rounds of four questions, or goes on with them."""
    pairs, held_out = (
        [{"prompt": question, "chosen": "A lamp.", "rejected": "Bread."} for question in questions]
        for questions in (QUESTIONS, HELD_OUT)
    )
    write_rows(tmp_path / "held_out.jsonl", held_out)

    def run(**changes: Any) -> Any:
        own = {"held_out": {"path": "held_out.jsonl"}} | changes
        return consilience(
            "prefer", write_recipe(tmp_path, world / "pivot", pairs, **own), "--out", tmp_path / "run", "--json"
        )

    return run


def long_words(body: dict[str, Any], nth: int) -> Reply:
    """A model whose replies are the longest: they are chosen wherever they are candidates."""
    return Reply(choices(f"The longest reply of all to {body['messages'][-1]['content']}"))


def pairs_of(run: Path, arm: str, number: int) -> list[dict[str, Any]]:
    path = run / arm / f"round-{number}" / "pair" / "pairs.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("rounds", "asked"), [("first", 4), ("all", 8)])
def test_a_server_replies_in_the_first_round_or_in_all(
    rounds: str, asked: int, prefer: Consilience, tmp_path: Path
) -> None:
    with fake_server(long_words) as server:
        endpoint = {"url": server.url, "model": "m"}
        answer = prefer(sampler={"endpoint": endpoint, "rounds": rounds})
    assert answer.code == 0, answer.err
    assert (answer.json["result"], answer.json["seeds"]) == ("policy", [0])
    assert len(server.asked) == asked
    for number in (1, 2):
        of_server = number == 1 or rounds == "all"
        for pair in pairs_of(tmp_path / "run", "policy", number):
            assert pair["chosen"]["text"].startswith("The longest reply of all") == of_server
    asked_in_first = {pair["chosen"]["text"].rpartition(" to ")[2] for pair in pairs_of(tmp_path / "run", "policy", 1)}
    assert asked_in_first == {*server.contents[:4]}
    assert f"arms.policy.sampler: replies are those of m at {server.url}" in answer.json["notes"][0]


def test_a_server_is_wrpos_source(prefer: Consilience, tmp_path: Path) -> None:
    with fake_server(long_words) as server:
        third = {"endpoint": {"url": server.url, "model": "m"}}
        answer = prefer(rounds=1, loss={"name": "wrpo", "alpha": 0.1}, third=third, sample={"max_new_tokens": 6})
    assert answer.code == 0, answer.err
    found = pairs_of(tmp_path / "run", "policy", 1)
    assert {pair["third"]["slot"] for pair in found} == {"source 0"}
    assert all(pair["third"]["text"].startswith("The longest reply") for pair in found)
    assert not any(pair["chosen"]["text"].startswith("The longest") for pair in found)  # no candidate
    reference = (tmp_path / "run/policy/round-1/reference/logprobs.jsonl").read_text().splitlines()
    assert {len(json.loads(line)["logprobs"]) for line in reference} == {3}  # wrpo's third reply has a reference


def test_a_server_that_is_gone_ends_no_stage(prefer: Consilience, tmp_path: Path) -> None:
    answering = {"left": 2}

    def behave(body: dict[str, Any], nth: int) -> Reply:
        if answering["left"] == 0:
            return Reply(b"", status=503)
        answering["left"] -= 1
        return long_words(body, nth)

    with fake_server(behave) as server:
        endpoint = {"url": server.url, "model": "m", "retries": 0, "concurrency": 1}
        settings: dict[str, Any] = {"rounds": 1, "sampler": {"endpoint": endpoint}}
        settings["data"] = {"path": "pairs.jsonl"}
        answer = prefer(**settings)
        assert answer.code == 2
        assert answer.err.strip().endswith("The same command goes on from here.")
        assert "m at http" in answer.err
        answering["left"] = 100
        before = len(server.asked)
        answer = prefer(**settings)
        assert answer.code == 0, answer.err
        assert len(server.asked) - before == 6  # two were answered before


def test_a_spent_budget_is_said_and_more_goes_on(prefer: Consilience) -> None:
    with fake_server(long_words) as server:
        endpoint: dict[str, Any] = {"url": server.url, "model": "m", "concurrency": 1, "budget": {"tokens": 200}}
        answer = prefer(rounds=1, sampler={"endpoint": endpoint})
        assert answer.code == 2
        assert "With a larger budget the same command goes on" in answer.err
        endpoint["budget"] = {"tokens": 100_000}
        answer = prefer(rounds=1, sampler={"endpoint": endpoint})
        assert answer.code == 0, answer.err
        assert len(server.asked) == 8  # nothing was asked twice


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sampler": {"endpoint": {"url": "http://x/v1", "model": "m"}}}, "a server runs one model, and from"),
        ({"sampler": {"rounds": "all"}}, "sampler.endpoint"),
        ({"sampler": {"endpoint": {"url": "x", "model": "m"}, "rounds": "all"}}, "expected the base of an HTTP API"),
        ({"third": {"endpoint": {"url": "http://127.0.0.1:9/v1"}}, "loss": {"name": "wrpo", "alpha": 0.1}}, "model"),
        (
            {"third": {"endpoint": {"url": "http://x/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}}},
            "NO_SUCH_KEY is not set",
        ),
        ({"loss": {"name": "wrpo", "alpha": 0.1, "alpha_ramp": 2}}, "loss.alpha_ramp"),
    ],
)  # fmt: skip
def test_refused_in_one_line(changes: dict[str, Any], says: str, prefer: Consilience, tmp_path: Path) -> None:
    answer = prefer(**changes)
    assert answer.code == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run").exists()
