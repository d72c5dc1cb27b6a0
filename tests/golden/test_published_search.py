"""`mode published` returns the published code's own replies, token for token, on the same seeds.

published_search.json was written by the published code itself on transformers 4.41, by
benchmarks/make_published_search.py: two architectures, guides with the large model's tokenizer and with another,
replies that end early and at the cap.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consilience.models import ChatModel
from consilience.records import Message
from consilience.search import METHODS, Finish, Models, Prompt, Result, SearchSettings, TreeModel, search

FIXTURE = json.loads((Path(__file__).parent / "published_search.json").read_text())
KEYS = ("width", "successors", "chunk", "max_new_tokens", "top_k")


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: f"{case['kind']}-{case['seed']}")
def test_published_replies(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    from published_search import END, models_of, prompt_of

    loaded, tokenizer, guide_tokenizer = models_of(case)
    tokenizers = [tokenizer, guide_tokenizer, guide_tokenizer]
    trees = [TreeModel(ChatModel(str(n), model, each)) for n, (model, each) in enumerate(zip(loaded, tokenizers))]
    settings = SearchSettings(mode="published", temperature=0.7, **{key: case[key] for key in KEYS})
    searches, settings = METHODS["cbs"](Models(*trees, raw=True), settings)
    (result,) = search(searches, [Prompt("p", (Message("user", prompt_of(case)),), case["seed"])], settings)
    assert isinstance(result, Result)
    best = result.replies[0]
    ended = [END] if best.finish is Finish.STOP else []
    found = [*best.ids, *ended]
    assert found == case["reply"][: len(found)]
    assert all(token == END for token in case["reply"][len(found) :])


def test_the_fixture_shows_what_it_should() -> None:
    ended = [case["reply"][-1] == 1 for case in FIXTURE["cases"]]
    assert 5 < sum(ended) < len(ended) - 5
    assert any(case["other_tokenizer"] for case in FIXTURE["cases"])
