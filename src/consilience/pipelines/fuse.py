"""The whole of `consilience fuse`: represent -> align -> select -> train -> merge -> evaluate -> report.

Every step is a stage of the run folder, made once; what a stage needs it reads from the stages before it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from consilience.chat import Rendered, render, render_prompt, token_bytes
from consilience.config import load_recipe
from consilience.errors import ConfigError, DataError
from consilience.evaluate import (
    Answer,
    ReplyLikelihood,
    answer_questions,
    held_out_likelihood,
    read_questions,
)
from consilience.fuse import (
    FusionExamples,
    Match,
    Representation,
    SelectSettings,
    SupervisedExamples,
    collate,
    fusion_objective,
    match,
    refuse_top_k,
    represent,
    select,
)
from consilience.merge import merge_checkpoints
from consilience.models import ChatModel, load_model, load_tokenizer, sample_greedily, vocabulary_size
from consilience.pipelines.card import model_card
from consilience.pipelines.recipe import FuseRecipe, Places, target_of
from consilience.pipelines.results import Evaluation, summarize
from consilience.pipelines.tiny import make_tiny_world
from consilience.records import Conversation, Message, conversation_of, read_conversations, write_jsonl
from consilience.report import write_fusion_report
from consilience.rng import seed_of, stream
from consilience.run import RunFolder, fingerprint, open_run, write_json, write_text
from consilience.train import train
from consilience.train.trainer import finish
from consilience.weights import Checkpoint, copy_companions, write_checkpoint

OnProgress = Callable[[str, int, int], None]
PIVOT = "pivot"


@dataclass(frozen=True, slots=True)
class FuseResult:
    """Where a finished run left what it made, and the results that its report shows."""

    run: Path
    model: Path
    report: Path
    results: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A copy of the pivot to be trained: on whose distributions, and how they are selected."""

    name: str
    sources: tuple[str, ...]
    vocabulary: str
    select: SelectSettings
    loss: str
    sampled: bool = False  # the sources' own replies take the place of the gold ones


def fuse_recipe(
    path: Path, out: Path, overrides: Sequence[str] = (), *, on_progress: OnProgress = lambda what, done, total: None
) -> FuseResult:
    """Runs the recipe at `path` into the run folder `out`, or goes on with the run that is there.

    Raises `ConfigError`, `DataError` or `BackendError` for what the user can put right.
    """
    recipe = load_recipe(path, FuseRecipe, overrides)
    places = Places(path.parent, out)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    settings = recipe.model_dump(mode="json", exclude={"title", "note"})
    with open_run(out, settings, _fingerprints(recipe, places)) as run:
        return _Fusion(recipe, places, run, on_progress).carry_out()


def _fingerprints(recipe: FuseRecipe, places: Places) -> dict[str, str]:
    """A hash of every model and file that the recipe names; the run's own tiny world follows from its seed."""
    models = {"pivot": recipe.pivot, **{f"sources.{name}": path for name, path in recipe.sources.items()}}
    files = {"data": recipe.data.path, **{f"tasks.{name}": task.path for name, task in recipe.tasks.items()}}
    if recipe.held_out.path:
        files["held_out"] = recipe.held_out.path
    made_here = [name for name in (*models.values(), *files.values()) if places.is_made_here(name)]
    if made_here and recipe.tiny is None:
        raise ConfigError(f"the recipe names {made_here[0]!r} but has no 'tiny:' block that makes it.")
    found = {key: places.model(name) for key, name in models.items() if not places.is_made_here(name)}
    for key, name in files.items():
        file = places.file(name)
        if places.is_made_here(name) or (key == "data" and not file.exists() and _is_data_set_name(name)):
            continue
        if not file.is_file():
            raise DataError(f"{key}: no file {name!r}. Paths are relative to the recipe ({places.recipe_folder}).")
        found[key] = file
    prints = {key: fingerprint(file) for key, file in found.items()}
    same = [key for key in prints if key.startswith("sources.") and prints[key] == prints.get("pivot")]
    if same:
        raise ConfigError(f"{same[0]} is the pivot itself; a pivot cannot be its own source. Remove it.")
    return prints


def _is_data_set_name(name: str) -> bool:
    return name.count("/") <= 1 and not Path(name).suffix


class _Fusion:
    """One run of a recipe: the stages, in order, and the few things they share."""

    def __init__(self, recipe: FuseRecipe, places: Places, run: RunFolder, on_progress: OnProgress) -> None:
        self.recipe, self.places, self.run, self.on_progress = recipe, places, run, on_progress

    def carry_out(self) -> FuseResult:
        if self.recipe.tiny is not None:
            self.run.stage("tiny", self._make_tiny)
        self.train_chats, self.held_out = self._read_chats()
        self.questions = {
            name: read_questions(self.places.file(task.path), match=task.match, limit=task.limit)
            for name, task in self.recipe.tasks.items()
        }
        self.paths = {PIVOT: self.places.model(self.recipe.pivot)} | {
            name: self.places.model(path) for name, path in self.recipe.sources.items()
        }
        self._refuse_unusable()
        self.representations = {name: self._represent(name) for name in self.paths}
        self.matches = {name: self._align(name) for name in self.recipe.sources}
        trained = {target.name: self._train(target) for target in self._targets()}
        pairwise = [trained[target_of(source)] for source in self.recipe.sources if self.recipe.targets.pairwise]
        merged = {name: self._merge(name, pairwise) for name in self.recipe.merges}
        self.paths |= trained | merged
        evaluations = {name: self._evaluate(name) for name in self.paths}
        return self._hand_over(evaluations)

    # -- what goes in ----------------------------------------------------------------------------------------------

    def _make_tiny(self, folder: Path) -> None:
        assert self.recipe.tiny is not None
        make_tiny_world(
            folder,
            seed=self.recipe.tiny.seed,
            steps_scale=self.recipe.tiny.steps_scale,
            on_progress=lambda what, done, total: self.on_progress(f"tiny {what}", done, total),
        )

    def _read_chats(self) -> tuple[list[Conversation], list[Conversation]]:
        """Training and held-out chats; held out by prompt, so that no prompt is on both sides."""
        data, held_out = self.recipe.data, self.recipe.held_out
        file = self.places.file(data.path)
        if file.is_file():
            chats = read_conversations(file, group_key=data.group_key, limit=data.limit)
        else:
            chats = _from_data_set(data.path, data.split, data.group_key, data.limit)
        _refuse_doubles(chats, data.path)
        if held_out.path:
            rest = read_conversations(
                self.places.file(held_out.path), group_key=held_out.group_key, limit=held_out.limit
            )
            _refuse_doubles(rest, held_out.path)
            return chats, rest
        assert held_out.share is not None
        prompts = sorted({chat.opening for chat in chats})
        count = max(1, round(held_out.share * len(prompts)))
        drawn = set(stream(self.recipe.seed, "held out").choice(len(prompts), count, replace=False).tolist())
        kept_back = {prompt for index, prompt in enumerate(prompts) if index in drawn}
        train_chats = [chat for chat in chats if chat.opening not in kept_back]
        rest = [chat for chat in chats if chat.opening in kept_back][: held_out.limit]
        if not train_chats:
            raise DataError(f"{data.path}: all {len(chats)} chats are held out; lower held_out.share.")
        return train_chats, rest

    def _refuse_unusable(self) -> None:
        """A model without weights, chat template or enough tokens is refused before hours are spent on the others."""
        for name, path in self.paths.items():
            Checkpoint(path)
            render_prompt(self._tokenizer(name), [Message("user", "Hello")])
            refuse_top_k(self.recipe.represent, name, vocabulary_size(path, code=self.recipe.trust_remote_code))

    @contextmanager
    def _model(self, name: str, dtype: str) -> Iterator[ChatModel]:
        """The model called `name`, in memory only inside the block."""
        chat_model = load_model(self.paths[name], name=name, dtype=dtype, code=self.recipe.trust_remote_code)
        chat_model = replace(chat_model, tokenizer=self._tokenizer(name))
        yield chat_model
        del chat_model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tokenizer(self, name: str) -> Any:
        tokenizer = load_tokenizer(self.paths[name], code=self.recipe.trust_remote_code)
        if self.recipe.represent.template == "pivot" and not tokenizer.chat_template and name != PIVOT:
            tokenizer.chat_template = self._pivot_template()  # a base model may be a source, too
        return tokenizer

    def _pivot_template(self) -> str | None:
        templates: Any = self._tokenizer(PIVOT).chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    # -- represent, align, select ----------------------------------------------------------------------------------

    def _represent(self, name: str) -> Representation:
        settings = self.recipe.represent
        template = self._pivot_template() if settings.template == "pivot" else None

        def make(folder: Path) -> None:
            with self._model(name, settings.dtype) as chat_model:
                represent(
                    chat_model,
                    self.train_chats,
                    settings,
                    folder,
                    model_hash=fingerprint(self.paths[name]),
                    chat_template=template,
                    on_progress=functools.partial(self.on_progress, f"represent {name}"),
                )

        return Representation(self.run.stage(f"represent/{name}", make))

    def _align(self, name: str) -> Match:
        def make(folder: Path) -> None:
            self.on_progress(f"align {name}", 0, 1)
            match(
                self.representations[PIVOT],
                self.representations[name],
                token_bytes(self._tokenizer(PIVOT)),
                token_bytes(self._tokenizer(name)),
                self.recipe.align,
                folder,
            )
            self.on_progress(f"align {name}", 1, 1)

        return Match(self.run.stage(f"align/{name}", make))

    def _select(self, target: Target) -> Path:
        def make(folder: Path) -> None:
            self.on_progress(f"select {target.name}", 0, 1)
            sources = {
                name: (self.representations[name], self.matches[name], target.vocabulary) for name in target.sources
            }
            groups = [chat.group for chat in self.train_chats]
            select(self.representations[PIVOT], sources, groups, target.select, folder)
            self.on_progress(f"select {target.name}", 1, 1)

        return self.run.stage(f"select/{target.name}", make)

    # -- train -----------------------------------------------------------------------------------------------------

    def _targets(self) -> list[Target]:
        recipe, everyone = self.recipe, tuple(self.recipe.sources)
        plain = Target("", everyone, recipe.align.vocabulary, recipe.select, recipe.loss)
        targets = {"many_to_one": replace(plain, name="many_to_one")}
        targets["sft"] = replace(plain, name="sft", sources=())
        targets["seqkd"] = replace(plain, name="seqkd", sampled=True)
        for source in recipe.sources:
            targets[target_of(source)] = replace(plain, name=target_of(source), sources=(source,))
        for name, variant in recipe.targets.variants.items():
            targets[name] = Target(
                name,
                variant.sources,
                variant.vocabulary or recipe.align.vocabulary,
                variant.select or recipe.select,
                variant.loss or recipe.loss,
            )
        return [targets[name] for name in recipe.target_names]

    def _train(self, target: Target) -> Path:
        chosen = self._select(target)
        replies = self._sample(target, chosen) if target.sampled else None

        def make(folder: Path) -> None:
            pivot = load_model(self.paths[PIVOT], name=PIVOT, code=self.recipe.trust_remote_code)
            examples = self._sampled_examples(replies) if replies is not None else self._fusion_examples(chosen)
            model, curve = train(
                pivot.model.float().train(),  # bfloat16 training is autocast over float32 weights
                examples,
                collate,
                fusion_objective(target.loss),
                self.recipe.train,
                folder,
                seed=seed_of(self.recipe.seed, "train"),  # the same order of examples for every target
                on_step=lambda step, steps, loss: self.on_progress(f"train {target.name}", step, steps),
            )
            if self.run.leads:
                # Targets stay in float32: a small update rounded to bfloat16 is often no update at all.
                model.save_pretrained(folder)
                pivot.tokenizer.save_pretrained(folder)
                write_json(folder / "curve.json", curve)
                finish(folder)

        return self.run.stage(f"train/{target.name}", make, together=True)

    def _fusion_examples(self, chosen: Path) -> FusionExamples:
        tokenizer, limit = self._tokenizer(PIVOT), self.representations[PIVOT].max_tokens

        @functools.lru_cache(maxsize=100_000)
        def rendered(index: int) -> Rendered:
            return render(tokenizer, self.train_chats[index].messages, max_tokens=limit)

        names = [chat.id for chat in self.train_chats]
        return FusionExamples(names, rendered, chosen, self.recipe.represent.shard_conversations, self._learnt())

    def _learnt(self) -> list[int]:
        """The training chats that the pivot can read, by index."""
        learnt: list[int] = np.unique(
            np.concatenate([shard.conversation_N for shard in self.representations[PIVOT]])
        ).tolist()
        return learnt

    def _sampled_examples(self, replies: Sequence[Conversation]) -> SupervisedExamples:
        tokenizer, limit = self._tokenizer(PIVOT), self.representations[PIVOT].max_tokens
        rendered = [render(tokenizer, chat.messages, max_tokens=limit) for chat in replies]
        return SupervisedExamples([chat.id for chat in replies], rendered)

    def _sample(self, target: Target, chosen: Path) -> list[Conversation]:
        """The training chats, the last reply of each taken from the source that wins there; gold where none does.

        Gold stays, too, where the pivot cannot read the reply; those are counted.
        """
        winners: list[str | None] = json.loads((chosen / "teachers.json").read_text())["conversations"]

        def make(folder: Path) -> None:
            chats, unread = list(self.train_chats), 0
            pivot_tokenizer = self._tokenizer(PIVOT)
            for source in target.sources:
                mine = [index for index, winner in enumerate(winners) if winner == source]
                with self._model(source, self.recipe.represent.dtype) as chat_model:
                    prompts = [render_prompt(chat_model.tokenizer, chats[index].prompt) for index in mine]
                    replies = sample_greedily(chat_model, prompts, max_new_tokens=self.recipe.targets.max_new_tokens)
                    for done, (place, reply, _) in enumerate(replies, start=1):
                        chat = chats[mine[place]]
                        answered = (*chat.prompt, Message("assistant", reply.strip()))
                        try:
                            render(pivot_tokenizer, answered)
                            chats[mine[place]] = replace(chat, messages=answered)
                        except DataError:
                            unread += 1
                        self.on_progress(f"sample {source}", done, len(mine))
            learnt = [chats[index] for index in self._learnt()]
            rows = [{"id": c.id, "group": c.group, "messages": [asdict(m) for m in c.messages]} for c in learnt]
            write_jsonl(folder / "chats.jsonl", rows)
            write_json(folder / "unread.json", unread)

        return read_conversations(self.run.stage(f"sample/{target.name}", make) / "chats.jsonl")

    # -- merge, evaluate, hand over --------------------------------------------------------------------------------

    def _merge(self, name: str, targets: Sequence[Path]) -> Path:
        def make(folder: Path) -> None:
            merge_checkpoints(
                self.paths[PIVOT],
                targets,
                folder,
                self.recipe.merges[name],
                on_tensor=functools.partial(self.on_progress, f"merge {name}"),
                replace=True,  # what a killed call left in this partial folder
            )

        return self.run.stage(f"merge/{name}", make)

    def _evaluate(self, name: str) -> Evaluation:
        settings = self.recipe.evaluate

        def make(folder: Path) -> None:
            with self._model(name, settings.dtype) as chat_model:
                scored = held_out_likelihood(
                    chat_model,
                    self.held_out,
                    max_tokens=settings.max_tokens,
                    batch_tokens=settings.batch_tokens,
                    on_progress=functools.partial(self.on_progress, f"evaluate {name}"),
                )
                write_jsonl(folder / "likelihood.jsonl", map(asdict, scored))
                for task, questions in self.questions.items():
                    answers = answer_questions(
                        chat_model,
                        questions,
                        self.recipe.tasks[task],
                        on_progress=functools.partial(self.on_progress, f"{task} {name}"),
                    )
                    write_jsonl(folder / f"task-{task}.jsonl", map(asdict, answers))

        folder = self.run.stage(f"evaluate/{name}", make)
        return Evaluation(
            [ReplyLikelihood(**row) for row in _rows(folder / "likelihood.jsonl")],
            {task: [Answer(**row) for row in _rows(folder / f"task-{task}.jsonl")] for task in self.questions},
        )

    def _hand_over(self, evaluations: Mapping[str, Evaluation]) -> FuseResult:
        results = summarize(
            self.recipe,
            self.run,
            paths=self.paths,
            train_chats=self.train_chats,
            held_out=self.held_out,
            questions=self.questions,
            representations=self.representations,
            matches=self.matches,
            evaluations=evaluations,
        )

        def make(folder: Path) -> None:
            fused = self.paths[self.recipe.result_name]
            dtypes = Checkpoint(self.paths[PIVOT]).dtypes
            fused_weights = Checkpoint(fused)
            copy_companions(self.paths[PIVOT], folder)
            write_checkpoint(
                folder, ((name, fused_weights.tensor(name).to(dtypes.get(name))) for name in fused_weights.names)
            )
            write_text(folder / "README.md", model_card(self.recipe, results))

        model = self.run.stage("model", make)
        report = self.run.path / "report.html"
        if self.run.leads:
            write_json(self.run.path / "results.json", results)
            write_fusion_report(results, report)
        return FuseResult(self.run.path, model, report, results)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _refuse_doubles(chats: Sequence[Conversation], where: str) -> None:
    seen: set[str] = set()
    for chat in chats:
        if chat.id in seen:
            raise DataError(f"{where}: two conversations have the id {chat.id!r}; expected every id once.")
        seen.add(chat.id)


def _from_data_set(name: str, split: str, group_key: str, limit: int | None) -> list[Conversation]:
    """Chats of a `datasets` data set from the hub or its cache."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"data.path {name!r} is no file; for a data set of the hub: pip install 'consilience[hub]'."
        ) from None
    try:
        rows = datasets.load_dataset(name, split=split if limit is None else f"{split}[:{limit}]")
    except (datasets.exceptions.DatasetNotFoundError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"data.path {name!r} is no file, and no data set can be loaded by that name: {reason}"
        ) from None
    return [
        conversation_of(row, where=f"{name}[{split}], row {number}", index=number, group_key=group_key)
        for number, row in enumerate(rows)
    ]
