"""IFEval's verdicts by hand: strict, loose, and the sign that the authors' checkers replace by a random letter."""

from __future__ import annotations

from typing import Any

import pytest

from consilience.errors import DataError
from consilience.evaluate.ifeval import IFEVAL_METRICS, Checkers, variants

pytest.importorskip("if_verifiable")


def row(*instructions: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompt": "Do it.",
        "instruction_id_list": [id_ for id_, _ in instructions],
        "kwargs": [given for _, given in instructions],
    }


COMMAS = ("punctuation:no_comma", {})
WORDS = ("length_constraints:number_words", {"relation": "at least", "num_words": 4})


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("one two three four", dict.fromkeys(IFEVAL_METRICS, 1)),
        ("one, two three", dict.fromkeys(IFEVAL_METRICS, 0)),
        ("one, two three four", {"prompt_strict": 0, "prompt_loose": 0, "instruction_strict": 0.5}),
        # Without its first line there is no comma: loose only.
        ("Sure, here:\none two three four", {"prompt_strict": 0, "prompt_loose": 1, "instruction_loose": 1}),
        ("  ", dict.fromkeys(IFEVAL_METRICS, 0)),
    ],
)
def test_metrics(reply: str, expected: dict[str, float]) -> None:
    found = Checkers().metrics(row(COMMAS, WORDS), reply)
    assert {name: found[name][0] for name in expected} == expected
    assert {name: weight for name, (_, weight) in found.items()} == {
        "prompt_strict": 1, "prompt_loose": 1, "instruction_strict": 2, "instruction_loose": 2,
    }  # fmt: skip


def test_the_eight_variants() -> None:
    assert variants("*a*\nb\nc") == ["*a*\nb\nc", "b\nc", "*a*\nb", "b", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_a_sign_is_counted_as_it_stands() -> None:
    tags = row(("keywords:letter_frequency", {"letter": "#", "let_frequency": 3, "let_relation": "at least"}))
    few = row(("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}))
    checkers = Checkers()
    for _ in range(20):  # a random letter would not give the same each time
        assert checkers.followed(tags, ["#a #b #c"]) == [True]
        assert checkers.followed(tags, ["a b c a b c a b c"]) == [False]
        assert checkers.followed(few, ["one! only"]) == [True]
        assert checkers.followed(few, ["two! here!"]) == [False]


def test_sentences_are_counted_without_a_download() -> None:
    three = row(("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 4}))
    assert Checkers().followed(three, ["Dr. Smith came. He saw. He left."]) == [True]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompt": "x"}, "expected 'prompt', 'instruction_id_list' and as many 'kwargs'"),
        (row(("punctuation:no_coma", {})), "is called 'punctuation:no_coma'. Did you mean 'punctuation:no_comma'"),
    ],
)
def test_rows_that_nobody_can_check(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Checkers().refuse_unknown(given, "f.jsonl, line 1")
