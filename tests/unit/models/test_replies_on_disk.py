"""Replies on disk: asked once, in parts; a stop anywhere ends where an undisturbed run ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from consilience.models import Prompt, Reply, ReplyStatus, Sampling, replies
from consilience.models.replies import read_replies, sample_to_disk
from consilience.records import Message


class Echo:
    """Replies with the prompt and the sample's number; remembers what it was asked."""

    name = "echo"

    def __init__(self, breaks_after: int = 1 << 30) -> None:
        self.asked: list[str] = []
        self.breaks_after = breaks_after

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        for prompt in reversed(prompts):  # any order is allowed
            for sample in range(sampling.samples):
                if len(self.asked) == self.breaks_after:
                    raise KeyboardInterrupt
                self.asked.append(prompt.id)
                yield Reply(prompt.id, sample, f"{prompt.messages[-1].content}! {sample}", ReplyStatus.OK, 2, "why")


PROMPTS = [Prompt(f"q{i}", (Message("user", f"say {i}"),)) for i in range(10)]
TWO = Sampling(temperature=1, samples=2)


@pytest.fixture(autouse=True)
def _parts_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "PART", 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_reply_is_there_once_in_the_order_of_the_prompts(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    found = sample_to_disk(Echo(), PROMPTS, TWO, tmp_path, on_progress=lambda *done: heard.append(done))
    assert [(reply.id, reply.sample) for reply in found] == [(f"q{i}", sample) for i in range(10) for sample in (0, 1)]
    assert found[3] == Reply("q1", 1, "say 1! 1", ReplyStatus.OK, 2, "why")
    assert read_replies(tmp_path) == found
    assert heard[-1] == (20, 20)
    assert heard == sorted(heard)


@pytest.mark.parametrize("asked", range(0, 20, 3))
def test_a_stop_costs_a_part_at_most(asked: int, tmp_path: Path) -> None:
    whole = sample_to_disk(Echo(), PROMPTS, TWO, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        sample_to_disk(Echo(breaks_after=asked), PROMPTS, TWO, tmp_path / "stopped")
    again = Echo()
    assert sample_to_disk(again, PROMPTS, TWO, tmp_path / "stopped") == whole
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert len(again.asked) == 20 - asked // 6 * 6


@pytest.mark.parametrize("left", ["", '{"id": "q0', '{"id": "q0", "sample": 0}\n'])
def test_a_part_that_is_not_whole_is_asked_again(left: str, tmp_path: Path) -> None:
    whole = sample_to_disk(Echo(), PROMPTS, TWO, tmp_path)
    (tmp_path / "replies-00000.jsonl").write_text(left)
    again = Echo()
    assert sample_to_disk(again, PROMPTS, TWO, tmp_path) == whole
    assert {*again.asked} == {"q0", "q1", "q2"}
