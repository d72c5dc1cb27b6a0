"""The experiment behind docs/search.md: does a small pair make a frozen larger model better, and by which search?

RUN/world/            the large model, trained once and then frozen, and the prompts
RUN/pair-0/ ...       of every guide seed: the small model untuned, and tuned by DPO on pairs that the reward labels
RUN/replies/<arm>/    of every arm: a line per prompt and guide seed, with its reward, and what it cost
RUN/results.json, table.md
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consilience.config import load_recipe
from consilience.errors import BackendError
from consilience.models import load_model
from consilience.pipelines.tiny import reviews
from consilience.pipelines.tiny.guides import large_architecture, small_architecture, tune
from consilience.pipelines.tiny.models import TinyModel, train_tiny
from consilience.pipelines.weak_to_strong_arms import LARGE, TUNED, UNTUNED, Arms, answer_apart, begin_worker
from consilience.pipelines.weak_to_strong_recipe import SearchRecipe
from consilience.pipelines.weak_to_strong_results import summarize, table_of
from consilience.records import Conversation, read_rows, write_jsonl
from consilience.rng import seed_of, stream
from consilience.run import RunFolder, open_run, write_json, write_text
from consilience.search.tree import rare_collections

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SearchExperiment:
    """Where a finished run left what it found."""

    run: Path
    results: Mapping[str, Any]
    table: str


def search_recipe(
    path: Path, out: Path, overrides: Sequence[str] = (), *, on_progress: OnProgress = lambda what, done, total: None
) -> SearchExperiment:
    """Runs the experiment of the recipe at `path` into the run folder `out`, or goes on with the run that is there."""
    recipe = load_recipe(path, SearchRecipe, overrides)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    settings = recipe.model_dump(mode="json", by_alias=True, exclude={"title", "note", "threads", "processes", "batch"})
    with open_run(out, settings, {}) as run, rare_collections():
        return _Experiment(recipe, run, on_progress).carry_out()


class _Experiment:
    """One run: the stages, in order."""

    def __init__(self, recipe: SearchRecipe, run: RunFolder, on_progress: OnProgress) -> None:
        self.recipe, self.run, self.on_progress = recipe, run, on_progress

    def carry_out(self) -> SearchExperiment:
        self.world = self.run.stage("world", self._make_world)
        self.pairs = [
            self.run.stage(f"pair-{seed}", functools.partial(self._make_pair, seed))
            for seed in range(self.recipe.reviews.guide_seeds)
        ]
        missing = [arm for arm in self.recipe.arms if not (self.run.path / "replies" / arm).is_dir()]
        if self.recipe.processes > 1 and len(missing) > 1:
            self._answer_side_by_side(missing)
        rows = {arm: self._replies(arm, self._answer) for arm in self.recipe.arms}
        results = summarize(rows, self.recipe)
        table = table_of(results)
        write_json(self.run.path / "results.json", results)
        write_text(self.run.path / "table.md", table + "\n")
        return SearchExperiment(self.run.path, results, table)

    def _make_world(self, folder: Path) -> None:
        settings, seed = self.recipe.reviews, self.recipe.seed
        chats = list(reviews.draw_chats(stream(seed, "reviews", "chats"), settings.chats))
        seen = {chat.messages[0].content for chat in chats}
        rng = stream(seed, "reviews", "prompts")
        prompts: dict[str, None] = {}
        for kind in reviews.HOW_MANY:
            wanted = len(prompts) + settings.prompts
            while len(prompts) < wanted:
                prompts[reviews.draw_prompt(rng, kind)] = None  # most of the 3,360 are in the training data
        write_jsonl(folder / "prompts.jsonl", ({"prompt": prompt, "seen": prompt in seen} for prompt in prompts))
        self._train(LARGE, large_architecture, chats, folder / LARGE, settings.large_steps, seed)

    def _make_pair(self, seed: int, folder: Path) -> None:
        settings = self.recipe.reviews
        own = seed_of(self.recipe.seed, "pair", str(seed))
        chats = list(reviews.draw_chats(stream(own, "reviews", "chats"), settings.chats // 2))
        self._train(f"small {seed}", small_architecture, chats, folder / UNTUNED, settings.small_steps, own)
        tune(
            load_model(folder / UNTUNED),
            folder / TUNED,
            settings,
            own,
            on_step=lambda step, steps: self.on_progress(f"dpo {seed}", step, steps),
        )

    def _train(
        self, name: str, architecture: Any, chats: list[Conversation], folder: Path, steps: int, seed: int
    ) -> None:
        special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        recipe = TinyModel(
            architecture=architecture,
            tokenizer=reviews.tokenizer,
            vocabulary=0,
            special=special,
            template=reviews.TEMPLATE,
            spelling={},
            chats={},
            steps=steps,
        )
        step = functools.partial(self.on_progress, f"train {name}")
        train_tiny(name, recipe, chats, folder, spelling=[], seed=seed, steps=steps, on_step=step)

    def _replies(self, arm: str, answer: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        folder = self.run.stage(f"replies/{arm}", lambda partial: write_jsonl(partial / "replies.jsonl", answer(arm)))
        return [row for _, row in read_rows(folder / "replies.jsonl")]

    def _answer(self, arm: str) -> list[dict[str, Any]]:
        return self._arms.answer(arm, lambda done, total: self.on_progress(arm, done, total))

    @functools.cached_property
    def _arms(self) -> Arms:
        return Arms(self.recipe, self.world, self.pairs)

    def _answer_side_by_side(self, arms: Sequence[str]) -> None:
        """The stages of `arms`: other processes answer, and this one alone writes."""
        # Forked, a process would inherit threads of torch that do not run in it.
        spawn = multiprocessing.get_context("spawn")
        workers = min(self.recipe.processes, len(arms))
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=begin_worker) as pool:
            found: dict[str, Future[list[dict[str, Any]]]] = {
                arm: pool.submit(answer_apart, self.recipe, self.world, self.pairs, arm) for arm in arms
            }
            for done, arm in enumerate(arms):
                self.on_progress(f"arms, {workers} at a time", done, len(arms))
                try:
                    self._replies(arm, lambda arm: found[arm].result())
                except BrokenProcessPool:
                    raise BackendError(
                        "a process that answered for an arm was killed, perhaps because memory ran out. Give the same "
                        "command again, or with --set processes=1: the arms that are done are kept."
                    ) from None
