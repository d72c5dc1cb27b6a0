"""The experiment behind docs/search.md: does a small pair make a frozen larger model better, and by which search?

    RUN/world/            the large model, trained once and then frozen, and the prompts
    RUN/pair-0/ ...       of every guide seed: the small model untuned, and tuned by DPO on pairs that the reward labels
    RUN/replies/<arm>/    of every arm: a line per prompt and guide seed, with its reward, and what it cost
    RUN/results.json, table.md

Shapes: B pairs, T tokens.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from consilience.chat import render_prompt
from consilience.config import Settings, known, load_recipe, parse
from consilience.errors import BackendError, ConfigError, pick
from consilience.models import ChatModel, load_model
from consilience.pipelines.tiny import reviews
from consilience.pipelines.tiny.models import IGNORED, TinyModel, encode, train_tiny
from consilience.prefer.losses import LossSettings, PairLogprobs, pair_loss
from consilience.records import Conversation, Message, read_rows, write_jsonl
from consilience.rng import seed_of, stream
from consilience.run import RunFolder, open_run, write_json, write_text
from consilience.search import METHODS, Models, Prompt, Result, SearchSettings, TreeModel, search
from consilience.search.tree import rare_collections
from consilience.stats import Estimate, difference, mean

OnProgress = Callable[[str, int, int], None]
LARGE, TUNED, UNTUNED = "large", "tuned", "untuned"
LONGEST = 48  # tokens of a sampled reply; a correct one has at most 42


class ReviewsSettings(Settings):
    """The toy world, and how its models are made."""

    prompts: int = Field(96, ge=2, description="of each kind: all aspects, some of them")
    guide_seeds: int = Field(3, ge=1, description="small pairs, each trained anew; the large model stays")
    chats: int = Field(24_000, ge=64, description="to train models on")
    large_steps: int = Field(1_000, ge=1)
    small_steps: int = Field(300, ge=1)
    pairs: int = Field(4_096, ge=64, description="for DPO, of samples of the untuned small model")
    dpo_epochs: int = Field(2, ge=1)
    dpo_beta: float = Field(0.2, gt=0)
    dpo_learning_rate: float = Field(1e-3, gt=0)


class ArmSettings(Settings):
    """One way to a reply."""

    method: Annotated[str, known(lambda: METHODS, "search method")] = "cbs"
    from_: Literal["large", "tuned", "untuned"] = Field("large", alias="from", description="the model that writes")
    guide: Literal["pair", "same", "swapped"] = "pair"
    search: dict[str, Any] = {}
    kinds: tuple[Literal["all", "some"], ...] = reviews.HOW_MANY  # type: ignore[assignment]


class SearchRecipe(Settings):
    """The experiment: arms on the same prompts, under the same settings where an arm does not say otherwise."""

    title: str = "Weak-to-strong search on a toy"
    note: str | None = None
    reviews: ReviewsSettings = ReviewsSettings()
    search: dict[str, Any] = {}
    arms: dict[str, ArmSettings]
    against: tuple[str, ...] = Field((), description="arms that every other is compared with, in pairs")
    batch: int = Field(96, ge=1)
    level: float = Field(0.95, gt=0, lt=1)
    seed: int = 0
    threads: int | None = Field(None, ge=1)
    processes: int = Field(1, ge=1, description="arms answered at once, each by one thread; changes no result")

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        for name in self.arms:
            if not re.fullmatch(r"[\w ,.=-]+", name):
                raise ConfigError(f"{name!r} cannot name an arm's folder; expected letters, digits and ' ,.=-_'")
            self.settings_of(name)
        for name in self.against:
            pick(self.arms, name, "arm")
        return self

    def settings_of(self, arm: str) -> SearchSettings:
        """Those of the recipe with the arm's own on top."""
        return parse(self.search | self.arms[arm].search, SearchSettings, where=f"arms.{arm}.search")


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
        self._train(LARGE, _large, chats, folder / LARGE, settings.large_steps, seed)

    def _make_pair(self, seed: int, folder: Path) -> None:
        settings = self.recipe.reviews
        own = seed_of(self.recipe.seed, "pair", str(seed))
        chats = list(reviews.draw_chats(stream(own, "reviews", "chats"), settings.chats // 2))
        self._train(f"small {seed}", _small, chats, folder / UNTUNED, settings.small_steps, own)
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
    def _arms(self) -> _Arms:
        return _Arms(self.recipe, self.world, self.pairs)

    def _answer_side_by_side(self, arms: Sequence[str]) -> None:
        """The stages of `arms`: other processes answer, and this one alone writes."""
        # Forked, a process would inherit threads of torch that do not run in it.
        spawn = multiprocessing.get_context("spawn")
        workers = min(self.recipe.processes, len(arms))
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin_worker) as pool:
            found: dict[str, Future[list[dict[str, Any]]]] = {
                arm: pool.submit(_answer_apart, self.recipe, self.world, self.pairs, arm) for arm in arms
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


def _begin_worker() -> None:
    """One thread for each of several processes; Ctrl-C ends it without a word, and so does the end of its parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _answer_apart(recipe: SearchRecipe, world: Path, pairs: Sequence[Path], arm: str) -> list[dict[str, Any]]:
    with rare_collections():
        return _Arms(recipe, world, pairs).answer(arm)


class _Arms:
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
            logprobs_NT = _logprobs(self.large.model, ids_NT, labels_NT)
        nats: list[float] = (-logprobs_NT.sum(-1) / (labels_NT != IGNORED).sum(-1)).tolist()
        return nats


def _large(**settings: Any) -> LlamaConfig:
    return _llama(96, 3, **settings)


def _small(**settings: Any) -> LlamaConfig:
    return _llama(32, 1, **settings)


def _llama(width: int, layers: int, **settings: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        num_key_value_heads=max(1, width // 32),
        max_position_embeddings=96,
        tie_word_embeddings=True,
        initializer_range=0.05,
        **settings,
    )


def tune(
    untuned: ChatModel,
    folder: Path,
    settings: ReviewsSettings,
    seed: int,
    *,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """DPO of a small model on pairs of its own samples, which the gold reward labels by Bradley and Terry's rule."""
    pairs = _sampled_pairs(untuned, settings.pairs, seed)
    rng = stream(seed, "reviews", "labels")
    rewards = np.array([[reviews.reward(reply) for reply in replies] for _, replies in pairs])
    first_wins = rng.random(len(pairs)) < 1 / (1 + np.exp(rewards[:, 1] - rewards[:, 0]))
    chosen, rejected = (
        encode(
            untuned.tokenizer, [_chat(prompt, replies[int(which)]) for (prompt, replies), which in zip(pairs, index)]
        )
        for index in (~first_wins, first_wins)
    )
    policy = AutoModelForCausalLM.from_pretrained(untuned.name).train()
    with torch.inference_mode():
        reference = [_logprobs(untuned.model, *side).sum(-1) for side in (chosen, rejected)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.dpo_learning_rate)
    loss_settings = LossSettings(name="dpo", beta=settings.dpo_beta)
    batches = list(_batches(len(pairs), settings.dpo_epochs, stream(seed, "reviews", "dpo")))
    for step, rows in enumerate(batches):
        ours = [_logprobs(policy, ids_NT[rows], labels_NT[rows]).sum(-1) for ids_NT, labels_NT in (chosen, rejected)]
        loss = pair_loss(_pair_logprobs(ours, [side[rows] for side in reference]), loss_settings).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, len(batches))
    policy.save_pretrained(folder)
    untuned.tokenizer.save_pretrained(folder)


def _chat(prompt: str, reply: str) -> Conversation:
    return Conversation("", (Message("user", prompt), Message("assistant", reply)))


def _sampled_pairs(model: ChatModel, count: int, seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Prompts with two replies of `model` each, at temperature 1; equal replies teach nothing and are left out."""
    rng = stream(seed, "reviews", "pairs")
    prompts = [reviews.draw_prompt(rng, reviews.HOW_MANY[rng.integers(2)]) for _ in range(count)]
    ids_NT = torch.tensor([render_prompt(model.tokenizer, (Message("user", prompt),)).tolist() for prompt in prompts])
    pairs: list[tuple[str, tuple[str, str]]] = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "reviews", "replies"))
        for rows in torch.arange(count).split(256):
            found = model.model.generate(
                ids_NT[rows],
                attention_mask=torch.ones_like(ids_NT[rows]),
                do_sample=True,
                top_k=0,
                num_return_sequences=2,
                max_new_tokens=LONGEST,
            )
            texts = model.tokenizer.batch_decode(found[:, ids_NT.shape[1] :], skip_special_tokens=True)
            pairs += zip([prompts[row] for row in rows.tolist()], zip(texts[::2], texts[1::2]))
    return [pair for pair in pairs if pair[1][0] != pair[1][1]]


def _batches(count: int, epochs: int, rng: np.random.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.from_numpy(rng.permutation(count)).split(64)


def _logprobs(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability in nats of every label, 0 where there is none, shape [B, T - 1]."""
    logprobs = model(ids_BT[:, :-1]).logits.float().log_softmax(-1)
    labels = labels_BT[:, 1:]
    return logprobs.gather(-1, labels.clamp_min(0)[..., None])[..., 0] * (labels != IGNORED)


def _pair_logprobs(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> PairLogprobs:
    ones = torch.ones_like(ours[0])
    chosen, rejected = ours
    ref_chosen, ref_rejected = reference
    return PairLogprobs(chosen, rejected, chosen, ref_chosen, ref_rejected, ref_chosen, ones, ones, ones)


# -- results ---------------------------------------------------------------------------------------------------------


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


def summarize(rows: Mapping[str, Sequence[Mapping[str, Any]]], recipe: SearchRecipe) -> dict[str, Any]:
    """Of every arm and kind of prompt: means over prompts, guide seeds averaged in each; differences in pairs."""
    found: dict[str, Any] = {"title": recipe.title, "note": recipe.note, "level": recipe.level, "kinds": {}}
    for kind in reviews.HOW_MANY:
        rewards: dict[str, Estimate] = {}
        arms: dict[str, Any] = {}
        for arm, several in rows.items():
            mine = [row for row in several if row["prompt"].split()[0] == kind]
            if not mine:
                continue
            rewards[arm] = _mean(mine, "reward", recipe.level)
            arms[arm] = {
                key: _mean(mine, key, recipe.level).to_json() for key in ("correct", "tokens", "nats_per_token")
            }
            arms[arm] |= {
                "reward": rewards[arm].to_json(),
                "reward_per_seed": [
                    float(np.mean([row["reward"] for row in mine if row["seed"] == seed]))
                    for seed in sorted({row["seed"] for row in mine})
                ],
                "cut_off": sum(row["status"] == "length" for row in mine),
                "large_positions": float(np.mean([row["large_positions"] for row in mine])),
                "small_positions": float(np.mean([row["small_positions"] for row in mine])),
                "against": {},
            }
        for arm, other in ((arm, other) for arm in rewards for other in recipe.against if other in rewards):
            if arm != other:
                apart = difference(rewards[arm], rewards[other])
                arms[arm]["against"][other] = apart.to_json()
        found["kinds"][kind] = arms
    return found


def _mean(rows: Sequence[Mapping[str, Any]], key: str, level: float) -> Estimate:
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(float(row[key]))
    return mean(
        [float(np.mean(each)) for each in by_prompt.values()], list(by_prompt), unit_kind="prompts", level=level
    )


def table_of(results: Mapping[str, Any]) -> str:
    """A Markdown table for each kind of prompt."""
    parts = [f"# {results['title']}"] + ([results["note"]] if results["note"] else [])
    for kind, arms in results["kinds"].items():
        others = list(dict.fromkeys(other for arm in arms.values() for other in arm["against"]))
        head = ["arm", "reward", *(f"minus {other}" for other in others), "per seed", "correct", "tokens",
                "NLL, nats per token", "read per prompt, large / small"]  # fmt: skip
        lines = [f"## Prompts with {kind!r}", "", _row(head), _row(["---"] * len(head))]
        for name, arm in arms.items():
            apart = [_shown(arm["against"][other], signed=True) if other in arm["against"] else "" for other in others]
            lines.append(
                _row(
                    [
                        name,
                        _shown(arm["reward"]),
                        *apart,
                        " ".join(f"{value:.2f}" for value in arm["reward_per_seed"]),
                        _shown(arm["correct"], digits=3),
                        f"{arm['tokens']['value']:.1f}",
                        _shown(arm["nats_per_token"], digits=3),
                        f"{arm['large_positions']:.0f} / {arm['small_positions']:.0f}",
                    ]
                )
            )
        parts.append("\n".join(lines))
    level = f"{100 * results['level']:g} %"
    parts.append(f"[ ]: {level} intervals over prompts, guide seeds averaged within a prompt; differences are paired.")
    return "\n\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _shown(estimate: Mapping[str, Any], *, digits: int = 2, signed: bool = False) -> str:
    value = f"{estimate['value']:+.{digits}f}" if signed else f"{estimate['value']:.{digits}f}"
    return f"{value} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"
