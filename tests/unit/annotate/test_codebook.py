"""The codebook: bad ones are refused with the way out, values become canonical, one source renders for both readers."""

from __future__ import annotations

from typing import Any

import pytest

from consilience.annotate.codebook import Codebook
from consilience.config import parse
from consilience.errors import ConfigError, DataError

SENTIMENT: dict[str, Any] = {
    "variable": "sentiment",
    "question": "How does the writer feel about what the tweet is about?",
    "unit": "tweet",
    "labels": [
        {"name": "positive", "definition": "approves of it", "examples": ["Love it!"], "code": 1},
        {
            "name": "negative",
            "definition": "disapproves of it",
            "counter_examples": [{"text": "I can't complain", "label": "positive", "why": "an idiom"}],
            "code": 2,
        },
    ],
    "unclear": "Take what most of the tweet says.",
}


def codebook(**changes: Any) -> Codebook:
    return parse(SENTIMENT | changes, Codebook, where="codebook.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": ["left", "left"]}, "'left' twice"),
        ({"labels": ["left wing", "Left-Wing"]}, "differ in case or punctuation only"),
        ({"labels": [{"name": "a", "examples": ["x"]}, {"name": "b", "examples": [" x"]}]}, "the labels overlap"),
        (
            {"labels": [{"name": "a", "definition": "Of  war"}, {"name": "b", "definition": "of war"}]},
            "one and the same definition",
        ),
        ({"labels": [{"name": "a", "examples": ["x"], "counter_examples": ["x "]}, "b"]}, "an example and a counter"),
        ({"labels": [True, False]}, "write it in quotes"),
        ({"labels": ["only"]}, "at least 2 labels"),
        ({"labels": ["a", "b|c"]}, "'b|c'"),
        ({"labels": [{"name": "a", "code": 1}, {"name": "b", "code": 1}]}, "give each its own"),
        ({"labels": [{"name": "1", "code": 2}, {"name": "2", "code": 1}]}, "the name of another label"),
        ({"labels": [{"name": "a", "counter_examples": [{"text": "x", "label": "c"}]}, "b"]}, "'c', no label"),
        ({"level": "interval"}, "has no labels"),
        ({"level": "nominl"}, "level"),
        ({"variable": "the sentiment"}, "becomes a column"),
        ({"lables": []}, "Did you mean 'labels'?"),
        ({"level": "interval", "labels": [], "range": [5, 1]}, "[lowest, highest]"),
    ],
)
def test_a_bad_codebook_says_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        codebook(**changes)
    assert words in str(refusal.value)
    assert str(refusal.value).startswith("codebook.yaml: ")


def test_values_become_canonical() -> None:
    assert [codebook().canonical(value) for value in ("positive", " Negative", "1", "2.0")] == [
        "positive", "negative", "positive", "negative",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"'postive' is no label .* Did you mean 'positive'"):
        codebook().canonical("postive")
    topics = codebook(level="multi-label", labels=["war", "peace", "trade"])
    assert topics.canonical("trade| war") == "war|trade"
    assert topics.canonical("") == ""
    warmth = codebook(level="interval", labels=[], range=[0, 100])
    assert warmth.canonical("50.0") == "50"
    with pytest.raises(DataError, match="outside the range"):
        warmth.canonical("101")


def test_coders_and_models_read_the_same_words() -> None:
    book = codebook()
    for words in ("approves of it", "Love it!", "I can't complain", "that is positive: an idiom"):
        assert words in book.definitions()
        assert words in book.as_markdown()
    assert "Take what most" in book.as_markdown()
    assert book.definitions(order=[1, 0]).index("negative") < book.definitions(order=[1, 0]).index("- positive")
    assert book.definitions(order=[1, 0], marks="AB").startswith("A) negative")


def test_the_digest_changes_with_any_word() -> None:
    assert codebook().digest == codebook().digest
    assert codebook().digest != codebook(unclear="Leave it.").digest
