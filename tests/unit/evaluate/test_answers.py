"""Replies on disk: asked once, gone on with after a stop, found in the files that people have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.evaluate.answers import Asked, FinishedAnswers, ask, read_records
from consilience.evaluate.questions import fields_of, fill
from consilience.models import Prompt, Reply, ReplyStatus, Sampling
from consilience.models.replies import PART
from consilience.records import Message, write_jsonl


class Echo:
    """Replies with the prompt and the sample's number; remembers what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        for prompt in reversed(prompts):  # any order is allowed
            for sample in range(sampling.samples):
                self.asked.append(prompt.id)
                yield Reply(prompt.id, sample, f"{prompt.messages[-1].content}! {sample}", ReplyStatus.OK, 2)


WARM, COLD = Sampling(temperature=1, samples=2), Sampling()
ASKED = [Asked(f"q{i}", (Message("user", f"say {i}"),), WARM if i % 3 else COLD) for i in range(10)]


def test_every_reply_is_there_once_and_in_order(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    records = ask(Echo(), "echo", "task", ASKED, tmp_path, on_progress=lambda *done: heard.append(done))
    write_jsonl(tmp_path / "records.jsonl", (record.to_json() for record in records))
    assert read_records(tmp_path / "records.jsonl") == records
    assert heard[-1] == (16, 16)
    asked_no_more = Echo()
    assert ask(asked_no_more, "echo", "task", ASKED, tmp_path) == records
    assert asked_no_more.asked == []
    assert sorted((record.item, record.sample) for record in records) == sorted(
        (one.item, sample) for one in ASKED for sample in range(one.sampling.samples)
    )
    assert records[0].reply == "say 0! 0"
    assert len({record.sampling for record in records}) == 2


def test_random_numbers_are_named_by_task_item_turn_and_sample() -> None:
    ids = [
        Asked("q", (), COLD).prompt("a").id,
        Asked("q", (), COLD).prompt("b").id,
        Asked("q", (), COLD, turn=2).prompt("a").id,
        Asked("q", (), COLD, turn=2, sample=1).prompt("a").id,
    ]
    assert len(set(ids)) == 4


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "q1", "reply": "one"}],
        [{"key": "q1", "response": "one"}],
        [{"task": "t", "item": "q1", "turn": 1, "reply": "one"}, {"task": "u", "item": "q1", "reply": "x"}],
        [{"instruction": "say 1", "output": "one", "generator": "m"}],
        [{"prompt": "say 1", "response": "one"}],
        [{"prompt": [{"role": "user", "content": "say 1"}], "reply": "one"}],
        [{"question_id": "q1", "model_id": "m", "choices": [{"index": 0, "turns": ["one", "two"]}]}],
    ],
)  # fmt: skip
def test_finished_replies_of_every_shape(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")
    asked = [Asked(f"q{i}", (Message("user", f"say {i}"),), COLD).prompt("t") for i in (1, 2)]
    found = {reply.id: (reply.text, reply.status.value) for reply in finished.sample(asked, COLD)}
    assert found == {"t/q1": ("one", "ok"), "t/q2": ("", "missing")}


def test_finished_second_turns_and_samples(tmp_path: Path) -> None:
    rows = [{"question_id": 7, "choices": [{"turns": ["a1", "a2"]}, {"turns": ["b1", "b2"]}]}]
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")
    first = [Asked("7", (Message("user", "x"),), WARM).prompt("t")]
    assert [reply.text for reply in finished.sample(first, WARM)] == ["a1", "b1"]
    second = [Asked("7", (Message("user", "y"),), COLD, turn=2, sample=sample).prompt("t") for sample in (0, 1)]
    assert [reply.text for reply in finished.sample(second, COLD)] == ["a2", "b2"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"id": 1, "text": "x"}], "no reply; expected one of reply, output"),
        ([{"task": "other", "item": "1", "reply": "x"}], "holds no replies to the task 't'"),
        (["x"], "got str, expected an object"),
        ([{"id": 1, "reply": "x", "sample": "a"}], r"a.jsonl, line 1: 'sample' is 'a'; expected a whole number from 0"),
        ([{"id": 1, "reply": "x", "sample": [0]}], r"line 1: 'sample' is \[0\]"),
        ([{"id": 1, "reply": "x", "turn": 0}], r"line 1: 'turn' is 0; expected a whole number from 1"),
        ([{"question_id": 1, "choices": [{"turns": ["a"]}, {"turn": ["b"]}]}], "line 1: choice 1 has no 'turns'"),
        ([{"question_id": 1, "choices": ["a"]}], "line 1: choice 0 has no 'turns'"),
        ([{"question_id": 1, "choices": [{"turns": ["a", None]}]}], "line 1: choice 0 has no 'turns'"),
    ],
)
def test_files_without_replies(rows: list[Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")


def test_a_file_of_other_items_is_refused_with_examples(tmp_path: Path) -> None:
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", [{"id": "z", "reply": "x"}]), "t")
    asked = [Asked("q", (Message("user", "x"),), COLD)]
    with pytest.raises(DataError, match=r"no reply to any of 1 prompts such as 't/q'; it has 't/z'"):
        ask(finished, "m", "t", asked, tmp_path / "parts")


def test_a_file_may_leave_out_a_whole_part_of_the_prompts(tmp_path: Path) -> None:
    """Replies to the first ten of more prompts than are asked for at once."""
    rows = [{"id": f"q{i}", "reply": f"r{i}"} for i in range(10)]
    asked = [Asked(f"q{i}", (Message("user", "x"),), COLD) for i in range(PART + 5)]
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")
    records = ask(finished, "m", "t", asked, tmp_path / "parts")
    assert [record.reply for record in records[:10]] == [f"r{i}" for i in range(10)]
    assert {(record.status.value, record.reply) for record in records[10:]} == {("missing", "")}


def test_chats_that_end_alike_are_told_apart_by_all_their_turns(tmp_path: Path) -> None:
    chats = [
        (Message("user", f"Hi {i}"), Message("assistant", "Hello"), Message("user", "And then?")) for i in range(3)
    ]
    rows = [
        {"prompt": [{"role": turn.role, "content": turn.content} for turn in chat], "reply": f"r{i}"}
        for i, chat in enumerate(chats[:2])
    ]
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")
    found = finished.sample([Asked(f"q{i}", chat, COLD).prompt("t") for i, chat in enumerate(chats)], COLD)
    assert [reply.text for reply in found] == ["r0", "r1", ""]


def test_a_template_reads_fields_and_never_what_is_in_them() -> None:
    row = {"question": "{answer} {", "answer": "}"}
    assert fill("Q: {question} {{x}}", row) == "Q: {answer} { {x}"
    for template, says in [("{question", "without its other half"), ("}", "without its other half"), ("{}", "name of")]:
        with pytest.raises(ConfigError, match=says):
            fields_of(template)
    with pytest.raises(ConfigError, match=r"\{questoin\}, which the rows have not. Did you mean 'question'"):
        fill("{questoin}", row)


def test_what_a_file_says_of_its_replies_is_kept(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "reply": "cut o", "status": "truncated"},
        {"id": "b", "reply": "", "status": "error", "detail": "HTTP 500"},
        {"id": "c", "reply": "fine", "status": "stop"},  # another program's word
        {"id": "d", "reply": " "},
    ]
    finished = FinishedAnswers("m", lines(tmp_path / "a.jsonl", rows), "t")
    prompts = [Asked(name, (Message("user", "?"),), Sampling()).prompt("t") for name in "abcd"]
    replies = [*finished.sample(prompts, Sampling())]
    assert [str(reply.status) for reply in replies] == ["truncated", "error", "ok", "empty"]
    assert replies[1].detail == "HTTP 500"
