"""The tiny world on disk: its data files, and checkpoints that plain transformers loads and chats with."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from consilience.pipelines import tiny
from consilience.pipelines.tiny.models import LONGEST, encode
from consilience.pipelines.tiny.world import LEXICON, SKILLS, draw_chats, prompt_of
from consilience.records import read_conversations
from consilience.rng import stream

SCALE = 0.02
CHAT = [{"role": "user", "content": "What is six plus nine?"}, {"role": "assistant", "content": "Quince (15), no?"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny.make_tiny_world(folder, seed=0, steps_scale=SCALE)
    return folder


@pytest.fixture(params=["pivot", "stars", "zorg", "sums"])
def checkpoint(request: pytest.FixtureRequest, world: Path) -> Path:
    return world / request.param


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_amounts(world):
    for name, per_skill in (("mixture", 300), ("held_out", 100)):
        chats = read_conversations(world / f"{name}.jsonl")
        assert {skill: sum(chat.group == skill for chat in chats) for skill in SKILLS} == dict.fromkeys(
            SKILLS, per_skill
        )
        assert len({chat.id for chat in chats}) == len(chats)
    for skill in SKILLS:
        task = rows(world / "tasks" / f"{skill}.jsonl")
        assert len({row["messages"][0]["content"] for row in task}) == len(task) == (20 if skill == "facts" else 150)
        assert all([turn["role"] for turn in row["messages"]] == ["user"] and row["answer"] for row in task)


def test_no_training_data_holds_a_prompt_of_a_task(tmp_path, monkeypatch):
    trained_on = {}
    monkeypatch.setattr(
        tiny,
        "train_tiny",
        lambda name, recipe, chats, folder, *, spelling, **_: trained_on.update({name: [*chats, *spelling]}),
    )
    tiny.make_tiny_world(tmp_path, seed=1, steps_scale=0.2)
    trained_on["mixture"] = read_conversations(tmp_path / "mixture.jsonl")
    held_out = {prompt_of(chat) for chat in read_conversations(tmp_path / "held_out.jsonl") if chat.group != "facts"}
    asked = {
        row["messages"][0]["content"]
        for skill in ("stars", "zorg", "sums")
        for row in rows(tmp_path / "tasks" / f"{skill}.jsonl")
    }
    assert asked.isdisjoint(held_out)
    assert set(trained_on) == {"mixture", "pivot", "stars", "zorg", "sums"}
    for chats in trained_on.values():
        assert {prompt_of(chat) for chat in chats}.isdisjoint(asked | held_out)


def test_the_seed_decides_every_byte(world, tmp_path):
    before = torch.random.get_rng_state()
    tiny.make_tiny_world(tmp_path, seed=0, steps_scale=SCALE)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = sorted(path.relative_to(world) for path in world.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert [name for name in files if (world / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_another_seed_draws_other_data(world, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "MODELS", {})
    tiny.make_tiny_world(tmp_path, seed=1)
    assert (tmp_path / "mixture.jsonl").read_bytes() != (world / "mixture.jsonl").read_bytes()


def test_progress_counts_every_step(tmp_path):
    told, only = [], {"zorg": tiny.MODELS["zorg"]}
    tiny.make_tiny_world(tmp_path, seed=0, models=only, on_progress=lambda *said: told.append(said), steps_scale=SCALE)
    assert told == [("zorg", step, 5) for step in (1, 2, 3, 4, 5)]  # 2 % of 250


@pytest.mark.parametrize(
    ("name", "architecture", "tokens"),
    [("pivot", "llama", 440), ("stars", "gpt2", 340), ("zorg", "qwen2", 620), ("sums", "llama", 520)],
)
def test_architectures_and_vocabularies(world, name, architecture, tokens):
    model = AutoModelForCausalLM.from_pretrained(world / name)
    assert model.config.model_type == architecture
    assert model.get_input_embeddings().weight.shape == (tokens, 96)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert len(AutoTokenizer.from_pretrained(world / name)) == tokens


def answers(checkpoint: Path, task: list[dict]) -> list[str]:
    """Greedy replies to a task's prompts, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = tokenizer.apply_chat_template(
        [row["messages"] for row in task],
        add_generation_prompt=True,
        padding=True,
        return_tensors="pt",
        return_dict=True,
    )
    ids = model.generate(**prompts, do_sample=False, max_new_tokens=16)
    return tokenizer.batch_decode(ids[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True)


def test_answers_through_the_chat_template(world, checkpoint):
    replies = answers(checkpoint, rows(world / "tasks" / "sums.jsonl")[:3])
    assert len(replies) == 3  # at this length of training a model may know no more than how to end a reply
    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.slow
def test_experts_know_their_skill_and_the_pivot_something_of_all(tmp_path):
    tiny.make_tiny_world(tmp_path, seed=0)
    tasks = {skill: rows(tmp_path / "tasks" / f"{skill}.jsonl") for skill in SKILLS}

    def accuracy(name: str, skill: str) -> float:
        replies = answers(tmp_path / name, tasks[skill])
        right = [reply.strip() == row["answer"] for reply, row in zip(replies, tasks[skill], strict=True)]
        return sum(right) / len(right)

    for skill in ("stars", "zorg", "sums"):
        assert accuracy(skill, skill) > 0.8
        assert 0.1 < accuracy("pivot", skill) < 0.9
    assert accuracy("pivot", "facts") > 0.8
    assert accuracy("stars", "facts") < 0.3


def test_transformers_reads_the_tokenizer_as_it_was_saved(checkpoint):
    # AutoTokenizer rebuilds some model types' tokenizers; the tokenizers library reads the file as it stands.
    text = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(CHAT * 2, tokenize=False) + "(a)\n\nit's  12."
    plain = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text, add_special_tokens=False)
    assert AutoTokenizer.from_pretrained(checkpoint)(text, add_special_tokens=False)["input_ids"] == plain.ids
    assert Tokenizer.from_file(str(checkpoint / "tokenizer.json")).decode(plain.ids, skip_special_tokens=False) == text


def test_a_prompt_is_a_prefix_of_the_chat_and_the_reply_ends_in_eos(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for skill in SKILLS:
        for chat in draw_chats(skill, 100, stream(0, "test", skill)):
            turns = [{"role": message.role, "content": message.content} for message in chat.messages]
            prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
            whole = tokenizer.apply_chat_template(turns, return_dict=False)
            assert whole[: len(prompt)] == prompt
            assert len(whole) <= LONGEST
            ids, labels = encode(tokenizer, [chat])
            learnt = labels[labels >= 0].tolist()
            assert tokenizer.decode(learnt).strip() == chat.replies[0] + tokenizer.eos_token
            assert ids[0].tolist() == prompt + learnt


def test_the_zorg_expert_reads_whole_words_and_the_pivot_pieces(world):
    coarse, fine = (AutoTokenizer.from_pretrained(world / name) for name in ("zorg", "pivot"))
    assert {len(coarse.tokenize(" " + word)) for word in LEXICON.values()} == {1}
    assert min(len(fine.tokenize(" " + word)) for word in LEXICON.values()) >= 2
