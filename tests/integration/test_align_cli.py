"""`consilience align` on the tiny world's tokenizers, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest

from consilience.pipelines.align import align_report

Consilience = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizers(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders with nothing but the tokenizers of the tiny world."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name in ("pivot", "wren", "finch"):
        (folder / name).mkdir()
        for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(world / name / file, folder / name / file)
    return folder


def chat(*turns: str, system: bool = False) -> str:
    roles = ["system"] * system + ["user", "assistant"] * len(turns)
    return json.dumps({"messages": [{"role": role, "content": turn} for role, turn in zip(roles, turns)]}) + "\n"


def replies_of(chats: Path) -> list[str]:
    messages = [message for line in chats.read_text().splitlines() for message in json.loads(line)["messages"]]
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_a_tokenizer_meets_itself_everywhere(world: Path, tokenizers: Path) -> None:
    finch, chats = str(tokenizers / "finch"), world / "chats.jsonl"
    found = align_report(finch, finch, chats)
    assert found.matched.value == found.one_to_one.value == 1
    assert found.pivot_positions == found.source_positions == found.chunk_types["1-1"].positions
    assert found.chunk_types["1-1"].bytes == sum(len(reply) + 1 for reply in replies_of(chats))  # one more closes it
    assert found.vocabulary["statistics"] == found.vocabulary["unmapped"] == 0
    assert {name: share.value for name, share in found.right.items()} == {
        "exact": 1,
        "statistics": 1,
        "statistics_other_half": 1,
    }
    assert not found.unmapped
    assert not found.unmatched
    assert found.matched.n == 24  # every chat asks for another line


def test_two_tokenizers_by_the_lengths_of_their_tokens(world: Path, tokenizers: Path) -> None:
    """Counted here from the bare replies: a token's name, with 'Ġ' or '▁' for a blank, is as long as the token."""
    from tokenizers import Tokenizer

    coarse, fine = (Tokenizer.from_file(str(tokenizers / name / "tokenizer.json")) for name in ("wren", "pivot"))

    def spans(tokenizer: Any, reply: str) -> set[tuple[int, int]]:
        ends = list(accumulate(map(len, tokenizer.encode(reply).tokens)))
        return {*pairwise([0, *ends]), (len(reply), len(reply) + 1)}  # the last one closes the reply

    positions = matched = same = 0
    for reply in replies_of(world / "chats.jsonl"):
        ours, theirs = spans(coarse, reply), spans(fine, reply)
        positions += len(ours)
        matched += len({start for start, _ in ours} & {start for start, _ in theirs})
        same += len(ours & theirs)
    assert same < matched
    found = align_report(str(tokenizers / "wren"), str(tokenizers / "pivot"), world / "chats.jsonl", template="pivot")
    assert found.pivot_positions == positions
    assert found.matched.value == pytest.approx(matched / positions)
    assert found.one_to_one.value == pytest.approx(same / positions)
    assert found.chunk_types["1-1"].chunks == same


def test_text_json_and_page(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["align", tokenizers / "pivot", tokenizers / "finch", "--chats", world / "chats.jsonl"]
    answer = consilience(*words, "--limit", 6, "--html", page, "--json")
    assert answer.code == 0
    found = answer.json
    assert found["conversations"] == 6
    assert found["template"] == "native"
    assert sum(count["share_of_positions"] for count in found["chunk_types"].values()) == pytest.approx(1)
    assert sum(count["share_of_bytes"] for count in found["chunk_types"].values()) == pytest.approx(1)
    assert sum(count["positions"] for count in found["chunk_types"].values()) == found["pivot_positions"]
    without = sum(token["times"] for token in found["unmatched"])  # fewer than 50 kinds of them here
    assert found["matched"]["value"] == pytest.approx(1 - without / found["pivot_positions"])
    assert found["matched"]["units"] == "prompts"
    assert found["set_aside"] == {}
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert 'class="token matched"' in html

    text = consilience(*words, "--template", "pivot")
    assert text.code == 0
    for said in ("matched", "1-1", "n-m", "statistics", "pivot tokens without a partner", "set aside: none", "prompts"):
        assert said in text.out


def test_conversations_that_cannot_be_read_are_counted(tokenizers: Path, tmp_path: Path) -> None:
    strict = tmp_path / "strict"
    shutil.copytree(tokenizers / "finch", strict)
    template = (strict / "chat_template.jinja").read_text()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (strict / "chat_template.jinja").write_text(refusal + template)
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chat("Hi", "Two birds.") + chat("Be brief.", "Hi", "One bird.", system=True))
    found = align_report(str(tokenizers / "pivot"), str(strict), chats)
    assert found.conversations == 1
    ((reason, count),) = found.set_aside.items()
    assert reason.startswith("source: ")
    assert "no system" in reason
    assert count == 1


def test_the_page_escapes_what_chats_hold(tokenizers: Path, tmp_path: Path) -> None:
    chats, page = tmp_path / "chats.jsonl", tmp_path / "page.html"
    chats.write_text(chat("Hi", "<script>alert(1)</script>"))
    align_report(str(tokenizers / "finch"), str(tokenizers / "wren"), chats, html=page)
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;" in html


def the_line(answer: Any) -> str:
    """The line it is refused with."""
    assert answer.code == 2
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if line.startswith("consilience: ")]
    assert len(lines) == 1
    assert "Traceback" not in answer.err
    return lines[0]


def test_bad_input(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    chats, pivot, wren = world / "chats.jsonl", tokenizers / "pivot", tokenizers / "wren"
    assert "no folder" in the_line(consilience("align", pivot, tmp_path / "nowhere", "--chats", chats))
    empty_folder = tmp_path / "empty"
    empty_folder.mkdir()
    assert "cannot load the tokenizer" in the_line(consilience("align", pivot, empty_folder, "--chats", chats))
    assert "no file" in the_line(consilience("align", pivot, wren, "--chats", tmp_path / "none.jsonl"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert "holds no conversations" in the_line(consilience("align", pivot, wren, "--chats", empty))
    assert "'native'" in the_line(consilience("align", pivot, wren, "--chats", chats, "--template", "nativ"))


def test_a_source_without_template_may_borrow_the_pivots(
    consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tokenizers / "wren", bare)
    (bare / "chat_template.jinja").unlink()
    words = ["align", tokenizers / "pivot", bare, "--chats", world / "chats.jsonl"]
    line = the_line(consilience(*words))
    assert "no chat template" in line
    assert "--template pivot" in line
    assert consilience(*words, "--template", "pivot").code == 0


def test_nothing_matched_says_so(consilience: Consilience, tokenizers: Path, tmp_path: Path) -> None:
    open_ended = tmp_path / "open-ended"
    shutil.copytree(tokenizers / "finch", open_ended)
    (open_ended / "chat_template.jinja").write_text("{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}")
    chats = tmp_path / "chats.jsonl"
    chats.write_text(chat("Hi", ""))  # an empty reply that nothing closes has no position
    assert "nothing matched" in the_line(consilience("align", open_ended, open_ended, "--chats", chats))


def test_a_page_is_not_overwritten(consilience: Consilience, world: Path, tokenizers: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("mine")
    words = ["align", tokenizers / "pivot", tokenizers / "wren", "--chats", world / "chats.jsonl", "--limit", 2]
    assert "--force" in the_line(consilience(*words, "--html", page))
    assert page.read_text() == "mine"
    assert consilience(*words, "--html", page, "--force").code == 0
    assert page.read_text().startswith("<!doctype html>")
    assert "is no folder" in the_line(consilience(*words, "--html", tmp_path / "nowhere" / "page.html"))
    assert "Give --html a file" in the_line(consilience(*words, "--html", tmp_path, "--force"))
