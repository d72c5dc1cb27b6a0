"""`fusion.kind: replies`: sources sampled, rated by a judge, the best learnt, pairs for `consilience prefer`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import BackendError
from consilience.judge import JudgeSettings, open_judge
from consilience.models import Reply, ReplyStatus
from consilience.models.endpoint import EndpointSettings
from consilience.pipelines.replies import Rated, choose, rate_source
from consilience.prefer.data import read_preferences
from consilience.records import Conversation, Judgment, Message, VerdictState, read_conversations
from fake_endpoint import Reply as Answer
from fake_endpoint import choices, fake_server

Recipe = Callable[..., Path]
Consilience = Callable[..., Any]

SAMPLES = 3
JUDGE = """
def score(prompt, reply):
    \"\"\"The length; nothing to say of an x.\"\"\"
    return None if "x" in reply else len(reply.strip())
"""


@pytest.fixture(scope="module")
def replies_recipe(recipe: Recipe) -> Path:
    # Random models do not end by themselves within a few tokens.
    sampling = {"temperature": 1.0, "samples": SAMPLES, "max_new_tokens": 64, "stop": ["a", "t", "o", "k", "1"]}
    path = recipe(
        fusion={"kind": "replies", "sampling": sampling, "judge": {"kind": "function", "function": "judge.py:score"}}
    )
    path.with_name("judge.py").write_text(JUDGE)
    return path


@pytest.fixture(scope="module")
def run(replies_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from consilience.pipelines.fuse import fuse_recipe

    out = tmp_path_factory.mktemp("replies") / "run"
    fuse_recipe(replies_recipe, out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_best_rated_reply_of_all_sources_is_learnt(run: Path, world: Path) -> None:
    gold = {chat.id: chat for chat in read_conversations(world / "chats.jsonl")}
    learnt = read_conversations(run / "sample" / "replies" / "chats.jsonl")
    by_chat: dict[str, list[str]] = {}
    for source in ("wren", "finch"):
        for reply in rows(run / "replies" / source / "replies-00000.jsonl"):
            if reply["status"] == "ok" and "x" not in reply["text"]:
                by_chat.setdefault(reply["id"], []).append(reply["text"].strip())
    kept_gold = json.loads((run / "sample" / "replies" / "kept_gold.json").read_text())
    assert sum(kept_gold.values()) == len(learnt) - len(by_chat)
    for chat in learnt:
        assert chat.prompt == gold[chat.id].prompt
        usable = by_chat.get(chat.id, [gold[chat.id].replies[-1]])
        assert len(chat.replies[-1]) == max(map(len, usable))
    teachers = json.loads((run / "sample" / "replies" / "teachers.json").read_text())
    assert sum(teachers.values()) == len(by_chat) > 0


def test_pairs_are_what_prefer_reads(run: Path) -> None:
    path = run / "sample" / "replies" / "pairs.jsonl"
    pairs = read_preferences(path, pairs=True)
    assert pairs
    for pair, row in zip(pairs, rows(path), strict=True):
        assert pair.chosen is not None
        assert pair.rejected is not None
        assert len(pair.chosen) > len(pair.rejected)
        texts = [one["text"].strip() for one in rows(run / "replies" / row["source"] / "replies-00000.jsonl")]
        assert {pair.chosen, pair.rejected} <= {*texts}


def test_the_run_measures_the_target_beside_plain_fine_tuning(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert [*results["models"]] == ["pivot", "wren", "finch", "sft", "replies"]
    assert results["result"] == "replies"
    assert (run / "model" / "model.safetensors").is_file()
    assert "rated best" in (run / "report.html").read_text()
    assert not (run / "represent").exists()


def test_another_judge_rates_anew_what_was_sampled(
    consilience: Consilience, replies_recipe: Path, run: Path, tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(replies_recipe.read_text())
    (tmp_path / "judge.py").write_text(JUDGE.replace("len(reply.strip())", "-len(reply.strip())"))
    refused = consilience("fuse", path, "--out", run)
    assert refused.code == 2
    assert "input fusion.judge.function was" in refused.err
    assert consilience("fuse", path, "--out", tmp_path / "run", "--reuse", run).code == 0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    anew = {event["stage"] for event in events if "taken_from" not in event}
    assert anew == {"ratings", "sample/replies", "train/replies", "evaluate/replies", "model"}


def test_it_is_one_target_of_chats(consilience: Consilience, recipe: Recipe, tmp_path: Path) -> None:
    judged = {"kind": "replies", "judge": {"kind": "function", "function": "judge.py:score"}}
    for changes, expected in (
        ({"fusion": {"kind": "replies"}}, "needs fusion.judge"),
        ({"fusion": judged, "merges": {"linear": {"method": "linear"}}}, "merges needs fusion.kind: distributions"),
        ({"fusion": judged, "targets": {"controls": ["seqkd"]}}, "targets.controls: seqkd needs fusion.kind"),
        ({"fusion": judged, "targets": {"many_to_one": True}}, "targets.many_to_one needs fusion.kind"),
    ):
        answer = consilience("fuse", recipe(**changes), "--out", tmp_path / "run")
        assert answer.code == 2
        assert expected in answer.err


def rated(source: str, sample: int, rating: float | None, status: ReplyStatus = ReplyStatus.OK) -> Rated:
    state = VerdictState.UNPARSED if rating is None else VerdictState.OK
    judgment = Judgment(key="key", judge="judge", state=state, value=rating) if status == ReplyStatus.OK else None
    return Rated(source, Reply("chat", sample, f"{source} {sample}", status), judgment)


def test_choosing_by_hand() -> None:
    chat = Conversation("chat", (Message("user", "Hi"), Message("assistant", "Gold")))
    found = [
        *(rated("a", 0, 3.0), rated("a", 1, 5.0), rated("b", 0, 5.0), rated("b", 1, 1.0)),
        rated("a", 2, None, ReplyStatus.TRUNCATED),
    ]
    chosen = choose([chat], found, lambda messages: True)
    assert [one.replies[-1] for one in chosen.chats] == ["a 1"]  # of equal ratings the first source's
    assert [(pair["chosen"], pair["rejected"]) for pair in chosen.pairs] == [("a 1", "a 0")]  # of one source
    unread = choose([chat], found, lambda messages: messages[-1].content != "a 1")
    assert [one.replies[-1] for one in unread.chats] == ["b 0"]
    nothing = choose([chat], [rated("a", 0, None), rated("b", 0, None, ReplyStatus.EMPTY)], lambda messages: True)
    assert [one.replies[-1] for one in nothing.chats] == ["Gold"]
    assert nothing.kept_gold == {"replies empty, unparsed": 1}
    assert not nothing.pairs
    assert not choose([chat], found, lambda messages: False).chats


def test_a_spent_budget_ends_no_stage_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    chats = [Conversation(f"{i}", (Message("user", f"Say {i}"), Message("assistant", "Gold"))) for i in range(4)]
    replies = [Reply(chat.id, 0, "A reply", ReplyStatus.OK) for chat in chats]
    usage = {"prompt_tokens": 10_000, "completion_tokens": 5}
    with fake_server(lambda body, nth: Answer(choices("[[7]]", usage=usage))) as server:
        for tokens, asked in ((12_000, 1), (100_000, 4)):  # a call may cost some 2,900
            endpoint = EndpointSettings(url=server.url, model="m", concurrency=1, budget={"tokens": tokens})
            settings = JudgeSettings(kind="rating", endpoint=endpoint)
            with open_judge(settings, cache=tmp_path / "judge.sqlite") as judge:
                if asked < len(chats):
                    with pytest.raises(BackendError, match=r"With a larger budget the same command goes on"):
                        rate_source(judge, chats, replies, tmp_path / "rated.jsonl", lambda done, total: None)
                    assert not (tmp_path / "rated.jsonl").exists()
                else:
                    rate_source(judge, chats, replies, tmp_path / "rated.jsonl", lambda done, total: None)
            assert len(server.asked) == asked  # what was answered is not asked again
    assert [row["value"] for row in rows(tmp_path / "rated.jsonl")] == [7] * 4
