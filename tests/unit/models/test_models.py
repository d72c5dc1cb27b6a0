"""Scores and replies against plain transformers, one sequence at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from consilience.errors import BackendError
from consilience.models import ChatModel, load_model, load_tokenizer, sample_greedily, score_replies
from consilience.models.load import refuse_too_large
from consilience.models.score import _likeliest, _scores_of

NAMES = ["pivot", "wren", "finch"]


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, world: Path) -> Path:
    return world / str(request.param)


def texts(folder: Path) -> list[np.ndarray]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = ["one two three", "a", "the quick brown fox jumps", "zz zz zz zz zz zz", "to be"]
    return [np.array(tokenizer(text)["input_ids"] + tokenizer("!?")["input_ids"], dtype=np.int32) for text in words]


def test_scores_are_those_of_single_forward_passes(folder: Path) -> None:
    ids = texts(folder)
    positions = [np.arange(1, len(one)) for one in ids]
    chat_model = load_model(folder)
    scored = dict(score_replies(chat_model, ids, positions, top_k=4, batch_tokens=24))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for index, one in enumerate(ids):
        with torch.no_grad():
            logits = plain(torch.tensor(one[None].astype(np.int64))).logits[0, :-1]
        logprobs = torch.log(torch.softmax(logits.double(), -1)).numpy()
        assert scored[index].gold_logprobs_N == pytest.approx(logprobs[np.arange(len(one) - 1), one[1:]], abs=1e-4)
        best = np.sort(logprobs, axis=1)[:, :-5:-1]
        assert scored[index].logprobs_NK == pytest.approx(best, abs=1e-4)
        at_ids = np.take_along_axis(logprobs, scored[index].ids_NK.astype(np.int64), 1)
        assert at_ids == pytest.approx(best, abs=1e-4)


def test_only_the_positions_asked_for_are_scored(folder: Path) -> None:
    ids = texts(folder)
    chat_model = load_model(folder)
    whole = dict(score_replies(chat_model, ids, [np.arange(1, len(one)) for one in ids]))
    some = dict(score_replies(chat_model, ids, [np.array([1, len(one) - 1]) for one in ids]))
    for index in whole:
        assert some[index].gold_logprobs_N == pytest.approx(whole[index].gold_logprobs_N[[0, -1]], abs=1e-5)


def test_greedy_replies_are_generates_own(folder: Path) -> None:
    ids = texts(folder)
    chat_model = load_model(folder)
    replies = {index: reply for index, reply, _ in sample_greedily(chat_model, ids, max_new_tokens=6, batch_size=3)}
    tokenizer, plain = chat_model.tokenizer, AutoModelForCausalLM.from_pretrained(folder)
    for index, one in enumerate(ids):
        prompt = torch.tensor(one[None].astype(np.int64))
        with torch.no_grad():
            out = plain.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
        assert replies[index] == tokenizer.decode(out[0, len(one) :], skip_special_tokens=True)


def test_a_reply_that_does_not_end_is_marked(world: Path) -> None:
    ids = texts(world / "pivot")[:1]
    [(_, _, cut_off)] = sample_greedily(load_model(world / "pivot"), ids, max_new_tokens=1)
    end = load_model(world / "pivot").tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_pretrained(world / "pivot")
    with torch.no_grad():
        first = model(torch.tensor(ids[0][None].astype(np.int64))).logits[0, -1].argmax().item()
    assert cut_off == (first != end)


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BackendError, match="cannot load") as refused:
        load_model(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("architecture", ["gpt2", "qwen2", "gemma", "t5", "cohere"])
def test_a_tokenizer_that_transformers_makes_up_is_refused(architecture: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{architecture}"}}')
    made_up = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert "wren" not in made_up.decode(made_up("wren").input_ids)
    with pytest.raises(BackendError, match=r"has no tokenizer\. Its files are tokenizer\.json") as refused:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("files", [{}, {"config.json": '{"model_type": "llama"}'}, {"tokenizer.json": "{"}])
def test_a_folder_without_a_readable_tokenizer_is_told_what_files_it_takes(
    files: dict[str, str], tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BackendError, match=r"cannot load the tokenizer .*Its files are tokenizer\.json") as refused:
        load_tokenizer(tmp_path)
    assert "\n" not in str(refused.value)
    assert "from one of" not in str(refused.value)


def test_greedy_knows_no_penalty_of_the_models_generation_config(folder: Path) -> None:
    ids = texts(folder)[:2]
    plain = [reply for _, reply, _ in sample_greedily(load_model(folder), ids, max_new_tokens=8)]
    penal = load_model(folder)
    penal.model.generation_config.repetition_penalty = 9.0
    penal.model.generation_config.no_repeat_ngram_size = 1
    assert [reply for _, reply, _ in sample_greedily(penal, ids, max_new_tokens=8)] == plain


def test_replies_stop_where_the_models_positions_do(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "wren")
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=12, n_embd=8, n_head=1, n_layer=1, eos_token_id=None)
    chat_model = ChatModel("short", GPT2LMHeadModel(config).eval(), tokenizer)
    prompts = [np.arange(1, 1 + length, dtype=np.int32) for length in (20, 3, 12, 10)]
    replies = {
        i: (reply, cut) for i, reply, cut in sample_greedily(chat_model, prompts, max_new_tokens=4, batch_size=1)
    }
    assert (replies[0], replies[2]) == (("", True), ("", True))
    for index, new in ((1, 4), (3, 2)):
        out = chat_model.model.generate(torch.tensor(prompts[index][None].astype(np.int64)), max_new_tokens=new,
                                        do_sample=False, pad_token_id=0)  # fmt: skip
        assert replies[index][0] == tokenizer.decode(out[0, len(prompts[index]) :], skip_special_tokens=True)


def test_a_model_too_large_for_the_gpu_is_refused_with_what_fits(world: Path) -> None:
    numbers = sum(tensor.numel() for tensor in AutoModelForCausalLM.from_pretrained(world / "pivot").parameters())
    refuse_too_large(world / "pivot", "float32", 4 * numbers)
    with pytest.raises(BackendError, match=r"What would fit: bfloat16 \(0 GB\), 8 bits \(0 GB\), 4 bits \(0 GB\); or"):
        refuse_too_large(world / "pivot", "float32", 4 * numbers - 1)
    with pytest.raises(BackendError, match="a model of 0 billion parameters in bfloat16"):
        refuse_too_large(world / "pivot", "bfloat16", numbers // 2 - 1)


def test_quantised_models_need_bitsandbytes(world: Path) -> None:
    with pytest.raises(BackendError, match="need the package bitsandbytes"):
        load_model(world / "pivot", bits=4)


def test_a_spread_model_scores_alike(world: Path) -> None:
    ids = [np.arange(3, 9, dtype=np.int32)]
    one, spread = (load_model(world / "pivot", spread=spread) for spread in (False, True))
    (_, here), (_, there) = (next(score_replies(model, ids, [np.arange(1, 6)], top_k=3)) for model in (one, spread))
    assert np.array_equal(here.logprobs_NK, there.logprobs_NK)


@pytest.mark.parametrize("vocabulary", [640, 129, 1000, 5000])
def test_the_likeliest_are_torchs(vocabulary: int) -> None:
    logits = torch.randn(7, vocabulary, generator=torch.Generator().manual_seed(0))
    logits[0, -1], logits[1, 0], logits[2, :20] = 9.0, 9.0, torch.arange(20.0)  # at the ends, and side by side
    for top_k in (0, 1, 3, 10):
        values, ids = _likeliest(logits, top_k)
        expected = logits.topk(top_k, dim=-1)
        assert torch.equal(values, expected.values)
        assert torch.equal(ids, expected.indices)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [[2, 3, 4], [0, 2, 5], [6], []], ids=["in a row", "with gaps", "one", "none"])
@pytest.mark.parametrize("top_k", [0, 4])
def test_scores_are_torchs_log_softmax(dtype: torch.dtype, columns: list[int], top_k: int) -> None:
    logits = torch.randn(7, 5000, generator=torch.Generator().manual_seed(0)).mul(5).to(dtype)
    gold = np.arange(len(columns), dtype=np.int32) + 70
    scores = _scores_of(logits, torch.tensor(columns, dtype=torch.long), gold, top_k)
    expected = torch.log_softmax(logits[columns].double(), dim=-1).numpy()
    at = np.arange(len(columns))
    assert np.allclose(scores.gold_logprobs_N, expected[at, gold], atol=1e-5)
    assert scores.ids_NK.shape == (len(columns), top_k)
    assert np.allclose(scores.logprobs_NK, np.take_along_axis(expected, scores.ids_NK.astype(np.int64), 1), atol=1e-5)
