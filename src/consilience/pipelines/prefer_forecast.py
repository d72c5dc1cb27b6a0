"""What an alignment will take, before anything is loaded; the rules are those of `pipelines.forecast`.

A batch of replies is written token by token, and every step reads all weights: that takes its time whatever the
arithmetic is, so steps are counted beside it, as many as the longest reply may have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilience.chat import render_prompt
from consilience.config import load_recipe
from consilience.errors import ConfigError, DataError
from consilience.judge import JudgeSettings
from consilience.models import Sampling, load_tokenizer
from consilience.models.sample import BATCH_SIZE
from consilience.pipelines.architectures import Size, architecture_of, size_of
from consilience.pipelines.data import rows_of
from consilience.pipelines.forecast import (
    BYTES,
    SAMPLE,
    Forecast,
    Stage,
    checkpoint_bytes,
    forward_flops,
    passes_of,
    stored_bytes,
    training_memory,
    updated,
)
from consilience.pipelines.places import Places
from consilience.pipelines.prefer_recipe import PreferRecipe, models_of
from consilience.prefer.arm import ArmSettings, ServedModel
from consilience.prefer.data import Preference, preferences_of
from consilience.prefer.likelihood import read_reply
from consilience.prefer.losses import WITHOUT_REFERENCE
from consilience.prefer.pairs import JUDGED
from consilience.train.head import BLOCK_LOGITS

TEXT_BYTES = 5  # of a token's text in JSON
COMPARING = ("pair", "weighted_pair", "alpaca_eval", "ranker")  # judges that do not rate
NOTHING = Stage("", 0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class Prompts:
    """How much there is to say: prompts of a round and held out, mean tokens of a prompt and of a reply."""

    per_round: int
    held_out: int
    tokens: float
    reply_tokens: float


def forecast_alignment(path: Path, out: Path, overrides: Sequence[str] = ()) -> Forecast:
    """What `prefer_recipe(path, out, overrides)` will take; nothing is written.

    Raises `ConfigError` or `DataError` where neither a file nor the recipe says enough, and at a row that the run
    would refuse.
    """
    recipe, places = load_recipe(path, PreferRecipe, overrides), Places(path.parent, out)
    if recipe.tiny is not None:
        raise ConfigError("the recipe makes its own tiny models, so there is nothing to forecast. Run it: minutes.")
    prompts, said = _prompts(recipe, places)
    return _Alignment(recipe, places, prompts).forecast(said)


class _Alignment:
    def __init__(self, recipe: PreferRecipe, places: Places, prompts: Prompts) -> None:
        self.recipe, self.places, self.prompts = recipe, places, prompts
        known = recipe.assumed.architectures
        self.sizes = {
            name: size_of(architecture_of(name, known, places))
            for name in {name for key, name in models_of(recipe).items() if key != "judge.model"}
        }
        self.judge = _judge_size(recipe.judge, known, places)
        self.asked: set[str] = set()  # what several arms learn from is asked for once

    @property
    def policy(self) -> Size:
        return self.sizes[self.recipe.model]

    def forecast(self, said: tuple[str, ...]) -> Forecast:
        recipe, seeds = self.recipe, len(self.recipe.seeds)
        stages = [_times(self._measure(recipe, "start"), seeds)]
        for name, settings in recipe.of_arms().items():
            rounds = [self._round(name, settings, number) for number in range(1, recipe.rounds + 1)]
            stages += [_times(_summed(parts), seeds) for parts in zip(*rounds, strict=True)]
        stages = [stage for stage in stages if stage != Stage(stage.name, 0, 0, 0.0)]
        stored = Stage("model", stored_bytes(self.policy, self.places.file(recipe.model)), 0, 0.0)
        passing = max(checkpoint_bytes(self.policy, settings.train) for settings in recipe.of_arms().values())
        return Forecast((*stages, stored), passing, (*said, *self._said()))

    def _said(self) -> Iterable[str]:
        recipe = self.recipe
        if len(recipe.seeds) > 1:
            yield f"stages are those of all {len(recipe.seeds)} seeds"
        if recipe.judge.model and self.judge is None:
            yield (f"the judge {recipe.judge.model!r} is not counted: add it to assumed.architectures, or download it")
        elif recipe.judge.model and recipe.judge.kind not in ("reward_model", "ranker"):
            yield "what the judge writes is not counted, what it reads is"
        if recipe.judge.endpoint or recipe.judge.function:
            yield "the judge is a server's or a function, which takes its own time"
        if recipe.engine != "transformers":
            yield "vLLM begins a reply where another ends: fewer steps; it fills the memory that it is given"
        yield f"a writing step is one token to each of {BATCH_SIZE} replies; every batch goes on to max_new_tokens"

    def _round(self, arm: str, settings: ArmSettings, number: int) -> list[Stage]:
        """Its stages, in order; `*` in a name stands for all rounds."""
        mine, home = settings.in_round(number), f"{arm}/round-*"
        before = "start" if number == 1 else f"{arm}/{number - 1}"
        collects = mine.data_from is None
        samples = mine.pair == "best_worst" and collects
        offline = 2 if mine.offline_pair or mine.pair != "best_worst" else 0
        candidates = offline + (mine.sample.samples if mine.pair == "best_worst" else 0)
        asked = [self._sample(mine, before, number)] if samples else []
        if collects and mine.has_third and mine.third != "policy":
            asked.append(self._source(mine, number))
        judged = self._judged(candidates, self.prompts.per_round) if mine.pair in JUDGED and collects else NOTHING
        pairs = self.prompts.per_round * (number if mine.replay else 1)
        read = self._pair_tokens(mine, candidates)
        texts = self.prompts.reply_tokens * self.prompts.per_round * TEXT_BYTES
        return [
            _named(f"{home}/sample", _summed(asked) if asked else NOTHING),
            _named(f"{home}/judge", judged),
            Stage(f"{home}/pair", int(3 * texts) if collects else 0, 0, 0.0),
            _named(f"{home}/reference", self._reference(mine, pairs)),
            self._train(f"{home}/train", mine, pairs, read),
            _named(f"{home}/measure", self._measure(mine, home)),
        ]

    def _sample(self, settings: ArmSettings, policy: str, number: int) -> Stage:
        served = settings.sampler
        if served and served.speaks_in(number):
            return self._once(f"{served.endpoint.name} {number}", None, settings.sample, settings)
        return self._once(f"{policy} {number}", self.policy, settings.sample, settings)

    def _source(self, settings: ArmSettings, number: int) -> Stage:
        third, once = settings.third, settings.sample.model_copy(update={"samples": 1})
        if isinstance(third, ServedModel):
            return self._once(f"{third.endpoint.name} {number}", None, once, settings)
        return self._once(f"{third} {number}", self.sizes.get(third, self.policy), once, settings)

    def _once(self, whose: str, size: Size | None, sampling: Sampling, settings: ArmSettings) -> Stage:
        name = f"{whose} {json.dumps(sampling.model_dump(mode='json'))}"
        if name in self.asked:
            return NOTHING
        self.asked.add(name)
        return self._written(size, sampling, settings, self.prompts.per_round)

    def _written(self, size: Size | None, sampling: Sampling, settings: ArmSettings, prompts: int) -> Stage:
        """Replies of a model; of a server only their texts are ours."""
        replies = prompts * sampling.samples
        length = min(self.prompts.reply_tokens, sampling.max_new_tokens)
        disk = int(replies * length * TEXT_BYTES)
        if size is None:
            return Stage("", disk, 0, 0.0)
        tokens = self.prompts.tokens + length
        width = BYTES[settings.train.dtype]
        cached = BATCH_SIZE * size.cached * width * (self.prompts.tokens + sampling.max_new_tokens)
        return Stage(
            "",
            disk,
            int(width * size.parameters + cached),
            replies * tokens * forward_flops(size, tokens),
            math.ceil(replies / BATCH_SIZE) * sampling.max_new_tokens,
        )

    def _judged(self, candidates: int, prompts: int) -> Stage:
        if self.judge is None:
            return NOTHING
        compares, length = _compares(self.recipe.judge), self.prompts.reply_tokens
        tokens = self.prompts.tokens + length * (2 if compares else 1)
        judgments = prompts * (candidates * (candidates - 1) if compares else candidates)  # both orders
        weights = BYTES[self.recipe.judge.dtype] * self.judge.parameters
        return Stage("", 0, weights, judgments * tokens * forward_flops(self.judge, tokens))

    def _pair_tokens(self, settings: ArmSettings, candidates: int) -> float:
        """Tokens read of a pair: its prompt once, and the third reply where it is another one."""
        third = 0.0
        if settings.has_third:
            third = 1.0 if settings.third != "policy" else max(0.0, 1 - 2 / max(candidates, 2))
        return self.prompts.tokens + (2 + third) * self.prompts.reply_tokens

    def _reference(self, settings: ArmSettings, pairs: int) -> Stage:
        if settings.loss.name in WITHOUT_REFERENCE:
            return NOTHING
        size = self.sizes.get(settings.reference, self.policy)
        replies = 3 if settings.loss.name == "wrpo" and settings.has_third else 2
        tokens = self.prompts.tokens + replies * self.prompts.reply_tokens
        width = BYTES["float32" if settings.train.lora is None else settings.train.dtype]
        memory = width * size.parameters + 3 * 4 * BLOCK_LOGITS["cuda"]
        return Stage("", 0, memory, pairs * tokens * forward_flops(size, tokens / replies))

    def _train(self, name: str, settings: ArmSettings, pairs: int, tokens: float) -> Stage:
        train = settings.train
        read = pairs * train.epochs
        if train.max_steps > 0:
            read = min(read, train.max_steps * train.batch_size)
        flops = read * tokens * passes_of(train) * forward_flops(self.policy, tokens / 2)
        replies = 3 if settings.has_third else 2
        adapters = 4 * updated(self.policy, train) if train.lora else 0
        memory = training_memory(self.policy, train, train.micro_batch_size * replies * settings.max_tokens)
        return Stage(name, 4 * self.policy.parameters + adapters, memory, flops)

    def _measure(self, settings: ArmSettings, home: str) -> Stage:
        sampling, held_out = self.recipe.measure.sample, self.prompts.held_out
        written = self._written(self.policy, sampling, settings, held_out)
        replies = held_out * sampling.samples
        tokens = self.prompts.tokens + min(self.prompts.reply_tokens, sampling.max_new_tokens)
        read = replies * tokens * forward_flops(self.policy, tokens) * (1 if home == "start" else 2)
        judged = self._judged(2, replies) if _compares(self.recipe.judge) else self._judged(1, replies)
        parts = [written, Stage("", 0, written.memory_bytes, read), judged]
        return _named(f"{home}/measure", _summed(parts))


def _compares(judge: JudgeSettings) -> bool:
    return judge.kind in COMPARING or judge.compares


def _judge_size(judge: JudgeSettings, known: dict[str, str], places: Places) -> Size | None:
    """The size of a judge of this process; None where there is none, or nothing says what it is."""
    if judge.model is None or not (places.file(judge.model).is_dir() or judge.model in known):
        return None
    return size_of(architecture_of(judge.model, known, places))


def _summed(stages: Sequence[Stage]) -> Stage:
    """Stages that follow one another: disk and arithmetic add up, memory is the most of any."""
    return Stage(
        stages[0].name,
        sum(stage.disk_bytes for stage in stages),
        max(stage.memory_bytes for stage in stages),
        sum(stage.flops for stage in stages),
        sum(stage.writing_steps for stage in stages),
    )


def _times(stage: Stage, count: int) -> Stage:
    steps = stage.writing_steps * count
    return Stage(stage.name, stage.disk_bytes * count, stage.memory_bytes, stage.flops * count, steps)


def _named(name: str, stage: Stage) -> Stage:
    return replace(stage, name=name)


def _prompts(recipe: PreferRecipe, places: Places) -> tuple[Prompts, tuple[str, ...]]:
    """How much there is to say, measured where the files are here; and in sentences what it rests on."""
    assumed, data, held_out = recipe.assumed, recipe.data, recipe.held_out
    learnt: list[Preference] = []
    if places.file(data.path).exists():
        pairs = any(arm.offline_pair for arm in recipe.of_arms().values())
        learnt = preferences_of(rows_of(data, places), data.path, pairs=pairs)
        count, whence = len(learnt), f"counted in {data.path}"
    elif assumed.prompts is None:
        raise DataError(
            f"{data.path!r} is not here, so its prompts cannot be counted. Give data.path a file or folder, or say "
            "how many there are: --set assumed.prompts=60000."
        )
    else:
        count, whence = min(assumed.prompts, data.limit or assumed.prompts), "assumed.prompts of the recipe"
    kept_back = round(held_out.share * count) if held_out.share else assumed.held_out
    if held_out.path and places.file(held_out.path).exists():
        kept_back = len(preferences_of(rows_of(held_out, places), held_out.path, pairs=False))
    learnt_from = count - (kept_back if held_out.share else 0)
    per_round = recipe.prompts_per_round or learnt_from // recipe.rounds
    if per_round * recipe.rounds > learnt_from or not per_round:
        raise DataError(
            f"{recipe.rounds} rounds of {per_round or 'at least 1'} prompts, and the data has {learnt_from}. Lower "
            "rounds or prompts_per_round, or give more data."
        )
    kept_back = min(kept_back, held_out.limit or kept_back)
    tokens, length, how = _lengths(recipe, places, learnt)
    found = Prompts(per_round, kept_back, tokens, length)
    return found, (
        f"{recipe.rounds} rounds of {per_round} prompts, {kept_back} held out ({whence})",
        f"{tokens:.0f} tokens a prompt, {length:.0f} a reply ({how})",
    )


def _lengths(recipe: PreferRecipe, places: Places, learnt: Sequence[Preference]) -> tuple[float, float, str]:
    """Mean tokens of the first prompts, and of the replies in the data, where the model's tokenizer is here."""
    assumed, folder = recipe.assumed, places.file(recipe.model)
    if not (learnt and folder.is_dir()):
        return float(assumed.prompt_tokens), float(assumed.reply_tokens), "assumed by the recipe"
    tokenizer: Any = load_tokenizer(folder, code=recipe.trust_remote_code)
    first = learnt[:SAMPLE]
    tokens = sum(len(render_prompt(tokenizer, one.prompt)) for one in first) / len(first)
    replies = [(one, reply) for one in first for reply in (one.chosen, one.rejected) if reply]
    if not replies:
        longest = max(arm.sample.max_new_tokens for arm in recipe.of_arms().values())  # all replies will be sampled
        return tokens, float(min(assumed.reply_tokens, longest)), "prompts measured, replies assumed by the recipe"
    read = [read_reply(tokenizer, one.prompt, reply).tokens for one, reply in replies]
    return tokens, sum(read) / len(read), "measured under the model's tokenizer, replies those of the data"
