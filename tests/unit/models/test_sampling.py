"""Sampled replies: the chances are the softmax's, a reply is its own whatever the batch, every end has a status."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, TopKLogitsWarper, TopPLogitsWarper

from consilience.errors import BackendError, ConfigError
from consilience.models import (
    ChatModel,
    LocalSampler,
    Prompt,
    Reply,
    ReplyStatus,
    Sampler,
    Sampling,
    load_model,
    sample_replies,
)
from consilience.models.nucleus import keep_likeliest
from consilience.records import Message

WARM = Sampling(temperature=1.0, max_new_tokens=8, samples=3)


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(texts)]


ASKED = prompts("Bread", "A lamp stands on the table", "Seven birds sat", "Old maps show islands that no sailor", "She")


@pytest.fixture(params=["pivot", "wren", "finch"])
def chat_model(request: pytest.FixtureRequest, world: Path) -> ChatModel:
    return load_model(world / str(request.param))


def drawn(sampler: Sampler, asked: list[Prompt], sampling: Sampling) -> dict[tuple[str, int], Reply]:
    return {(reply.id, reply.sample): reply for reply in sampler.sample(asked, sampling)}


def test_a_reply_is_the_same_whatever_the_batch(chat_model: ChatModel) -> None:
    whole = drawn(LocalSampler(chat_model), ASKED, WARM)
    assert whole.keys() == {(prompt.id, sample) for prompt in ASKED for sample in range(3)}
    assert drawn(LocalSampler(chat_model, batch_size=2), ASKED, WARM) == whole
    alone = drawn(LocalSampler(chat_model, batch_size=1), ASKED[1:2], WARM)
    assert alone == {key: reply for key, reply in whole.items() if key[0] == "p1"}
    torch.rand(7)  # the global generator has no part in it
    assert drawn(LocalSampler(chat_model), ASKED[::-1], WARM) == whole


def test_samples_seeds_and_prompts_have_random_numbers_of_their_own(chat_model: ChatModel) -> None:
    twins = [Prompt("one", ASKED[0].messages), Prompt("other", ASKED[0].messages)]
    whole = drawn(LocalSampler(chat_model), twins, WARM)
    other_seed = drawn(LocalSampler(chat_model), twins, WARM.model_copy(update={"seed": 1}))
    texts = [reply.text for reply in (*whole.values(), *other_seed.values())]
    assert len(set(texts)) == len(texts)


def test_tokens_come_with_the_chances_of_the_softmax(world: Path) -> None:
    model = load_model(world / "wren")
    prompt_T = np.array(model.tokenizer("Bread is made of")["input_ids"], dtype=np.int32)
    with torch.no_grad():
        logits = model.model(torch.tensor(prompt_T[None].astype(np.int64))).logits[0, -1].double()
    count = 3000
    sampling = Sampling(temperature=0.7, top_k=6, max_new_tokens=1, samples=count)
    replies = [*sample_replies(model, [prompt_T], sampling, batch_size=500)]
    kept = logits.topk(6).indices.tolist()
    chances = torch.softmax(logits[kept] / 0.7, 0).tolist()
    found = Counter(reply.text for reply in replies)
    expected: Counter[str] = Counter()  # of two pieces of a character both are shown as the replacement character
    for id_, chance in zip(kept, chances):
        expected[model.tokenizer.decode([id_], skip_special_tokens=True)] += chance
    for text, chance in expected.items():
        error = (chance * (1 - chance) / count) ** 0.5
        assert found[text] / count == pytest.approx(chance, abs=4 * error)
    assert sum(found.values()) == count


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.8), (0, 0.05), (9, 0.6), (50, 1.0)])
def test_the_tokens_kept_are_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = torch.randn(16, 40, generator=torch.Generator().manual_seed(3)) * 2
    expected = TopKLogitsWarper(top_k)(None, logits) if top_k else logits
    expected = TopPLogitsWarper(top_p)(None, expected) if top_p < 1 else expected
    assert torch.equal(keep_likeliest(logits, top_k=top_k, top_p=top_p), expected)


def test_temperature_near_zero_is_greedy(chat_model: ChatModel) -> None:
    greedy = drawn(LocalSampler(chat_model), ASKED, Sampling(max_new_tokens=8))
    assert drawn(LocalSampler(chat_model), ASKED, Sampling(temperature=1e-5, max_new_tokens=8)) == greedy


def test_a_stop_text_ends_a_reply_and_is_not_part_of_it(chat_model: ChatModel) -> None:
    plain = drawn(LocalSampler(chat_model), ASKED, WARM)
    stop = next(reply.text[3] for reply in plain.values() if len(reply.text) > 4 and reply.text[3].isalnum())
    stopped = drawn(LocalSampler(chat_model), ASKED, WARM.model_copy(update={"stop": (stop,)}))
    for key, reply in stopped.items():
        before, found, _ = plain[key].text.partition(stop)
        assert reply.text == before
        if found:
            assert reply.status == (ReplyStatus.OK if before.strip() else ReplyStatus.EMPTY)
            assert reply.tokens <= plain[key].tokens
        else:
            assert reply == plain[key]


def _always(token: int, vocabulary: int, positions: int = 64) -> GPT2LMHeadModel:
    """A model that writes one token whatever it reads."""
    config = GPT2Config(vocab_size=vocabulary, n_positions=positions, n_embd=8, n_head=1, n_layer=1)
    config.tie_word_embeddings = False
    model = GPT2LMHeadModel(config).eval()
    torch.nn.init.zeros_(model.transformer.ln_f.weight)
    torch.nn.init.ones_(model.transformer.ln_f.bias)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.ones_(model.lm_head.weight[token : token + 1])
    return model


def test_every_end_has_its_status(world: Path) -> None:
    tokenizer = load_model(world / "wren").tokenizer
    word, blank, end = tokenizer("a")["input_ids"][0], tokenizer(" ")["input_ids"][0], tokenizer.eos_token_id
    ids_T = [np.array([word] * length, dtype=np.int32) for length in (3, 9, 12)]
    sampling = Sampling(max_new_tokens=4)

    def ends(token: int) -> list[tuple[str, str, int]]:
        model = ChatModel("made", _always(token, len(tokenizer), positions=12), tokenizer)
        return [(reply.status.value, reply.text, reply.tokens) for reply in sample_replies(model, ids_T, sampling)]

    no_room = ("no room", "", 0)
    assert sorted(ends(word)) == sorted([("truncated", "aaaa", 4), ("truncated", "aaa", 3), no_room])
    assert sorted(ends(end)) == sorted([("empty", "", 0), ("empty", "", 0), no_room])
    assert sorted(ends(blank)) == sorted([("truncated", "    ", 4), ("truncated", "   ", 3), no_room])


def test_a_prompt_that_the_template_refuses_is_not_asked(chat_model: ChatModel) -> None:
    refused = Prompt("half", (Message("user", "a \ud800 b"),))
    replies = drawn(LocalSampler(chat_model), [refused, ASKED[0]], WARM)
    assert {reply.status for key, reply in replies.items() if key[0] == "half"} == {ReplyStatus.NOT_ASKED}
    assert "surrogate" in replies["half", 2].detail
    assert replies["p0", 0].status != ReplyStatus.NOT_ASKED


def test_logits_that_are_no_numbers_are_refused(chat_model: ChatModel) -> None:
    chat_model.model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(BackendError, match=r"gives NaN after the prompt 'p0'"):
        drawn(LocalSampler(replace(chat_model, name="broken")), ASKED[:1], WARM)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"samples": 2}, "same reply"), ({"stop": ("",)}, "empty text")],
)
def test_settings_that_cannot_mean_what_they_say(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Sampling(**settings)
