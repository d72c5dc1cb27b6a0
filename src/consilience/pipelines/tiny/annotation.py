"""A small annotation project to try everything on: invented reviews, gold, and a tiny chat model that codes them badly.

FOLDER/recipe.yaml codebook.yaml     as a user would fill them in
FOLDER/reviews.csv                   600 reviews with place and year
FOLDER/gold.csv                      the right labels of 240 of them, drawn at random: 60 to choose by, 180 to test
FOLDER/models/tiny/                  a chat model of 200,000 weights, trained here under the prompt it is asked with
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers import LlamaConfig, PreTrainedConfig

from consilience.annotate.codebook import Codebook
from consilience.annotate.strategies import Ask, Wording, answer_of, zero_shot
from consilience.config import parse
from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.models import SHAPE, TinyModel, train_tiny
from consilience.pipelines.tiny.world import PLACES, WORTH
from consilience.records import Conversation, Message
from consilience.rng import stream

REVIEWS, GOLD, DEV = 600, 240, 60
TRAINED_ON, STEPS, NOISE = 2_000, 90, 0.35
CODEBOOK: dict[str, Any] = {
    "variable": "verdict",
    "question": "What does the guest think of the place?",
    "unit": "review",
    "labels": [
        {"name": "positive", "definition": "good words outweigh bad ones"},
        {"name": "negative", "definition": "bad words outweigh good ones"},
        {"name": "mixed", "definition": "they are even"},
    ],
}
RECIPE: dict[str, Any] = {
    "title": "Verdicts in 600 invented reviews, coded by a tiny model",
    "data": {"path": "reviews.csv", "id": "id"},
    "models": {"tiny": {"path": "models/tiny"}},
    "strategies": {
        "zero_shot": {},
        "contextual": {"kind": "zero_shot", "correction": "contextual"},
        "spoken": {"kind": "zero_shot", "answer": "free", "max_new_tokens": 8},
    },
    "gold": "gold.csv",
}
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def make_annotation_example(
    folder: Path, *, on_progress: Callable[[str, int, int], None] = lambda what, done, total: None, steps: int = STEPS
) -> None:
    """Writes the project into `folder`, which holds nothing of these names yet; a minute on one core."""
    folder.mkdir(parents=True, exist_ok=True)
    _train(folder / "models" / "tiny", steps, on_progress)
    rng = stream(0, "annotation example")
    reviews = [_review(rng) for _ in range(REVIEWS)]
    with (folder / "reviews.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "place", "year"])
        writer.writerows([f"r{i}", text, place, year] for i, (text, place, year, _) in enumerate(reviews, start=1))
    with (folder / "gold.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label"])
        for number, i in enumerate(rng.permutation(REVIEWS)[:GOLD].tolist()):
            writer.writerow([f"r{i + 1}", "dev" if number < DEV else "test", reviews[i][3]])
    for name, tree in (("codebook.yaml", CODEBOOK), ("recipe.yaml", RECIPE)):
        (folder / name).write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")


def _review(rng: np.random.Generator) -> tuple[str, str, int, str]:
    """Text, place, year and the right label; guests grow more critical with the years."""
    year = int(rng.integers(2015, 2025))
    place = str(rng.choice(PLACES))
    chances = np.array([2.0 ** (0.12 * worth * (2020 - year)) for worth in WORTH.values()])
    words = [str(word) for word in rng.choice([*WORTH], size=3, replace=False, p=chances / chances.sum())]
    total = sum(WORTH[word] for word in words)
    label = "positive" if total > 0 else "negative" if total < 0 else "mixed"
    return f"We stayed in {year}. The {place} was {words[0]}, {words[1]} and {words[2]}.", place, year, label


def _train(folder: Path, steps: int, on_progress: Callable[[str, int, int], None]) -> None:
    """A model that errs: of the labels that it learns from, NOISE are another one, most often positive."""
    rng, book = stream(0, "annotation model"), parse(CODEBOOK, Codebook, where="codebook")
    chats = []
    for i in range(TRAINED_ON):
        text, _, _, label = _review(rng)
        if rng.random() < NOISE:
            label = str(rng.choice(book.names, p=[0.6, 0.2, 0.2]))
        ask = Ask(codebook=book, text=text, wording=Wording(), order=(0, 1, 2))
        turns = (*zero_shot(ask).messages, Message("assistant", answer_of(ask, label)))
        chats.append(Conversation(str(i), turns))
    recipe = TinyModel(
        architecture=_llama, tokenizer=tokenizers.byte_level, vocabulary=700, special=SPECIAL,
        template=tokenizers.CHATML, spelling={}, chats={}, steps=steps,
    )  # fmt: skip
    train_tiny(
        "tiny", recipe, chats, folder, spelling=chats[:300], seed=0, steps=steps,
        on_step=lambda step, steps: on_progress("training a tiny model", step, steps),
    )  # fmt: skip


def _llama(**settings: Any) -> PreTrainedConfig:
    return LlamaConfig(
        num_key_value_heads=SHAPE["num_attention_heads"], **{**SHAPE, "max_position_embeddings": 512}, **settings
    )
