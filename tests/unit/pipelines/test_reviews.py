"""The toy's reward and grammar, by hand; and the experiment on it, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.pipelines.tiny import reviews
from consilience.rng import stream


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        ("the food is tasty . overall good .", 1 + 2),
        ("the food is not very tasty and the room is dirty . overall bad .", -2 - 1 - 2),
        ("the food is very stale but the price is not steep . overall good .", -2 + 1 + 2),
        ("food is tasty and the room room . overall fine .", 0),
        ("", 0),
        (" and ".join(["the food is very tasty"] * 7) + " . overall good .", 10),
    ],
)
def test_reward(review: str, expected: int) -> None:
    assert reviews.reward(review) == expected


@pytest.mark.parametrize(
    ("prompt", "review", "expected"),
    [
        ("some food room price view", "the room is tidy but the view is dull . overall bad .", True),
        ("some food room price view", "the view is dull but the room is tidy . overall bad .", False),  # order
        ("some food room price view", "the room is tidy and the view is dull . overall bad .", False),  # and
        ("some food room price view", "the room is tasty . overall good .", False),  # no adjective of a room
        ("some food room price view", "the bed is comfy . overall good .", False),  # not asked for
        ("all food room price view", "the room is tidy . overall good .", False),  # the others are missing
        ("some food room price view", "the room is tidy . overall good", False),
    ],
)
def test_grammar(prompt: str, review: str, expected: bool) -> None:
    assert reviews.is_correct(prompt, review) is expected


def test_drawn_reviews_are_correct_and_within_range() -> None:
    rng = stream(0, "reviews")
    for chat in reviews.draw_chats(rng, 300):
        prompt, review = (message.content for message in chat.messages)
        assert reviews.is_correct(prompt, review)
        assert -10 <= reviews.reward(review) <= 10


def test_the_experiment_in_small(tmp_path: Path, consilience: Any) -> None:
    """All stages, a table, and a second call that makes nothing anew."""
    arms: dict[str, Any] = {
        "base": {"method": "sample"},
        "small tuned": {"method": "sample", "from": "tuned"},
        "CBS": {"search": {"width": 2, "successors": 2, "chunk": 4}},
        "swapped": {"guide": "swapped", "kinds": ["some"], "search": {"width": 2, "successors": 2, "chunk": 4}},
    }
    sizes = {"prompts": 3, "guide_seeds": 2, "chats": 256, "large_steps": 3, "small_steps": 3, "pairs": 64}
    recipe = {"search": {"max_new_tokens": 12}, "against": ["base"], "arms": arms, "reviews": sizes}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    answer = consilience("search", path, "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    kinds = answer.json["kinds"]
    assert set(kinds["all"]) == {"base", "small tuned", "CBS"}
    assert kinds["some"]["swapped"]["reward"]["n"] == 3
    assert set(kinds["some"]["CBS"]["against"]) == {"base"}
    assert "intervals over prompts" in (tmp_path / "run" / "table.md").read_text()
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert consilience("search", path, "--out", tmp_path / "run", "--json").json == answer.json
    assert (tmp_path / "run" / "events.jsonl").read_text() == events
    assert json.loads(events.splitlines()[0])["stage"] == "world"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": {"base": {"method": "sampel"}}}, "Did you mean 'sample'?"),
        ({"against": ["bas"]}, "Did you mean 'base'?"),
        ({"arms": {"base": {"search": {"width": 0}}}}, "arms.base.search: width"),
        ({"arms": {"a/b": {"method": "sample"}}}, "cannot name an arm's folder"),
    ],
)
def test_a_recipe_that_cannot_be_run(tmp_path: Path, consilience: Any, change: dict[str, Any], says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"arms": {"base": {"method": "sample"}}} | change))
    answer = consilience("search", path, "--out", tmp_path / "run")
    assert answer.code == 2
    assert says in answer.err
    assert not (tmp_path / "run").exists()
