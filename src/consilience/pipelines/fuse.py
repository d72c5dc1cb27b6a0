"""The whole of `consilience fuse`: represent -> align -> select -> train -> merge -> evaluate -> report.

Every step is a stage of the run folder, made once; what a stage needs it reads from the stages before it.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from consilience.align import Spelling
from consilience.chat import Rendered, render, render_prompt, token_bytes
from consilience.config import Settings, load_recipe
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
    SupervisedExamples,
    collate,
    fusion_objective,
    match,
    refuse_top_k,
    represent,
    select,
)
from consilience.fuse.learn import Example
from consilience.fuse.match import spelling_of
from consilience.judge import open_judge
from consilience.merge import merge_checkpoints
from consilience.models import (
    ChatModel,
    LocalSampler,
    context_of,
    load_model,
    load_tokenizer,
    sample_greedily,
    vocabulary_size,
)
from consilience.pipelines.card import model_card
from consilience.pipelines.chats import fingerprint_of_chats, fingerprint_of_data_set, read_chats
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import REPLIES, FuseRecipe, target_of
from consilience.pipelines.rehearsal import make_rehearsal, rehearsed
from consilience.pipelines.replies import choose, rate_source, read_rated, read_replies, sample_source, write_chosen
from consilience.pipelines.results import Evaluation, summarize
from consilience.pipelines.targets import Target, targets_of
from consilience.pipelines.tiny import make_tiny_world
from consilience.records import Conversation, Message, read_conversations, read_rows, row_of, write_jsonl
from consilience.report import write_fusion_report
from consilience.rng import seed_of
from consilience.run import RunFolder, fingerprint, key_of, open_run, write_json, write_text
from consilience.train import conversations_at_once, finish, train
from consilience.weights import Checkpoint, copy_companions, write_checkpoint

OnProgress = Callable[[str, int, int], None]
PIVOT = "pivot"
# A text as base models are trained on it: between the tokens that begin and end one, where a tokenizer has them.
PLAIN_TEXT = "{{ bos_token or '' }}{% for m in messages %}{{ m.content }}{% endfor %}{{ eos_token or '' }}"
FIRST_SOURCE = 1  # the number of the first source among the teachers of a target


@dataclass(frozen=True, slots=True)
class FuseResult:
    """Where a finished run left what it made, and the results that its report shows."""

    run: Path
    model: Path
    report: Path
    results: Mapping[str, Any]


def fuse_recipe(
    path: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    debug: bool = False,
    reuse: Sequence[Path] = (),
    on_progress: OnProgress = lambda what, done, total: None,
) -> FuseResult:
    """Runs the recipe at `path` into the run folder `out`, or goes on with the run that is there.

    Stages that the runs `reuse` have made from the same settings and inputs are taken from there.
    `debug` rehearses it: the same path on tiny random models of the same architectures, in about a minute.
    Raises `ConfigError`, `DataError` or `BackendError` for what the user can put right.
    """
    recipe = load_recipe(path, FuseRecipe, overrides)
    places = Places(path.parent, out)
    conversations_at_once(recipe.train)  # refused now, not after hours of representing
    make_tiny = _maker_of_tiny(recipe, places, on_progress, debug=debug)
    if debug:
        recipe = rehearsed(recipe, places)
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    settings = recipe.decides(exclude={"title", "note", "assumed"})
    inputs = _fingerprints(recipe, places, made_here=make_tiny is not None)
    with open_run(out, settings, inputs, others=reuse) as run:
        return _Fusion(recipe, places, run, inputs, make_tiny, on_progress).carry_out()


def _maker_of_tiny(
    recipe: FuseRecipe, places: Places, on_progress: OnProgress, *, debug: bool
) -> Callable[[Path], None] | None:
    """What makes the models and files that the run makes itself, if it does."""
    if debug:
        return lambda folder: make_rehearsal(recipe, places, folder, on_progress)
    if recipe.tiny is None:
        return None
    tiny = recipe.tiny
    return lambda folder: make_tiny_world(
        folder,
        seed=tiny.seed,
        steps_scale=tiny.steps_scale,
        on_progress=lambda what, done, total: on_progress(f"tiny {what}", done, total),
    )


def _fingerprints(recipe: FuseRecipe, places: Places, *, made_here: bool) -> dict[str, str]:
    """A hash of every model and file that the recipe names; the run's own tiny world follows from its seed."""
    models = {"pivot": recipe.pivot, **{f"sources.{name}": path for name, path in recipe.sources.items()}}
    files = {"data": recipe.data.path, **{f"tasks.{name}": task.path for name, task in recipe.tasks.items()}}
    if recipe.held_out.path:
        files["held_out"] = recipe.held_out.path
    if judge := recipe.fusion.judge:
        models |= {"fusion.judge.model": judge.model} if judge.model else {}
        files |= {f"fusion.judge.{key}": file for key, file in judge.files.items()}
    tiny = [name for name in (*models.values(), *files.values()) if places.is_made_here(name)]
    if tiny and not made_here:
        raise ConfigError(f"the recipe names {tiny[0]!r} but has no 'tiny:' block that makes it.")
    found = {key: places.model(name) for key, name in models.items() if not places.is_made_here(name)}
    for key, name in files.items():
        file = places.file(name)
        if places.is_made_here(name) or (key == "data" and places.is_data_set(name)):
            continue
        if not file.is_file():
            raise DataError(f"{key}: no file {name!r}. Paths are relative to the recipe ({places.recipe_folder}).")
        found[key] = file
    prints = {key: fingerprint(file) for key, file in found.items()}
    if places.is_data_set(recipe.data.path):
        prints["data"] = fingerprint_of_data_set(recipe.data)
    same = [key for key in prints if key.startswith("sources.") and prints[key] == prints.get("pivot")]
    if same:
        raise ConfigError(f"{same[0]} is the pivot itself; a pivot cannot be its own source. Remove it.")
    return prints


class _Fusion:
    """One run of a recipe: the stages, in order, and the few things they share."""

    def __init__(
        self,
        recipe: FuseRecipe,
        places: Places,
        run: RunFolder,
        inputs: Mapping[str, str],
        make_tiny: Callable[[Path], None] | None,
        on_progress: OnProgress,
    ) -> None:
        self.recipe, self.places, self.run, self.on_progress = recipe, places, run, on_progress
        self.make_tiny = make_tiny
        self.representations: dict[str, Representation] = {}
        self.matches: dict[str, Match] = {}
        self.tokenizers: dict[str, Any] = {}  # by model; some take a second to read
        self.keys = dict(inputs)  # of models, files and chats, and of the stages that follow from them

    def carry_out(self) -> FuseResult:
        if self.make_tiny is not None:
            self.run.stage("tiny", self.make_tiny)
        self.train_chats, self.held_out = read_chats(self.recipe, self.places)
        self.questions = {
            name: read_questions(self.places.file(task.path), match=task.match, limit=task.limit)
            for name, task in self.recipe.tasks.items()
        }
        self.paths = {PIVOT: self.places.model(self.recipe.pivot)} | {
            name: self.places.model(path) for name, path in self.recipe.sources.items()
        }
        tasks = {f"tasks/{name}": self.places.file(task.path) for name, task in self.recipe.tasks.items()}
        self.keys |= {name: fingerprint(path) for name, path in (self.paths | tasks).items()}
        self.keys |= {"chats": fingerprint_of_chats(self.train_chats), "held out": fingerprint_of_chats(self.held_out)}
        self._refuse_unusable()
        if self.recipe.fusion.kind == "distributions":
            self.representations = {name: self._represent(name) for name in self.paths}
            self.matches = {name: self._align(name) for name in self.recipe.sources}
        trained = {target.name: self._train(target) for target in targets_of(self.recipe)}
        pairwise = [trained[target_of(source)] for source in self.recipe.sources if self.recipe.targets.pairwise]
        merged = {name: self._merge(name, pairwise) for name in self.recipe.merges}
        self.paths |= trained | merged
        self.keys |= {name: self.keys[f"train/{name}"] for name in trained}
        self.keys |= {name: self.keys[f"merge/{name}"] for name in merged}
        evaluations = {name: self._evaluate(name) for name in self.paths}
        return self._hand_over(evaluations)

    def _stage(
        self,
        name: str,
        make: Callable[[Path], None],
        *,
        after: Sequence[str] = (),
        settings: Sequence[Any] = (),
        together: bool = False,
    ) -> Path:
        """The folder of stage `name`, which follows from `settings` and from what `after` names, and nothing else."""
        self.keys[name] = key_of(
            settings=[one.decides() if isinstance(one, Settings) else one for one in settings],
            after={one: self.keys[one] for one in after},
        )
        return self.run.stage(name, make, key=self.keys[name], together=together)

    # -- what goes in ----------------------------------------------------------------------------------------------

    def _refuse_unusable(self) -> None:
        """A model without weights, chat template or enough tokens is refused before hours are spent on the others."""
        for name, path in self.paths.items():
            Checkpoint(path)
            render_prompt(self._tokenizer(name), [Message("user", "Hello")])
            refuse_top_k(self.recipe.represent, name, vocabulary_size(path, code=self.recipe.trust_remote_code))

    def _load(self, name: str, dtype: str = "float32", *, place: bool = True, **placed: Any) -> ChatModel:
        """The model called `name`. What the models before it held is given back first: two may not fit together."""
        gc.collect()  # a finished Trainer, its optimizer and its callbacks hold one another
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return load_model(
            self.paths[name],
            name=name,
            dtype=dtype,
            code=self.recipe.trust_remote_code,
            place=place,
            tokenizer=self._tokenizer(name),
            **placed,
        )

    def _tokenizer(self, name: str) -> Any:
        if name not in self.tokenizers:
            self.tokenizers[name] = self._read_tokenizer(name)
        return self.tokenizers[name]

    def _read_tokenizer(self, name: str) -> Any:
        tokenizer = load_tokenizer(self.paths[name], code=self.recipe.trust_remote_code)
        if self.recipe.represent.template == "text":
            tokenizer.chat_template = PLAIN_TEXT
        if self.recipe.represent.template == "pivot" and not tokenizer.chat_template and name != PIVOT:
            tokenizer.chat_template = self._pivot_template()  # a base model may be a source, too
        return tokenizer

    def _pivot_template(self) -> str | None:
        templates: Any = self._tokenizer(PIVOT).chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    def _shared_template(self) -> str | None:
        """The template that all models read the training chats by; None where each has its own."""
        return self._pivot_template() if self.recipe.represent.template == "pivot" else None

    # -- represent, align, select ----------------------------------------------------------------------------------

    def _represent(self, name: str) -> Representation:
        settings = self.recipe.represent

        def make(folder: Path) -> None:
            represent(
                self._load(name, settings.dtype, spread=settings.spread, bits=settings.bits),
                self.train_chats,
                settings,
                folder,
                model_hash=self.keys[name],
                chat_template=self._shared_template(),
                on_progress=functools.partial(self.on_progress, f"represent {name}"),
            )

        template = [PIVOT] if settings.template == "pivot" else []
        stage = self._stage(
            f"represent/{name}",
            make,
            after=["chats", name, *template],
            settings=[settings, self.recipe.trust_remote_code],
        )
        return Representation(stage)

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
                spellings=self._spellings(name),
            )
            self.on_progress(f"align {name}", 1, 1)

        pair = [PIVOT, name, f"represent/{PIVOT}", f"represent/{name}"]
        return Match(self._stage(f"align/{name}", make, after=pair, settings=[self.recipe.align]))

    def _spellings(self, source: str) -> tuple[Spelling, Spelling] | None:
        """How pivot and source write their tokens, if the sequence alignment goes by that."""
        if self.recipe.align.sequence == "spans":
            return None
        pivot, other = (
            spelling_of(self._tokenizer(name), self.representations[name].vocabulary_size) for name in (PIVOT, source)
        )
        return pivot, other

    def _select(self, target: Target) -> Path:
        def make(folder: Path) -> None:
            self.on_progress(f"select {target.name}", 0, 1)
            sources = {
                name: (self.representations[name], self.matches[name], target.vocabulary) for name in target.sources
            }
            groups = [chat.group for chat in self.train_chats]
            select(self.representations[PIVOT], sources, groups, target.select, folder)
            self.on_progress(f"select {target.name}", 1, 1)

        inputs = [f"{verb}/{source}" for source in target.sources for verb in ("represent", "align")]
        return self._stage(
            f"select/{target.name}",
            make,
            after=["chats", f"represent/{PIVOT}", *inputs],
            settings=[target.select, target.vocabulary, target.sources],
        )

    # -- train -----------------------------------------------------------------------------------------------------

    def _train(self, target: Target) -> Path:
        examples, after = self._examples(target)

        def make(folder: Path) -> None:
            pivot = self._load(PIVOT, self._trained_dtype(), place=False)  # Trainer knows which GPU is this process's
            links = [self.matches[name].link(target.vocabulary) for name in target.sources if self.matches]
            model, curve = train(
                pivot.model.train(),
                examples(pivot),
                collate,
                fusion_objective(
                    target.loss,
                    lambda teacher: links[teacher - FIRST_SOURCE].pieces,
                    chunk_temperature=self.recipe.chunk_temperature,
                ),
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

        return self._stage(
            f"train/{target.name}",
            make,
            after=[PIVOT, "chats", *after],
            settings=[
                self.recipe.train,
                target.loss,
                self.recipe.chunk_temperature,
                self.recipe.represent.max_tokens,
                self.recipe.represent.template,
                self.recipe.seed,
                self.recipe.threads,
            ],
            together=True,
        )

    def _examples(self, target: Target) -> tuple[Callable[[ChatModel], Dataset[Example]], list[str]]:
        """What a target learns from, made of the pivot when it is trained; and the stages that it follows from."""
        if self.recipe.fusion.kind == "replies":
            replies = self._chosen_replies() if target.sampled else self.train_chats
            after = [f"sample/{REPLIES}"] if target.sampled else []
            return lambda pivot: self._supervised_examples(replies, pivot), after
        chosen = self._select(target)
        if target.sampled:
            replies = self._sample(target, chosen)
            after = [f"select/{target.name}", f"sample/{target.name}"]
            return lambda pivot: self._supervised_examples(replies, pivot), after
        return lambda pivot: self._fusion_examples(chosen), [f"select/{target.name}"]

    def _trained_dtype(self) -> str:
        """float32, over which bfloat16 training is autocast; a pivot that LoRA leaves as it is may stay in bfloat16."""
        stored = {*Checkpoint(self.paths[PIVOT]).dtypes.values()}
        frozen = self.recipe.train.lora is not None and self.recipe.train.dtype == "bfloat16"
        return "bfloat16" if frozen and stored == {torch.bfloat16} else "float32"

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

    def _supervised_examples(self, chats: Sequence[Conversation], pivot: ChatModel) -> SupervisedExamples:
        """The chats that the pivot can read; the others were counted before."""
        limit = context_of(pivot.model, self.recipe.represent.max_tokens)
        read = {chat.id: self._as_the_pivot_reads(chat.messages, limit) for chat in chats}
        rendered = {id_: one for id_, one in read.items() if one is not None}
        return SupervisedExamples([*rendered], [*rendered.values()])

    def _pivot_can_read(self, messages: Sequence[Message]) -> bool:
        return self._as_the_pivot_reads(messages) is not None

    def _as_the_pivot_reads(self, messages: Sequence[Message], max_tokens: int | None = None) -> Rendered | None:
        """A chat under the pivot's template; None where that refuses it."""
        try:
            return render(self._tokenizer(PIVOT), messages, max_tokens=max_tokens)
        except DataError:
            return None

    def _chosen_replies(self) -> list[Conversation]:
        """The training chats with the best-rated reply of all sources in the place of the last one."""
        sampling, judge_settings = self.recipe.fusion.sampling, self.recipe.fusion.judge
        assert judge_settings is not None
        sampled = {}
        for name in self.recipe.sources:

            def sample(folder: Path, name: str = name) -> None:
                sampler = LocalSampler(self._load(name, self.recipe.represent.dtype))
                on_progress = functools.partial(self.on_progress, f"sample {name}")
                sample_source(sampler, self.train_chats, sampling, folder, on_progress)

            read_as = [sampling, self.recipe.represent.dtype, self.recipe.trust_remote_code]
            sampled[name] = self._stage(f"replies/{name}", sample, after=["chats", name], settings=read_as)

        def rate(folder: Path) -> None:
            cache = self.run.path / "judge.sqlite"
            with open_judge(judge_settings, folder=self.places.recipe_folder, cache=cache) as judge:
                for name, stage in sampled.items():
                    on_progress = functools.partial(self.on_progress, f"rate {name}")
                    rate_source(judge, self.train_chats, read_replies(stage), folder / f"{name}.jsonl", on_progress)

        files = [key for key in self.keys if key.startswith("fusion.judge.")]
        replies = [f"replies/{name}" for name in sampled]
        rated = self._stage("ratings", rate, after=[*replies, *files], settings=[judge_settings])

        def pick_best(folder: Path) -> None:
            found = [read_rated(name, read_replies(stage), rated / f"{name}.jsonl") for name, stage in sampled.items()]
            chosen = choose(self.train_chats, itertools.chain(*found), self._pivot_can_read)
            write_chosen(chosen, folder)
            write_json(folder / "teachers.json", chosen.teachers)
            write_json(folder / "kept_gold.json", chosen.kept_gold)

        chosen = self._stage(f"sample/{REPLIES}", pick_best, after=[PIVOT, "chats", "ratings"])
        return read_conversations(chosen / "chats.jsonl")

    def _sample(self, target: Target, chosen: Path) -> list[Conversation]:
        """The training chats, the last reply of each taken from the source that wins there; gold where none does.

        Gold stays, too, where the reply did not end or the pivot cannot read it; those are counted.
        """
        winners: list[str | None] = json.loads((chosen / "teachers.json").read_text())["conversations"]

        def make(folder: Path) -> None:
            chats = list(self.train_chats)
            kept_gold: Counter[str] = Counter()
            for source in target.sources:
                for index, reply, cut_off in self._replies_of(source, winners):
                    answered = (*chats[index].prompt, Message("assistant", reply))
                    if cut_off:
                        kept_gold["reply cut off"] += 1
                        continue
                    if not self._pivot_can_read(answered):
                        kept_gold["reply not readable by the pivot"] += 1
                        continue
                    chats[index] = replace(chats[index], messages=answered)
            write_jsonl(folder / "chats.jsonl", (row_of(replace(chats[i], extra={})) for i in self._learnt()))
            write_json(folder / "kept_gold.json", kept_gold)

        stage = self._stage(
            f"sample/{target.name}",
            make,
            after=[PIVOT, *target.sources, f"select/{target.name}"],
            settings=[self.recipe.represent, self.recipe.targets.max_new_tokens],
        )
        return read_conversations(stage / "chats.jsonl")

    def _replies_of(self, source: str, winners: Sequence[str | None]) -> Iterator[tuple[int, str, bool]]:
        """`(index, reply, cut_off)`: what the source answers where it wins, by index of the training chat."""
        won = [index for index, winner in enumerate(winners) if winner == source]
        if not won:
            return
        chat_model = self._load(source, self.recipe.represent.dtype)
        template = self._shared_template()
        prompts = [
            render_prompt(chat_model.tokenizer, self.train_chats[index].prompt, chat_template=template) for index in won
        ]
        replies = sample_greedily(chat_model, prompts, max_new_tokens=self.recipe.targets.max_new_tokens)
        for done, (place, reply, cut_off) in enumerate(replies, start=1):
            self.on_progress(f"sample {source}", done, len(won))
            yield won[place], reply.strip(), cut_off

    # -- merge, evaluate, hand over --------------------------------------------------------------------------------

    def _merge(self, name: str, targets: Sequence[Path]) -> Path:
        base = self._merge_base(targets[0])

        def make(folder: Path) -> None:
            merge_checkpoints(
                base,
                targets,
                folder,
                self.recipe.merges[name],
                on_tensor=functools.partial(self.on_progress, f"merge {name}"),
                replace=True,  # what a killed call left in this partial folder
            )

        tuned = [f"train/{target_of(source)}" for source in self.recipe.sources]
        return self._stage(f"merge/{name}", make, after=[PIVOT, *tuned], settings=[self.recipe.merges[name]])

    def _merge_base(self, target: Path) -> Path:
        """The pivot under the tensor names of a target.

        transformers leaves out buffers that older checkpoints hold, and the head that is tied to the embeddings.
        """
        if {*Checkpoint(self.paths[PIVOT]).names} == {*Checkpoint(target).names}:
            return self.paths[PIVOT]

        def make(folder: Path) -> None:
            pivot = self._load(PIVOT, place=False)
            pivot.model.save_pretrained(folder)
            pivot.tokenizer.save_pretrained(folder)

        return self._stage("merge/pivot", make, after=[PIVOT])

    def _evaluate(self, name: str) -> Evaluation:
        settings = self.recipe.evaluate

        def make(folder: Path) -> None:
            chat_model = self._load(name, settings.dtype)
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

        folder = self._stage(
            f"evaluate/{name}",
            make,
            after=[name, "held out", *(f"tasks/{task}" for task in self.questions)],
            settings=[settings, self.recipe.represent.template, *self.recipe.tasks.values()],
        )
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
            usual = Counter(dtypes.values()).most_common(1)[0][0]
            fused_weights = Checkpoint(fused)
            bases = [self.recipe.pivot, *self.recipe.sources.values()]
            copy_companions(self.paths[PIVOT], folder)
            write_checkpoint(
                folder, ((name, fused_weights.tensor(name).to(dtypes.get(name, usual))) for name in fused_weights.names)
            )
            write_text(folder / "README.md", model_card(self.recipe, results, [*filter(self.places.is_on_hub, bases)]))

        model = self.run.stage("model", make)
        report = self.run.path / "report.html"
        if self.run.leads:
            write_json(self.run.path / "results.json", results)
            write_fusion_report(results, report)
        return FuseResult(self.run.path, model, report, results)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]
