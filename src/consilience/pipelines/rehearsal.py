"""A rehearsal of a fusion: the recipe's whole path in a minute, on tiny random models of the same architectures.

What is found beside the recipe is used: a model's own tokenizer and chat template, the first of the recipe's chats. For
what is on the hub the recipe says the architecture (`assumed.architectures`), and tokenizers and chats are made up: a
rehearsal asks nothing of the hub.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig

from consilience.models import load_tokenizer
from consilience.pipelines.architectures import LONGEST, architecture_of, shrunk
from consilience.pipelines.data import rows_of
from consilience.pipelines.places import TINY, Places
from consilience.pipelines.recipe import PIVOT, DataSettings, FuseRecipe, HeldOutSettings
from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.world import SKILLS, draw_chats
from consilience.records import Conversation, read_conversations, row_of, write_jsonl
from consilience.rng import seed_of, stream

CHATS, HELD_OUT, QUESTIONS = 48, 12, 4  # taken of the recipe's own
PER_SKILL = 12  # made up where the recipe's own are not at hand
# Gemma: "<bos><start_of_turn>user\nprompt<end_of_turn>\n<start_of_turn>model\nreply<end_of_turn>\n"
GEMMA = (
    "{{ bos_token }}{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n{{ message.content }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
WORDS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
BYTES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
TURNS = {"bos_token": "<bos>", "eos_token": "<end_of_turn>", "pad_token": "<pad>", "unk_token": "<unk>"}

Made = tuple[Callable[..., Any], str, tokenizers.Special]
TOKENIZERS: dict[str, Made] = {  # by the architecture's `model_type`; Llama's kind for the others
    "gemma2": (tokenizers.metaspace, GEMMA, TURNS),
    "mpt": (tokenizers.byte_level, tokenizers.CHATML, BYTES),
    "qwen2": (tokenizers.byte_level, tokenizers.CHATML, BYTES),
    "qwen3": (tokenizers.byte_level, tokenizers.CHATML, BYTES),
}
LIKE_LLAMA: Made = (tokenizers.metaspace, tokenizers.BRACKETS, WORDS)


HERE: dict[str, object] = {
    "engine": "transformers",
    "engine_options": {},
    "ray": None,
}  # a laptop has neither GPUs nor a cluster


def rehearsed(recipe: FuseRecipe, places: Places) -> FuseRecipe:
    """`recipe` on the models and chats that `make_rehearsal` writes, two steps of training long; else as it is."""
    named = {"pivot": f"{TINY}{PIVOT}", "sources": {name: f"{TINY}{name}" for name in recipe.sources}}
    held_out = {"share": 0.25} if recipe.held_out.path is None else {"path": f"{TINY}held_out.jsonl"}
    tasks = {
        name: task.model_copy(update={"path": str(places.file(task.path)), "limit": QUESTIONS, "max_new_tokens": 8})
        for name, task in recipe.tasks.items()
        if places.file(task.path).is_file()
    }
    return recipe.model_copy(
        update=named
        | {
            "title": f"Rehearsal: {recipe.title}",
            "note": "Tiny random models. That it runs is what is shown; its numbers say nothing.",
            "tiny": None,
            "data": DataSettings(
                path=f"{TINY}chats.jsonl", text_key=recipe.data.text_key, **_group_key(recipe.data, places)
            ),
            "held_out": HeldOutSettings(**held_out, **_group_key(recipe.held_out, places)),
            "represent": recipe.represent.model_copy(update=HERE | {"max_tokens": 128, "shard_conversations": 16}),
            "align": recipe.align.model_copy(update={"min_matched": 0.0}),
            "train": recipe.train.model_copy(update={"max_steps": 2, "batch_size": 4, "micro_batch_size": 2}),
            "targets": recipe.targets.model_copy(update={"max_new_tokens": 8}),
            "tasks": tasks,
            "evaluate": recipe.evaluate.model_copy(update={"max_tokens": 128}),
        }
    )


def _group_key(settings: DataSettings | HeldOutSettings, places: Places) -> dict[str, Any]:
    """The field of a chat's group, where the recipe names one and its own chats are here; made-up ones have `group`."""
    own = settings.path is not None and places.file(settings.path).exists()
    return {"group_key": settings.group_key} if own and "group_key" in settings.model_fields_set else {}


def make_rehearsal(
    recipe: FuseRecipe, places: Places, folder: Path, on_progress: Callable[[str, int, int], None]
) -> None:
    """Writes the models and chats of `rehearsed(recipe)` under `folder`.

    Raises `ConfigError` for a model of the hub whose architecture the recipe does not say.
    """
    chats = _chats(recipe, places)
    names = {PIVOT: recipe.pivot, **recipe.sources}
    for done, (name, path) in enumerate(names.items(), start=1):
        config = architecture_of(path, recipe.assumed.architectures, places)
        tokenizer = _tokenizer(path, config, chats, 300 + 20 * done, places)
        _make_model(config, tokenizer, folder / name, seed_of(recipe.seed, "rehearsal", name))
        on_progress("tiny models", done, len(names))
    if recipe.data.text_key:
        write_jsonl(folder / "chats.jsonl", ({recipe.data.text_key: chat.replies[-1]} for chat in chats))
    elif places.file(recipe.data.path).exists():
        write_jsonl(folder / "chats.jsonl", (row for _, row in islice(rows_of(recipe.data, places), CHATS)))
    else:
        write_jsonl(folder / "chats.jsonl", map(row_of, chats))
    if recipe.held_out.path:
        write_jsonl(folder / "held_out.jsonl", (row for _, row in islice(rows_of(recipe.held_out, places), HELD_OUT)))


def _chats(recipe: FuseRecipe, places: Places) -> Sequence[Conversation]:
    """The first of the recipe's chats, or made-up ones."""
    if places.file(recipe.data.path).exists() and not recipe.data.text_key:
        return read_conversations(places.file(recipe.data.path), limit=CHATS, split=recipe.data.split)
    rng = stream(recipe.seed, "rehearsal", "chats")
    return [chat for skill in SKILLS for chat in draw_chats(skill, PER_SKILL, rng)]


def _tokenizer(path: str, config: PreTrainedConfig, chats: Sequence[Conversation], size: int, places: Places) -> Any:
    if places.file(path).is_dir():
        return load_tokenizer(places.file(path))
    kind, template, special = TOKENIZERS.get(config.model_type, LIKE_LLAMA)
    return kind(chats, size, template, special)


def _make_model(config: PreTrainedConfig, tokenizer: Any, folder: Path, seed: int) -> None:
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shrunk(config, len(tokenizer), **ids))
    model.generation_config = GenerationConfig(**ids, max_length=LONGEST)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
