"""Every prompting strategy keeps to one contract. A new one is covered by its line in STRATEGIES."""

from __future__ import annotations

from typing import Any

import pytest

from consilience.annotate.codebook import Codebook
from consilience.annotate.strategies import FIELD, STRATEGIES, Ask, Asked, Shot, Wording, answer_of, without_system
from consilience.config import parse
from consilience.errors import ConfigError

TEXT = "A {text} with {braces}, {0}, 100 % \\1 and\nignore {ask} lines."
BOOK = parse(
    {
        "variable": "stance",
        "question": "Is the writer for or against it?",
        "unit": "speech",
        "labels": [
            {"name": "for", "definition": "speaks in favour", "examples": ["Yes, {labels}!"]},
            {"name": "against", "definition": "speaks against it"},
            {"name": "none", "definition": "takes no side"},
        ],
        "unclear": "Take none.",
    },
    Codebook,
    where="",
)
SHOTS = (Shot("We say yes.", "for"), Shot("We say no.", "against"))


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> Any:
    return STRATEGIES[request.param]


def ask(**changes: Any) -> Ask:
    given: dict[str, Any] = {"codebook": BOOK, "text": TEXT, "wording": Wording(), "persona": "a clerk", "shots": SHOTS}
    return Ask(**given | changes)


def words(asked: Asked) -> str:
    return "\n".join([*(message.content for message in asked.messages), asked.then])


def test_the_text_stands_once_word_for_word_in_the_last_turn(strategy: Any) -> None:
    asked = strategy(ask())
    assert asked.messages[-1].role == "user"
    assert words(asked).count(TEXT) == 1
    assert TEXT in asked.messages[-1].content


def test_the_codebook_comes_first_in_full(strategy: Any) -> None:
    system = strategy(ask()).messages[0]
    assert system.role == "system"
    for part in (BOOK.question, BOOK.unclear, *BOOK.names, "speaks in favour", "Yes, {labels}!"):
        assert part in system.content


def test_prompts_of_two_texts_begin_alike(strategy: Any) -> None:
    """What a model may read once: all but the last turn, when the examples are the same."""
    assert strategy(ask()).messages[:-1] == strategy(ask(text="Another one.")).messages[:-1]


def test_turns_alternate_and_examples_bring_their_labels(strategy: Any) -> None:
    asked = strategy(ask())
    roles = [message.role for message in asked.messages]
    assert roles[0] == "system"
    assert roles[1:] == ["user", "assistant"] * ((len(roles) - 2) // 2) + ["user"]
    replies = [message.content for message in asked.messages if message.role == "assistant"]
    assert replies in ([], ["for", "against"])


@pytest.mark.parametrize("format", ["answer", "letter", "json"])
def test_the_order_of_labels_is_that_asked_for(strategy: Any, format: str) -> None:
    system = strategy(ask(order=(2, 0, 1), format=format)).messages[0].content
    places = [system.index(f"{name}: ") for name in ("none", "for", "against")]
    assert places == sorted(places)


@pytest.mark.parametrize("format", ["answer", "letter", "json"])
def test_no_name_in_braces_is_left_over(strategy: Any, format: str) -> None:
    said = words(strategy(ask(format=format, text="A plain one.")))
    assert FIELD.findall(said) == ["labels"]  # the one that stands in the codebook's example


def test_the_wording_can_be_changed_and_is_checked(strategy: Any) -> None:
    changed = strategy(ask(wording=Wording(text="READ: {text} NOW {ask}", reason="WHY?", steps="STEPS {ask}")))
    assert f"READ: {TEXT} NOW" in changed.messages[-1].content
    with pytest.raises(ConfigError, match=r"wording has \{txet\}"):
        Wording(text="{txet}")
    with pytest.raises(ConfigError, match=r"lacks \{text\}"):
        Wording(text="{ask}")


def test_without_a_system_role_nothing_is_lost(strategy: Any) -> None:
    asked = strategy(ask())
    merged = without_system(asked)
    assert merged.messages[0].role == "user"
    assert merged.messages[0].content == f"{asked.messages[0].content}\n\n{asked.messages[1].content}"
    assert merged.messages[1:] == asked.messages[2:]


def test_a_letter_stands_for_the_label_at_its_place() -> None:
    letters = {name: answer_of(ask(format="letter", order=(2, 0, 1)), name) for name in BOOK.names}
    assert letters == {"none": "A", "for": "B", "against": "C"}
