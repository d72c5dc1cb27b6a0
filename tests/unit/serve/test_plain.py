"""Replies written side by side are those that transformers writes alone; who joins or leaves changes nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GenerationConfig,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from consilience.errors import BackendError
from consilience.models import ChatModel, load_model
from consilience.serve.generate import Job, Piece, Sampling
from consilience.serve.plain import PREFILL_TOKENS, PlainSampling

NAMES = ("pivot", "wren", "finch")  # Llama, GPT-2 and Qwen 2: rotary and learnt positions, grouped queries


@pytest.fixture(scope="module")
def models(world: Path) -> dict[str, ChatModel]:
    return {name: load_model(world / name) for name in NAMES}


def job(name: str, ids: Sequence[int], tokens: int = 12, choices: int = 1, **settings: object) -> Job:
    sampling = Sampling(**{"max_tokens": tokens, "temperature": 0.0, "seed": 0, "ignore_end": True, **settings})
    return Job(id=name, prompt_ids=ids, choices=choices, sampling=sampling)


def run(plain: PlainSampling, arrivals: dict[int, list[Job]], steps: int = 400) -> dict[str, list[Piece]]:
    """Every job's pieces; `arrivals` says which jobs come before which step."""
    pieces = defaultdict(list)
    for step in range(steps):
        for arriving in arrivals.get(step, ()):
            plain.add(arriving)
        for piece in plain.step():
            pieces[piece.job].append(piece)
    assert not plain.replies
    return pieces


def text_of(pieces: Sequence[Piece], choice: int = 0) -> str:
    return "".join(piece.text for piece in pieces if piece.choice == choice)


def prompts(model: ChatModel) -> list[list[int]]:
    """Of lengths 1 to 200, in an order that makes rows longer and shorter than those they join."""
    words = model.tokenizer("The river carries cold water from the hills to the sea. " * 20)["input_ids"]
    return [words[:n] for n in (40, 3, 200, 1, 17, 90, 5, 60)]


def alone(model: ChatModel, ids: Sequence[int], tokens: int = 12) -> str:
    """What transformers' own generate writes, greedily, to one prompt."""
    input_ids = torch.tensor([ids])
    written = model.model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return str(model.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_replies_side_by_side_are_those_written_alone(models: dict[str, ChatModel], name: str, attention: str) -> None:
    model = models[name]
    model.model.set_attn_implementation(attention)
    arrivals = {3 * i: [job(str(i), ids, tokens=12 + 5 * i)] for i, ids in enumerate(prompts(model))}
    pieces = run(PlainSampling(model, max_replies=16), arrivals)
    for i, ids in enumerate(prompts(model)):
        assert text_of(pieces[str(i)]) == alone(model, ids, 12 + 5 * i), i
        assert pieces[str(i)][-1].finish == "length"


def drawn(config: PreTrainedConfig, like: ChatModel) -> ChatModel:
    """A random model of the configuration, with the tokenizer of `like`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return ChatModel(config.model_type, model, like.tokenizer)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1}
SMALL |= {"eos_token_id": 2, "initializer_range": 0.3}


@pytest.mark.parametrize(
    "config",
    [
        partial(MistralConfig, intermediate_size=48, num_key_value_heads=2, sliding_window=8),
        partial(Gemma3TextConfig, intermediate_size=48, head_dim=8, sliding_window=8),
        partial(BloomConfig),  # positions by a bias of attention
    ],
    ids=["sliding window", "windows in some layers", "biases"],
)
def test_other_kinds_of_attention(models: dict[str, ChatModel], config: Callable[..., PreTrainedConfig]) -> None:
    model = drawn(config(vocab_size=len(models["finch"].tokenizer), **SMALL), models["finch"])
    arrivals = {3 * i: [job(str(i), ids, tokens=12 + 5 * i)] for i, ids in enumerate(prompts(model))}
    pieces = run(PlainSampling(model, max_replies=16), arrivals)
    for i, ids in enumerate(prompts(model)):
        assert text_of(pieces[str(i)]) == alone(model, ids, 12 + 5 * i), i


def test_a_model_with_another_state_is_refused(models: dict[str, ChatModel]) -> None:
    model = drawn(MambaConfig(vocab_size=50, **SMALL), models["finch"])
    with pytest.raises(BackendError, match="layers of kind linear_attention"):
        PlainSampling(model, max_replies=4)


def test_prompts_that_arrive_together_are_read_together(models: dict[str, ChatModel]) -> None:
    model = models["finch"]
    plain = PlainSampling(model, max_replies=16)
    calls: list[tuple[int, ...]] = []
    model.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    short, long = prompts(model)[0], prompts(model)[2] * 4
    pieces = run(plain, {0: [job("a", short), job("b", short[:7]), job("c", long)]})
    assert calls[0] == (2, 40)
    assert (1, PREFILL_TOKENS) in calls  # the long one by parts, the others going on meanwhile
    assert text_of(pieces["b"]) == alone(model, short[:7])
    assert text_of(pieces["c"]) == alone(model, long)


def test_choices_of_one_prompt_share_its_reading_and_differ(models: dict[str, ChatModel]) -> None:
    model = models["wren"]
    ids = prompts(model)[0]
    asked = job("x", ids, choices=3, temperature=1.0, seed=5)
    pieces = run(PlainSampling(model, max_replies=4), {0: [asked]})["x"]
    texts = [text_of(pieces, choice) for choice in range(3)]
    assert len(set(texts)) == 3
    crowd = {0: [job("y", ids[:9], tokens=30, temperature=1.0)], 2: [asked], 3: [job("z", ids, temperature=0.7)]}
    again = run(PlainSampling(model, max_replies=16), crowd)["x"]
    assert [text_of(again, choice) for choice in range(3)] == texts


def test_what_is_dropped_makes_room_and_disturbs_nobody(models: dict[str, ChatModel]) -> None:
    model = models["pivot"]
    plain = PlainSampling(model, max_replies=4)
    one, two, three = (
        job(name, ids, tokens=20, choices=choices)
        for name, ids, choices in zip("abc", prompts(model), (1, 2, 1), strict=False)
    )
    for arriving in (one, two, three):
        assert plain.fits(arriving)
        plain.add(arriving)
    assert not plain.fits(one)
    plain.step()
    plain.step()
    plain.drop("b")
    assert plain.fits(two)
    pieces = [piece for _ in range(40) for piece in plain.step()]
    assert {piece.job for piece in pieces} == {"a", "c"}
    assert plain.rows.lengths == []


def test_dropped_while_its_prompt_is_read(models: dict[str, ChatModel]) -> None:
    model = models["finch"]
    plain = PlainSampling(model, max_replies=4)
    plain.add(job("long", prompts(model)[2] * 8))
    assert plain.step() == []
    plain.drop("long")
    assert plain.step() == []
    assert plain.prompts is None


def test_the_end_of_text_ends_a_reply(models: dict[str, ChatModel]) -> None:
    model = models["finch"]
    plain = PlainSampling(model, max_replies=4)
    ids = prompts(model)[0]
    first = model.tokenizer(alone(model, ids, 1))["input_ids"]
    stops = run(plain, {0: [job("x", ids, stop_ids=frozenset(first))]})["x"]
    assert [(piece.text, piece.finish, piece.tokens) for piece in stops] == [("", "stop", 1)]
    held_off = run(plain, {0: [job("x", ids, stop_ids=frozenset(first), min_tokens=3)]})["x"]
    assert sum(piece.tokens for piece in held_off) >= 3


def test_nan_ends_one_reply_and_no_other(models: dict[str, ChatModel]) -> None:
    model = models["finch"]
    good, bad, poison = prompts(model)[0], prompts(model)[5], 7

    def spoil(module: object, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((args[0] == poison)[..., None], torch.nan)

    arrivals = {0: [job("good", good, tokens=30)], 2: [job("bad", [*bad, poison])], 12: [job("later", bad[:3])]}
    hook = model.model.get_input_embeddings().register_forward_hook(spoil)
    try:
        pieces = run(PlainSampling(model, max_replies=4), arrivals)
    finally:
        hook.remove()
    assert [piece.error for piece in pieces["bad"]] == [f"model {model.name} gives NaN"]
    assert text_of(pieces["good"]) == alone(model, good, 30)
    assert text_of(pieces["later"]) == alone(model, bad[:3])  # it takes the place of the row that was NaN


def test_biases_and_penalties(models: dict[str, ChatModel]) -> None:
    model = models["finch"]
    ids = prompts(model)[0]

    def written(**settings: object) -> list[int]:
        plain = PlainSampling(model, max_replies=4)
        pieces = run(plain, {0: [job("x", ids, tokens=20, logprobs=0, **settings)], 1: [job("y", ids[:5])]})["x"]
        return [token.token_id for piece in pieces for token in piece.logprobs]

    free = written()
    assert written(logit_bias=((300, 100.0),)) == [300] * 20
    assert set(written(logit_bias=((free[0], -100.0),))).isdisjoint(free[:1])
    assert len(set(written(presence_penalty=2.0, frequency_penalty=2.0))) > len(set(free))
    # Greedily, as transformers' own generate does it.
    input_ids = torch.tensor([ids])
    expected = model.model.generate(
        input_ids=input_ids, attention_mask=torch.ones_like(input_ids), max_new_tokens=20, min_new_tokens=20,
        do_sample=False, repetition_penalty=1.5, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert written(repetition_penalty=1.5) == expected[0, len(ids) :].tolist() != free
