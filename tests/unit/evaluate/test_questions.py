"""Questions of any file, the choices of one, and what is refused with file and line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.evaluate.choice import ChoiceSettings, choice_task
from consilience.evaluate.questions import QuestionSettings, read_items

Write = Callable[[list[Any]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(rows: list[Any]) -> Path:
        path = tmp_path / "q.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return written


def settings(**given: Any) -> QuestionSettings:
    return QuestionSettings(kind="any", path="q.jsonl", **given)


def test_the_fields_that_data_sets_use(write: Write) -> None:
    turns = [("user", "e?"), ("assistant", "f"), ("user", "g?")]
    rows = [
        {"question": "a?", "id": 7, "subject": "law"},
        {"instruction": "b?", "dataset": "koala"},
        {"prompt": "c?", "key": "k"},
        {"problem": "d?", "question_id": 5, "category": "math"},
        {"conversations": [], "messages": [{"role": role, "content": said} for role, said in turns]},
    ]
    items = read_items(write(rows), settings(system="Be brief."))
    assert [(item.id, item.group, item.messages[-1].content) for item in items] == [
        ("7", "law", "a?"), ("1", "koala", "b?"), ("k", "", "c?"), ("5", "math", "d?"), ("4", "", "g?"),
    ]  # fmt: skip
    assert all(item.messages[0].content == "Be brief." for item in items)
    assert len(items[-1].messages) == 4


def test_a_template_ids_groups_and_clusters_of_ones_own(write: Write) -> None:
    rows = [{"text": "{braces}", "about": "x", "n": i, "of": "passage"} for i in range(2)]
    own = settings(prompt="Sum up {{as JSON}}: {text}", id_key="n", group_key="about", cluster="of")
    [first, second] = read_items(write(rows), own)
    assert first.messages[0].content == "Sum up {as JSON}: {braces}"
    assert (second.id, second.group, second.cluster) == ("1", "x", "passage")


@pytest.mark.parametrize(
    ("rows", "given", "says"),
    [
        ([{"text": "a"}], {}, r"line 1: no question; expected one of messages, prompt, .*there are text"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": 1}], {}, "line 2: a second question has the id '1'"),
        ([{"prompt": "a"}], {"id_key": "nr"}, "line 1: no field 'nr' to name the item by"),
        ([{"prompt": "a"}], {"cluster": "passage"}, "line 1: no field 'passage' to cluster by"),
        (["a"], {}, "line 1: got str, expected an object"),
        ([], {}, "holds no questions"),
    ],
)
def test_files_that_cannot_be_asked(rows: list[Any], given: dict[str, Any], says: str, write: Write) -> None:
    with pytest.raises(DataError, match=says):
        read_items(write(rows), settings(**given))


@pytest.mark.parametrize("template", ["{text", "text}", "{}", "{0}", "{a.b}", "{a[0]}"])
def test_templates_that_are_none(template: str) -> None:
    with pytest.raises(ConfigError, match=r"without its other half|expected the name of a field"):
        settings(prompt=template)


@pytest.mark.parametrize(("answer", "place"), [(2, 2), ("C", 2), ("c", 2), ("blue", 2), ("2", 2), ("A", 0)])
def test_the_right_choice_by_place_letter_or_text(answer: Any, place: int, write: Write, tmp_path: Path) -> None:
    row = {"question": "Sky?", "choices": ["red", "green", "blue"], "answer": answer}
    task = choice_task("t", ChoiceSettings(path="q.jsonl"), lambda name: write([row]))
    assert task.right == {"0": place}


def test_lettered_lines_in_the_prompt(write: Write) -> None:
    row = {"question": "Sky {choices}?", "choices": ["red", "blue"], "answer": "B"}
    own = ChoiceSettings(path="q.jsonl", prompt="{question}\n{choices}\nAnswer:", continue_with="letter")
    task = choice_task("t", own, lambda name: write([row]))
    assert task.items[0].messages[0].content == "Sky {choices}?\nA. red\nB. blue\nAnswer:"
    assert task.choices == {"0": ("A", "B")}
    assert [*task.metrics] == ["acc"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"question": "x", "choices": ["a", "b"], "answer": "d"}, "the answer 'd' is none of the choices 'a', 'b'"),
        ({"question": "x", "choices": ["a", "b"], "answer": 2}, "the answer '2' is none of the choices"),
        ({"question": "x", "choices": ["a", "b"], "answer": True}, "the answer 'True' is none"),
        ({"question": "x", "choices": "ab", "answer": 0}, "'choices' is no list of 2 to 26 choices"),
        ({"question": "x", "choices": ["a"], "answer": 0}, "'choices' is no list of 2 to 26 choices"),
    ],
)
def test_choices_that_cannot_be_scored(row: dict[str, Any], says: str, write: Write) -> None:
    with pytest.raises(DataError, match=says):
        choice_task("t", ChoiceSettings(path="q.jsonl"), lambda name: write([row]))
