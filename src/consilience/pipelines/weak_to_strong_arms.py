"""An arm of the search experiment: its replies to all prompts under every guide, their rewards and what they cost."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consilience.models import load_model
from consilience.pipelines.tiny import reviews
from consilience.pipelines.tiny.guides import label_logprobs
from consilience.pipelines.tiny.models import IGNORED, encode
from consilience.pipelines.weak_to_strong_recipe import ArmSettings, SearchRecipe
from consilience.records import Conversation, Message, read_rows
from consilience.rng import seed_of
from consilience.search import METHODS, Models, Prompt, Result, TreeModel, search
from consilience.search.tree import rare_collections

LARGE, TUNED, UNTUNED = "large", "tuned", "untuned"


class Arms:
    """The models of a finished world and its pairs, which every arm asks in its own way."""

    def __init__(self, recipe: SearchRecipe, world: Path, pairs: Sequence[Path]) -> None:
        self.recipe, self.world, self.pairs = recipe, world, pairs
        self.large = self._load(world / LARGE)

    def _load(self, folder: Path) -> TreeModel:
        return TreeModel(load_model(folder, name=folder.name))

    def answer(self, arm: str, on_seed: Callable[[int, int], None] = lambda done, total: None) -> list[dict[str, Any]]:
        """A row for every guide seed and prompt: the reply, its reward, and what it cost."""
        settings = self.recipe.arms[arm]
        seeds = range(len(self.pairs))
        rows: list[dict[str, Any]] = []
        for seed in seeds:
            models = self._models(settings, self.pairs[seed])
            searches, own = METHODS[settings.method](models, self.recipe.settings_of(arm))
            prompts = self._prompts(settings.kinds, seed, apart=own.mode == "published")
            for result in search(searches, prompts, own, batch=self.recipe.batch):
                assert isinstance(result, Result)
                rows.append({"seed": seed, "prompt": result.id} | _measured(result))
            cost = _cost(models, len(prompts))
            likelihood = self._likelihood([row for row in rows if row["seed"] == seed])
            for row, nats in zip([row for row in rows if row["seed"] == seed], likelihood, strict=True):
                row |= {"nats_per_token": nats} | cost
            on_seed(seed + 1, len(seeds))
        return rows

    def _prompts(self, kinds: Sequence[str], seed: int, *, apart: bool) -> list[Prompt]:
        """The prompts; `apart` with a seed each, for the published draws follow from the seed alone."""
        found = [row["prompt"] for _, row in read_rows(self.world / "prompts.jsonl")]
        names = ("search", str(seed))
        return [
            Prompt(prompt, (Message("user", prompt),), seed_of(self.recipe.seed, *names, *([prompt] if apart else [])))
            for prompt in found
            if prompt.split()[0] in kinds
        ]

    def _models(self, arm: ArmSettings, folder: Path) -> Models:
        tuned, untuned = self._load(folder / TUNED), self._load(folder / UNTUNED)
        writers = {LARGE: self.large, TUNED: tuned, UNTUNED: untuned}
        guides = {"pair": (tuned, untuned), "swapped": (untuned, tuned), "same": (untuned, untuned)}
        for model in (self.large, tuned, untuned):
            model.reset()
        return Models(writers[arm.from_], *guides[arm.guide])

    def _likelihood(self, rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """What the large model takes a reply to cost, in nats a token with its end; how far the search went from it."""
        chats = [
            Conversation(str(n), (Message("user", row["prompt"]), Message("assistant", row["reply"])))
            for n, row in enumerate(rows)
        ]
        ids_NT, labels_NT = encode(self.large.chat_model.tokenizer, chats)
        with torch.inference_mode():
            logprobs_NT = label_logprobs(self.large.model, ids_NT, labels_NT)
        nats: list[float] = (-logprobs_NT.sum(-1) / (labels_NT != IGNORED).sum(-1)).tolist()
        return nats


def _measured(result: Result) -> dict[str, Any]:
    best = result.replies[0]
    text = best.text.strip()
    return {
        "reply": text,
        "status": str(best.finish),
        "reward": reviews.reward(text),
        "correct": reviews.is_correct(result.id, text),
        "tokens": best.tokens,
        "score": best.score,
    }


def _cost(models: Models, prompts: int) -> dict[str, float]:
    small = sum(model.counts.positions for model in {models.tuned, models.untuned} - {models.large} if model)
    return {"large_positions": models.large.counts.positions / prompts, "small_positions": small / prompts}


def begin_worker() -> None:
    """One thread for each of several processes; Ctrl-C ends it without a word, and so does the end of its parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def answer_apart(recipe: SearchRecipe, world: Path, pairs: Sequence[Path], arm: str) -> list[dict[str, Any]]:
    with rare_collections():
        return Arms(recipe, world, pairs).answer(arm)
