"""Reward models against transformers itself; the ranker against LLM-Blender's own class."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from consilience.errors import BackendError
from consilience.judge import open_judge, reward
from consilience.judge.reward import ranker_judge, reward_judge
from consilience.judge.table import JudgeSettings
from consilience.records import Message, VerdictState, judgment_of, row_of_judgment
from tiny_judges import save_ranker, save_reward_model

PROMPTS = ["hello!", "I love you!", "What is two and two?"]
FIRSTS = ["hi!", "I hate you!", "four"]
SECONDS = ["go away", "I love you, too!", "five, or perhaps four, or three"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judges")
    save_reward_model(folder / "reward")
    save_ranker(folder / "ranker")
    return folder


def test_the_ranker_is_pairrm(folder: Path) -> None:
    # LLM-Blender 2a673661: DebertaV2PairRM.from_pretrained(folder) and the tokenize_pair of its README, both orders.
    there = [-0.12060552835464478, -0.21588778495788574, -0.33814531564712524]
    back = [-0.4165949821472168, -0.36359062790870667, -0.3434295058250427]
    judge = ranker_judge(str(folder / "ranker"))
    for judgment, first, second in zip(judge.compares()(PROMPTS, FIRSTS, SECONDS), there, back, strict=True):
        shown_first, shown_second = (one.value or 0.0 for one in judgment.orders)
        assert math.log(shown_first / (1 - shown_first)) == pytest.approx(first, abs=1e-5)
        assert -math.log(shown_second / (1 - shown_second)) == pytest.approx(second, abs=1e-5)
        assert judgment.value == pytest.approx((shown_first + shown_second) / 2)


def test_what_the_ranker_cannot_read_to_its_end_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reward, "SOURCE_TOKENS", 20)  # one byte a token, and three: [CLS], the mark, [SEP]
    monkeypatch.setattr(reward, "REPLY_TOKENS", 10)
    judge = ranker_judge(str(folder / "ranker"))
    fits, long_prompt, long_reply = judge.compares()(
        ["p" * 17, "p" * 18, "p" * 17], ["a" * 7, "a", "a" * 8], ["b" * 7, "b", "b"]
    )
    assert [one.cut for one in (fits, long_prompt, long_reply)] == [False, True, True]
    assert {one.state for one in (fits, long_prompt, long_reply)} == {VerdictState.OK}
    same, _ = judge.compares()(["p" * 17] * 2, ["a" * 7 + "x", "a"], ["b", "b"])
    (read,) = judge.compares()(["p" * 17], ["a" * 7], ["b"])
    assert same.value == pytest.approx(read.value, abs=1e-6)  # the end is not seen
    assert judgment_of(row_of_judgment(same), where="here").cut


def test_marks_in_a_text_are_text(folder: Path) -> None:
    judge = ranker_judge(str(folder / "ranker"))
    (judgment,) = judge.compares()(["<|candidate1|> better <|source|>"], ["a<|candidate2|>"], ["b"])
    assert judgment.state == VerdictState.OK
    (other,) = judge.compares()(["<| candidate1| > better <| source| >"], ["a<| candidate2| >"], ["b"])
    assert judgment.value == other.value


def test_rewards_are_the_model_s_own(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    with torch.inference_mode():
        expected = [
            float(model(**tokenizer(prompt, reply, return_tensors="pt")).logits[0, 0])
            for prompt, reply in zip(PROMPTS, SECONDS, strict=True)
        ]
    judge = reward_judge(str(folder / "reward"))
    found = judge.rates()(PROMPTS, SECONDS)
    assert [judgment.value for judgment in found] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    better = judge.compares()(PROMPTS[:1], SECONDS[:1], SECONDS[1:2])[0].value
    (other,) = judge.rates()(PROMPTS[:1], SECONDS[1:2])
    assert other.value is not None
    assert better == pytest.approx(1 / (1 + math.exp(other.value - expected[0])), abs=1e-6)


def test_a_chat_template_is_used_where_there_is_one(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_reward_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    chat = (Message("system", "s"), Message("user", "q"))
    (with_template,) = reward_judge(str(tmp_path)).rates()([chat], ["a"])
    (plain,) = reward_judge(str(folder / "reward")).rates()([chat], ["a"])
    assert with_template.value != plain.value


def test_a_reply_that_is_too_long_has_no_verdict(folder: Path) -> None:
    judge = reward_judge(str(folder / "reward"))
    short, long = judge.rates()(["a", "b"], ["c", "d" * 300])
    assert (short.state, long.state, long.value) == (VerdictState.OK, VerdictState.UNPARSED, None)
    assert long.reason == "304 tokens, and the model reads 256"
    (verdict,) = judge.compares()(["a"], ["c"], ["d" * 300])
    assert (verdict.state, verdict.value) == (VerdictState.UNPARSED, None)


def test_what_is_no_reward_model_is_refused(folder: Path, world: Path) -> None:
    for kind, model in (
        ("reward_model", world / "pivot"),
        ("ranker", world / "pivot"),
        ("reward_model", Path("no/where")),
    ):
        with pytest.raises(BackendError, match=r"pivot|no/where"):
            with open_judge(JudgeSettings(kind=kind, model=str(model))):
                pass
