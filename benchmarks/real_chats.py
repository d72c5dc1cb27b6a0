"""Fusion on real chats and real tokenizers: three sources and a pivot, each trained on one chat model's replies.

    python benchmarks/real_chats.py --chats ../shared/data/chats --out RUN [--width 256 --layers 4 --epochs 6] [--json]

The folder of `--chats` holds one file of real replies per chat model, all to the same prompts. The prompts are split in
three: some to train the models from scratch (each on the replies of its own chat model), some to fuse on (replies of
the three sources' chat models), some to evaluate on. Differences are in nats per byte, paired over prompts.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.convert_slow_tokenizer import TikTokenConverter

from consilience.chat import render
from consilience.cli.progress import watching
from consilience.cli.tables import fusion_table
from consilience.fuse import SupervisedExamples, collate, fusion_objective
from consilience.pipelines.fuse import fuse_recipe
from consilience.records import Conversation, Message, row_of, write_jsonl
from consilience.rng import seed_of, stream
from consilience.train import TrainSettings, train

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ ' [INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
ROLES = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Maker:
    """A model of this benchmark: whose replies it is trained on, and what it is made of."""

    chat_model: str
    tokenizer: Callable[[list[str], Path], PreTrainedTokenizerFast]
    architecture: Callable[..., Any]


def mistral(texts: list[str], scratch: Path) -> PreTrainedTokenizerFast:
    """Mistral-7B's own sentencepiece model, 32,000 pieces."""
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.copy(packaged("mistral_common", "data/tokenizer.model.v1"), scratch / "tokenizer.model")
    tokenizer = LlamaTokenizer.from_pretrained(scratch)
    tokenizer.pad_token, tokenizer.chat_template = "<unk>", INST
    return tokenizer


def qwen(texts: list[str], scratch: Path) -> PreTrainedTokenizerFast:
    """Qwen's byte-level BPE, 151,646 tokens."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ranks = packaged("dashscope", "resources/qwen.tiktoken")
    backend = TikTokenConverter(vocab_file=str(ranks), pattern=QWEN_PATTERN, extra_special_tokens=specials).converted()
    backend.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )


def byte_level(texts: list[str], scratch: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 8,000 tokens, trained on the model's own texts."""
    return trained(texts, 8_000, pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel())


def metaspace(texts: list[str], scratch: Path) -> PreTrainedTokenizerFast:
    """A BPE of 16,000 pieces with '▁' for the blank, trained on the model's own texts."""
    return trained(texts, 16_000, pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace())


def trained(texts: list[str], size: int, pieces: Any, decoder: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pieces, decoder
    alphabet = pre_tokenizers.ByteLevel.alphabet() if isinstance(pieces, pre_tokenizers.ByteLevel) else []
    special = ["<unk>", "</s>", "<pad>"]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", chat_template=ROLES
    )


def packaged(package: str, name: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed: pip install {package}, or give --tokenizers with tokenizers made before")
    return Path(spec.origin).parent / name


MAKERS = {
    "pivot": Maker("openchat-v3.1-13b", mistral, LlamaConfig),
    "starling": Maker("Starling-LM-7B-alpha", byte_level, GPT2Config),
    "mixtral": Maker("Mixtral-8x7B-Instruct-v0.1", metaspace, LlamaConfig),
    "qwen": Maker("Qwen1.5-72B-Chat", qwen, Qwen2Config),
}
SOURCES = [name for name in MAKERS if name != "pivot"]


def read_chats(folder: Path, longest: int | None, limit: int | None) -> dict[str, list[Conversation]]:
    """By model, its chat model's real chats, one per prompt; only prompts that every reply to is short enough."""
    chats = {}
    for name, maker in MAKERS.items():
        with gzip.open(folder / f"{maker.chat_model}.jsonl.gz", "rt", encoding="utf-8") as lines:
            turns = [json.loads(line)["messages"] for line in lines]
        chats[name] = [
            Conversation(f"{maker.chat_model}/{i}", tuple(Message(**turn) for turn in chat), maker.chat_model)
            for i, chat in enumerate(turns)
        ]
    short = [i for i, row in enumerate(zip(*chats.values())) if longest is None or max(map(size_of, row)) <= longest]
    return {name: [mine[i] for i in short[:limit]] for name, mine in chats.items()}


def size_of(chat: Conversation) -> int:
    return sum(len(message.content.encode()) for message in chat.messages)


def make_tokenizer(name: str, chats: list[Conversation], tokenizers: Path) -> None:
    """Saves the tokenizer of model `name` unless it is there: a machine without the packages can be given it."""
    if not (tokenizers / name).is_dir():
        texts = [message.content for chat in chats for message in chat.messages]
        MAKERS[name].tokenizer(texts, tokenizers / f"{name}-scratch").save_pretrained(tokenizers / name)


def make_model(
    name: str, chats: list[Conversation], folder: Path, tokenizers: Path, args: argparse.Namespace, on_progress: Any
) -> None:
    """Trains model `name` from scratch on `chats` and saves it as an ordinary checkpoint."""
    maker = MAKERS[name]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizers / name)
    shared = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if maker.architecture is GPT2Config:
        shape = {
            "n_embd": args.width,
            "n_layer": args.layers,
            "n_head": args.width // 32,
            "n_positions": args.max_tokens,
        }
        config = GPT2Config(
            vocab_size=len(tokenizer), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **shape, **shared
        )
    else:
        config = maker.architecture(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            intermediate_size=3 * args.width,
            num_hidden_layers=args.layers,
            num_attention_heads=args.width // 32,
            num_key_value_heads=max(1, args.width // 64),
            max_position_embeddings=args.max_tokens,
            tie_word_embeddings=True,
            **shared,
        )
    torch.manual_seed(seed_of(args.seed, name))
    model = AutoModelForCausalLM.from_config(config)
    rendered = [render(tokenizer, chat.messages, max_tokens=args.max_tokens) for chat in chats]
    settings = TrainSettings(
        epochs=args.epochs,
        max_steps=args.steps,
        batch_size=args.batch_size,
        micro_batch_size=args.micro_batch_size,
        learning_rate=args.learning_rate,
        warmup=0.05,
        weight_decay=0.1,
        dtype="bfloat16" if torch.cuda.is_available() else "float32",
    )
    trained_model, _ = train(
        model,
        SupervisedExamples([chat.id for chat in chats], rendered),
        collate,
        fusion_objective("ce"),
        settings,
        folder,
        seed=seed_of(args.seed, name, "order"),
        on_step=lambda step, steps, loss: on_progress(f"train {name} from scratch", step, steps),
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    trained_model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    trained_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def recipe_of(args: argparse.Namespace) -> dict[str, Any]:
    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return {
        "title": "Real chats, real tokenizers, small models from scratch",
        "note": f"Small models ({args.layers} layers of width {args.width}) trained from scratch on real replies.",
        "pivot": "pivot",
        "sources": {name: name for name in SOURCES},
        "data": {"path": "fuse.jsonl"},
        "held_out": {"path": "held_out.jsonl"},
        "represent": {"top_k": 10, "max_tokens": args.max_tokens},
        "select": {"per": args.per, "gold_weight": args.gold_weight, "teach": "tokens"},
        "train": {
            "epochs": args.fuse_epochs,
            "max_steps": args.steps,
            "batch_size": args.batch_size,
            "micro_batch_size": args.micro_batch_size,
            "learning_rate": args.learning_rate / 5,
            "dtype": dtype,
        },
        "targets": {
            "many_to_one": True,
            "controls": ["sft"],
            "variants": {"qwen_exact": {"sources": ["qwen"], "vocabulary": "exact"}},
        },
        "merges": {
            "linear": {"method": "linear"},
            "varm": {"method": "varm"},
            "sce": {"method": "sce", "density": 1.0},
            "ties": {"method": "ties", "density": 0.5},
        },
        "evaluate": {"max_tokens": args.max_tokens},
        "result": "sce",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chats", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokenizers", type=Path, help="where the tokenizers are, or are put (default: in --out)")
    parser.add_argument("--prompts", type=int, help="use only so many prompts")
    parser.add_argument("--longest", type=int, help="use only prompts whose chats have at most so many bytes")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--epochs", type=float, default=6, help="from scratch")
    parser.add_argument("--fuse-epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, default=-1, help="stop every training after so many steps")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="from scratch; a fifth of it for fusion")
    parser.add_argument("--per", default="sequence")
    parser.add_argument("--gold-weight", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only-tokenizers", action="store_true", help="make the tokenizers and stop")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    tokenizers = args.tokenizers or args.out / "tokenizers"
    args.out.mkdir(parents=True, exist_ok=True)

    chats = read_chats(args.chats, args.longest, args.prompts)
    prompts = stream(args.seed, "prompts").permutation(len(chats["pivot"])).tolist()
    a, b = round(0.6 * len(prompts)), round(0.85 * len(prompts))
    scratch, fuse, held_out = prompts[:a], prompts[a:b], prompts[b:]
    write_jsonl(args.out / "fuse.jsonl", (row_of(chats[name][i]) for i in fuse for name in SOURCES))
    write_jsonl(args.out / "held_out.jsonl", (row_of(chats[name][i]) for i in held_out for name in SOURCES))
    for name in MAKERS:
        make_tokenizer(name, [chats[name][i] for i in scratch], tokenizers)
    if args.only_tokenizers:
        return
    with watching() as on_progress:
        for name in MAKERS:
            if not (args.out / name / "config.json").is_file():
                make_model(name, [chats[name][i] for i in scratch], args.out / name, tokenizers, args, on_progress)
        recipe = args.out / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(recipe_of(args), sort_keys=False))
        result = fuse_recipe(recipe, args.out / f"run-{args.per}-{args.gold_weight}", on_progress=on_progress)
    print(fusion_table(result.results))
    for name, found in result.results["alignment"].items():
        matched, mapped = found["matched"], found["mapped_mass"]
        print(f"{name}: {matched['value']:.3f} of the pivot's positions matched, {mapped['value']:.3f} of mass mapped")
    if args.json:
        print(json.dumps({key: result.results[key] for key in ("models", "alignment", "seconds", "versions")}))


if __name__ == "__main__":
    main()
