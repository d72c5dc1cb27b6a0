"""The engine vLLM beside transformers, before a stand-in that has vLLM's interface: the same questions, read alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.chat import render_prompt
from consilience.config import parse
from consilience.errors import BackendError, ConfigError
from consilience.fuse import Representation, RepresentSettings, represent
from consilience.models import EngineSettings, LocalSampler, Model, Prompt, ReplyStatus, Sampling, open_model
from consilience.models.options import option_ids
from consilience.models.vllm import GoOn
from consilience.records import Message, read_conversations

NAMES = ("pivot", "wren", "finch")
SENTENCES = ("Tell me of the river.", "Count the birds.", "Why?")


def both(world: Path, name: str, **options: Any) -> tuple[Model, Any]:
    """The model under transformers and under vLLM."""
    choice = EngineSettings(engine="vllm", engine_options=options)
    return open_model(world / name, EngineSettings(), name=name), open_model(world / name, choice, name=name, top_k=30)


def prompts_of(*texts: str) -> list[Prompt]:
    return [Prompt(f"p{i}", (Message("user", text),)) for i, text in enumerate(texts)]


@pytest.mark.usefixtures("vllm_stand_in")
@pytest.mark.parametrize("name", NAMES)
def test_representations_are_those_of_transformers(world: Path, name: str, tmp_path: Path) -> None:
    chats = read_conversations(world / "chats.jsonl")
    settings = RepresentSettings(top_k=30, shard_conversations=10)  # above the 20 that vLLM tells unless told otherwise
    made = []
    for folder, model in zip("ab", both(world, name), strict=True):
        (tmp_path / folder).mkdir()
        made.append(represent(lambda model=model: model, chats, settings, tmp_path / folder, model_hash="hash"))
    ours, theirs = made
    assert ours.manifest["vocabulary_size"] == theirs.manifest["vocabulary_size"]
    for number in range(ours.shards):
        one, other = ours.shard(number), theirs.shard(number)
        assert (one.position_N == other.position_N).all()
        assert (one.gold_ids_N == other.gold_ids_N).all()
        assert other.gold_logprobs_N == pytest.approx(one.gold_logprobs_N, abs=1e-4)
        assert other.logprobs_NK.astype(float) == pytest.approx(one.logprobs_NK.astype(float), abs=5e-3)
        assert (np.diff(other.logprobs_NK.astype(float), axis=1) <= 0).all()  # the likeliest first
        steps = -np.diff(one.logprobs_NK.astype(float), axis=1) > 0.01
        sure = steps[:, 1:] & steps[:, :-1]  # tokens that are as likely as another may change places with it
        assert sure.mean() > 0.3
        assert (one.ids_NK[:, 1:-1] == other.ids_NK[:, 1:-1])[sure].all()


@pytest.mark.usefixtures("vllm_stand_in")
def test_a_text_is_cut_where_vllm_keeps_a_position_for_what_it_writes(world: Path, tmp_path: Path) -> None:
    chats = read_conversations(world / "chats.jsonl")
    _, model = both(world, "finch", max_model_len=40)
    settings = RepresentSettings(top_k=3)
    found = represent(lambda: model, chats, settings, tmp_path, model_hash="hash")
    assert found.max_tokens == 39
    assert {*found.set_aside.values()} == {"truncated"}
    assert max(shard.position_N.max() for shard in Representation(tmp_path)) == 38


@pytest.mark.usefixtures("vllm_stand_in")
@pytest.mark.parametrize("name", NAMES)
def test_greedy_replies_are_those_of_transformers(world: Path, name: str) -> None:
    sampling = Sampling(max_new_tokens=24, stop=("ou",))
    ours, theirs = (
        sorted(LocalSampler(model).sample(prompts_of(*SENTENCES), sampling), key=lambda reply: reply.id)
        for model in both(world, name)
    )
    assert theirs == ours


def test_a_reply_has_a_seed_of_its_own(world: Path, vllm_stand_in: Any) -> None:
    _, model = both(world, "wren")
    sampling = Sampling(temperature=1.5, max_new_tokens=8, samples=3, seed=5)

    def replies(*texts: str) -> dict[tuple[str, int], str]:
        return {(r.id, r.sample): r.text for r in LocalSampler(model).sample(prompts_of(*texts), sampling)}

    together = replies(*SENTENCES)
    assert len({*together.values()}) == 9
    alone = replies(SENTENCES[0])
    assert alone == {key: text for key, text in together.items() if key[0] == "p0"}
    seeds = [params.seed for params in vllm_stand_in.LLM.requests[:9]]
    assert len({*seeds}) == 9
    assert all(params.n == 1 and params.stop_token_ids for params in vllm_stand_in.LLM.requests)


@pytest.mark.usefixtures("vllm_stand_in")
def test_replies_end_with_a_status(world: Path) -> None:
    _, model = both(world, "finch", max_model_len=30)
    length = len(render_prompt(model.tokenizer, prompts_of("Why?")[0].messages))
    prompts = [*prompts_of("Why?", "Why? " * 40), Prompt("broken", (Message("user", "\ud800"),))]
    found = {reply.id: reply for reply in LocalSampler(model).sample(prompts, Sampling(max_new_tokens=500))}
    assert found["p0"].status in (ReplyStatus.TRUNCATED, ReplyStatus.OK)
    assert found["p0"].tokens <= 30 - length
    assert found["p1"].status is ReplyStatus.NO_ROOM
    assert found["p1"].tokens == 0  # it is known, and None is for what is not
    assert found["broken"].status is ReplyStatus.NOT_ASKED


@pytest.mark.usefixtures("vllm_stand_in")
@pytest.mark.parametrize("name", NAMES)
def test_scores_of_set_replies_are_those_of_transformers(world: Path, name: str) -> None:
    ours, theirs = both(world, name)
    prompts = [render_prompt(ours.tokenizer, prompt.messages) for prompt in prompts_of(*SENTENCES)]
    options, dropped = option_ids(ours.tokenizer, prompts_of("x")[0].messages, ["water", "waters", "the sea", "no"])
    cut = [ids[: len(ids) - dropped] for ids in prompts]
    assert theirs.option_scorer()(cut, options) == pytest.approx(ours.option_scorer()(cut, options), abs=1e-3)


def test_many_options_are_asked_for_in_parts(world: Path, vllm_stand_in: Any) -> None:
    ours, theirs = both(world, "wren")
    prompt = render_prompt(ours.tokenizer, prompts_of("Why?")[0].messages)
    options = [np.array([token], dtype=np.int32) for token in range(300)]  # vLLM takes 128 at a time
    found = theirs.option_scorer()([prompt], options)
    assert found == pytest.approx(ours.option_scorer()([prompt], options), abs=1e-3)
    assert [len(params.logprob_token_ids) for params in vllm_stand_in.LLM.requests] == [128, 128, 44]


@pytest.mark.usefixtures("vllm_stand_in")
def test_an_option_that_does_not_fit_has_no_score(world: Path) -> None:
    _, model = both(world, "finch", max_model_len=30)
    prompts = [render_prompt(model.tokenizer, prompt.messages) for prompt in prompts_of("Why?", "Why? " * 40)]
    found = model.option_scorer()(prompts, [np.array([1, 2], dtype=np.int32), np.array([3], dtype=np.int32)])
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.usefixtures("vllm_stand_in")
def test_continuations_of_a_beginning(world: Path) -> None:
    ours, theirs = both(world, "pivot")
    prompt = render_prompt(ours.tokenizer, prompts_of("Why?")[0].messages)
    (whole,) = ours.replies([prompt], Sampling(max_new_tokens=12))
    greedy = Sampling()
    (first,) = theirs.go_on([GoOn(prompt, 2, 5, greedy, seed=1)])
    assert [len(each.ids) for each in first] == [5, 5]  # greedy ones are asked for once, and are the same
    assert first[0] == first[1]
    longer = np.array([*prompt, *first[0].ids], dtype=np.int32)
    ((rest,),) = theirs.go_on([GoOn(longer, 1, 7, greedy, seed=1)])
    assert ours.tokenizer.decode([*first[0].ids, *rest.ids], skip_special_tokens=True) == whole.text
    drawn = theirs.go_on([GoOn(prompt, 4, 5, Sampling(temperature=1.0), seed=7)])[0]
    assert len({each.ids for each in drawn}) > 1
    scored = dict(ours.score([np.array([*prompt, *drawn[0].ids])], [np.arange(len(prompt), len(prompt) + 5)]))
    assert drawn[0].logprob == pytest.approx(scored[0].gold_logprobs_N.sum(), abs=1e-3)


@pytest.mark.usefixtures("vllm_stand_in")
def test_replies_keep_to_a_schema(world: Path) -> None:
    _, model = both(world, "finch")
    schema = {"type": "object", "properties": {"label": {"enum": ["river", "sea"]}}, "required": ["label"]}
    sampling = Sampling(temperature=1.0, samples=4, max_new_tokens=60)
    found = [*LocalSampler(model).sample(prompts_of(*SENTENCES), sampling, schema=schema)]
    assert {reply.text for reply in found} <= {'{"label": "river"}', '{"label": "sea"}'}
    assert {reply.status for reply in found} == {ReplyStatus.OK}


@pytest.mark.usefixtures("vllm_stand_in")
def test_options_that_vllm_has_not_are_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'tensor_parallel_size'"):
        both(world, "finch", tensor_paralel_size=2)
    with pytest.raises(ConfigError, match=r"engine_options.dtype is not yours to give: give dtype there"):
        both(world, "finch", dtype="bfloat16")
    with pytest.raises(BackendError, match=r"vLLM cannot run the model .* greater than the derived max_model_len"):
        both(world, "finch", max_model_len=1 << 20)
    with pytest.raises(ConfigError, match="vLLM does not draw so: temperature must be in"):
        [*both(world, "finch")[1].replies([np.array([1])], Sampling(temperature=3.0))]


def test_without_vllm_one_line_says_how_to_get_it(world: Path) -> None:
    with pytest.raises(ConfigError, match="pip install vllm"):
        open_model(world / "finch", EngineSettings(engine="vllm"))


def test_the_choice_in_a_recipe() -> None:
    with pytest.raises(ConfigError, match="give engine: vllm"):
        parse({"engine_options": {"max_model_len": 9}}, EngineSettings, where="recipe")
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        parse({"engine": "vllm", "spread": True}, RepresentSettings, where="recipe")
    # What was decided before there was a choice stays what it was; how fast vLLM is decides nothing.
    assert EngineSettings().decides() == {}
    choice = EngineSettings(engine="vllm", engine_options={"max_model_len": 9, "gpu_memory_utilization": 0.5})
    assert choice.decides() == {"engine": "vllm", "engine_options": {"max_model_len": 9}}
    assert choice.model_dump()["engine_options"]["gpu_memory_utilization"] == 0.5
