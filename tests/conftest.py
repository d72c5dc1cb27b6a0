"""A tiny random world: three chat models of other architectures, tokenizers and templates, chats, and a recipe."""

from __future__ import annotations

import json
import string
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

Json = dict[str, Any]

SENTENCES = (
    "The river carries cold water from the hills to the sea.",
    "A lamp stands on the table near the open window.",
    "Seven birds sat on the wire and sang until noon.",
    "Bread is made of flour, water, salt and time.",
    "She counted the stars and wrote the number down.",
    "Old maps show islands that no sailor ever found.",
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'system' %}[SYS] {{ m.content }} [/SYS]{% else %}[INST] {{ m.content }} [/INST]{% endif %}"
    "{% endfor %}"
)
HEADINGS = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models `pivot`, `wren` and `finch`, `chats.jsonl` and `questions.jsonl`."""
    folder = tmp_path_factory.mktemp("world")
    _make_models(folder)
    _write_lines(folder / "chats.jsonl", [_chat(i) for i in range(24)])
    _write_lines(folder / "questions.jsonl", [{"prompt": _ask(i), "answer": str(i)} for i in range(4)])
    return folder


@pytest.fixture(scope="session")
def recipe(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`recipe(**changes)` writes a recipe of two training steps; a mapping changes single keys of its block."""

    def write(**changes: Any) -> Path:
        tree: Json = {
            "pivot": str(world / "pivot"),
            "sources": {"wren": str(world / "wren"), "finch": str(world / "finch")},
            "data": {"path": str(world / "chats.jsonl")},
            "held_out": {"share": 0.25},
            "represent": {"top_k": 5, "shard_conversations": 8},
            "select": {"gold_weight": 0.5},
            "train": {"max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.01, "log_steps": 1},
            "threads": 1,
        }
        for key, value in changes.items():
            merges = isinstance(value, Mapping) and isinstance(tree.get(key), Mapping) and key != "sources"
            tree[key] = {**tree[key], **value} if merges else value
        path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return path

    return write


@pytest.fixture
def vllm_stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`tests/stand_ins/vllm` in the place of vLLM; its module."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "stand_ins"))
    import vllm

    vllm.LLM.requests.clear()
    yield vllm
    for name in [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]:
        del sys.modules[name]


class Answer(NamedTuple):
    """What a command left behind: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Json:
        """The last line of the output."""
        found: Json = json.loads(self.out.splitlines()[-1])
        return found


@pytest.fixture
def consilience(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """`consilience("fuse", ...)` runs the command in this process: an import of torch less than a subprocess."""
    from consilience.cli import main

    def run(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["consilience", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return Answer(int(stop.value.code or 0), *capfd.readouterr())

    return run


def _ask(i: int) -> str:
    return f"Tell me line {i}: {SENTENCES[i % 6][:10]}"


def _chat(i: int) -> Json:
    turns = [("user", _ask(i)), ("assistant", SENTENCES[i % 6])]
    if i % 4 == 0:
        turns += [("user", "And then?"), ("assistant", SENTENCES[(i + 1) % 6])]
    if i % 3 == 0:
        turns.insert(0, ("system", "Be brief."))
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"id": f"chat-{i}", "group": "even" if i % 2 == 0 else "odd", "messages": messages}


def _write_lines(path: Path, rows: list[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _make_models(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, LlamaConfig, Qwen2Config

    shape = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    spread = {"initializer_range": 0.3, "tie_word_embeddings": True}  # wide enough for models that disagree
    made: dict[str, tuple[Any, Any]] = {
        "pivot": (
            _tokenizer(_metaspace(), 140, BRACKETS, bos="<s>", eos="</s>", pad="<pad>", unk="<unk>"),
            lambda **ids: LlamaConfig(num_hidden_layers=2, **shape, **spread, **ids),
        ),
        "wren": (
            _tokenizer(_byte_level(), 340, HEADINGS, eos="<|endoftext|>", pad="<|pad|>"),
            lambda **ids: GPT2Config(n_embd=16, n_layer=1, n_head=2, **spread, **ids),
        ),
        "finch": (
            _tokenizer(_byte_level(), 400, CHATML, bos="<|im_start|>", eos="<|im_end|>", pad="<|pad|>"),
            lambda **ids: Qwen2Config(num_hidden_layers=1, **shape, **spread, **ids),
        ),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, (tokenizer, config) in made.items():
            ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
            model = AutoModelForCausalLM.from_config(config(vocab_size=len(tokenizer), **ids))
            model.generation_config = GenerationConfig(**ids)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)


def _metaspace() -> tuple[Any, list[str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return tokenizer, ["▁", *string.printable]


def _byte_level() -> tuple[Any, list[str]]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, pre_tokenizers.ByteLevel.alphabet()


def _tokenizer(untrained: tuple[Any, list[str]], size: int, template: str, **special: str) -> Any:
    from tokenizers import trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer, alphabet = untrained
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*special.values()], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokens = {f"{kind}_token": text for kind, text in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **tokens)
