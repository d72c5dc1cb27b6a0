"""The whole of `consilience evaluate`: every model answers every task, replies are scored, models compared in pairs.

RUN/answers/TASK/MODEL/    records.jsonl: prompt, reply and status; of multiple choice: likelihoods.jsonl
RUN/judgments/TASK/MODEL/  judgments.jsonl: what a judge said of the replies, where the task has one
RUN/scores.jsonl           every score of every reply, with its status: what `consilience compare RUN` reads
RUN/results.json report.html
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml

from consilience.config import load_recipe
from consilience.errors import DataError
from consilience.evaluate.answers import FinishedAnswers, Record, ask, read_records
from consilience.evaluate.checked import CheckedSettings, CheckedTask, IfevalSettings, checked_task, ifeval_task
from consilience.evaluate.choice import ChoiceSettings, ChoiceTask, choice_task, read_likelihoods, write_likelihoods
from consilience.evaluate.comparison import compare_estimates
from consilience.evaluate.judge_bias import bias_of
from consilience.evaluate.judged import (
    Judged,
    JudgedTask,
    LengthControl,
    MtBenchSettings,
    OneTurnTask,
    PairwiseSettings,
    RatedSettings,
    mt_bench_task,
    one_turn_task,
    read_judged,
)
from consilience.evaluate.length_control import fits
from consilience.evaluate.logs import Log, Score, scores_row
from consilience.judge import Judge, open_judge, prompt_named
from consilience.models import ReplyStatus, Sampler, open_model, refuse_engine
from consilience.models.endpoint import Endpoint, notes_kept
from consilience.pipelines.compare import CompareSettings, compared, estimates_json
from consilience.pipelines.evaluation_recipe import EvaluateRecipe
from consilience.pipelines.places import Places
from consilience.records import Message, VerdictState, write_jsonl
from consilience.report.evaluation import write_evaluation_report
from consilience.rng import stream
from consilience.run import RunFolder, fingerprint, open_run, versions, write_json

OnProgress = Callable[[str, int, int], None]
Task = CheckedTask | ChoiceTask | JudgedTask
SAMPLES = 3  # replies of every task that the report shows


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Where a finished run left what it made, and the results that its report shows."""

    run: Path
    report: Path
    results: Mapping[str, Any]


def evaluate_recipe(
    path: Path,
    out: Path,
    overrides: Sequence[str] = (),
    *,
    retry: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> EvaluateResult:
    """Runs the recipe at `path` into the run folder `out`, or goes on with the run that is there.

    What was not asked because the budget was spent is asked now, and with `retry` what ended with a server's error;
    what was answered is in the cache.
    Raises `ConfigError`, `DataError` or `BackendError` for what the user can put right.
    """
    recipe = load_recipe(path, EvaluateRecipe, overrides)
    places = Places(path.parent, out)
    settings = recipe.decides(exclude={"title", "note", "margins", "reference", "level"})
    with open_run(out, settings, _fingerprints(recipe, places)) as run:
        _forget_unanswered(run, errors=retry)
        return _Evaluation(recipe, places, run, on_progress).carry_out()


def _forget_unanswered(run: RunFolder, *, errors: bool) -> None:
    """Takes back the stages in which a server was not asked for want of budget, or with `errors` gave no answer; and a
    task's judgments where replies are asked again."""
    replies = {ReplyStatus.OVER_BUDGET} | ({ReplyStatus.ERROR} if errors else set())
    verdicts = {VerdictState.OVER_BUDGET} | ({VerdictState.API_ERROR} if errors else set())
    for file in [*run.path.glob("answers/*/*/records.jsonl")]:
        if any(record.status in replies for record in read_records(file)):
            shutil.rmtree(file.parent)
            task = file.parts[-3]
            shutil.rmtree(run.path / "judgments" / task, ignore_errors=True)  # of all: it may be their baseline
    for file in [*run.path.glob("judgments/*/*/judgments.jsonl")]:
        if any(one.judgment.state in verdicts for one in read_judged(file)):
            shutil.rmtree(file.parent)


def _fingerprints(recipe: EvaluateRecipe, places: Places) -> dict[str, str]:
    """A hash of every model and file that the recipe names; the run's own tiny world follows from its seed."""
    found: dict[str, Path] = {}
    for name, model in recipe.models.items():
        if model.path is not None and not places.is_made_here(model.path):
            found[f"models.{name}"] = places.model(model.path)
        files = model.answers if isinstance(model.answers, dict) else {"": model.answers} if model.answers else {}
        found |= {f"models.{name}.answers.{task}".rstrip("."): places.file(file) for task, file in files.items()}
    for name, task in recipe.tasks.items():
        files = {"path": task.path}
        if isinstance(task, CheckedSettings) and task.function:
            files["function"] = task.function.rpartition(":")[0]
        if isinstance(task, MtBenchSettings) and task.references:
            files["references"] = task.references
        if isinstance(task, PairwiseSettings) and isinstance(task.length_control, LengthControl):
            files |= {"gamed": task.length_control.gamed} if task.length_control.gamed else {}
        found |= {
            f"tasks.{name}.{key}": places.file(file) for key, file in files.items() if not places.is_made_here(file)
        }
    for name, judge in recipe.judges.items():
        if judge.model is not None and not places.is_made_here(judge.model):
            found[f"judges.{name}.model"] = places.model(judge.model)
        found |= {f"judges.{name}.{key}": places.file(file) for key, file in judge.files.items()}
    for key, file in found.items():
        if not file.exists():
            raise DataError(f"{key}: no file {str(file)!r}. Paths are relative to the recipe ({places.recipe_folder}).")
    return {key: fingerprint(file) for key, file in found.items()}


class _Evaluation:
    """One run of a recipe."""

    def __init__(self, recipe: EvaluateRecipe, places: Places, run: RunFolder, on_progress: OnProgress) -> None:
        self.recipe, self.places, self.run, self.on_progress = recipe, places, run, on_progress

    @property
    def _cache(self) -> Path:
        """The file that servers' answers are kept in: none of them is paid twice."""
        return self.places.file(self.recipe.cache) if self.recipe.cache else self.run.path / "cache.sqlite"

    def carry_out(self) -> EvaluateResult:
        if self.recipe.tiny is not None:
            self.run.stage("tiny", self._make_tiny)
        tasks = {name: self._read_task(name) for name in self.recipe.tasks}
        for task in tasks.values():
            _refuse_one_unit(task)
        for judge in self.recipe.judges.values():
            if judge.endpoint is not None:
                judge.endpoint.api_key()
        for name in self.recipe.models:
            _Model(self.recipe, self.places, name, self._cache).refuse_unusable([*tasks])
        for name in self.recipe.models:
            with _Model(self.recipe, self.places, name, self._cache) as model:
                for task in tasks.values():
                    self._answer(model, task)
        with _Judges(self.recipe, self.places, self._cache) as judges:
            for task in tasks.values():
                if isinstance(task, JudgedTask):
                    self._judge(task, judges)
        scores = {name: self._scores(task) for name, task in tasks.items()}
        judge_of = {name: self._judge_of(task) for name, task in tasks.items()}
        rows = (
            scores_row(name, score, tasks[name].metrics[score.metric], judge_of[name])
            for name in tasks
            for score in scores[name]
        )
        write_jsonl(self.run.path / "scores.jsonl.partial", rows)
        (self.run.path / "scores.jsonl.partial").rename(self.run.path / "scores.jsonl")
        results: dict[str, Any] = {
            "title": self.recipe.title,
            "note": self.recipe.note,
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "recipe": yaml.safe_dump(
                self.recipe.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True
            ),
            "level": self.recipe.level,
            "notes": self._notes(),
            "models": {name: {"about": self._about(name)} for name in self.recipe.models},
            "tasks": {name: self._result(task, scores[name]) for name, task in tasks.items()},
        }
        results["not_included"] = _not_included(results["tasks"])
        write_json(self.run.path / "results.json", results)
        report = self.run.path / "report.html"
        write_evaluation_report(results, report)
        return EvaluateResult(self.run.path, report, results)

    def _notes(self) -> list[str]:
        """What servers do otherwise than asked, whichever command of a resumed run it was that asked them."""
        asked = {name: model.endpoint for name, model in self.recipe.models.items()}
        asked |= {f"judge {name}": judge.endpoint for name, judge in self.recipe.judges.items()}
        there = {name: endpoint for name, endpoint in asked.items() if endpoint is not None}
        return [f"{name}: {note}" for name, endpoint in there.items() for note in notes_kept(self._cache, endpoint)]

    def _make_tiny(self, folder: Path) -> None:
        from consilience.pipelines.tiny import make_tiny_world

        assert self.recipe.tiny is not None
        make_tiny_world(
            folder,
            seed=self.recipe.tiny.seed,
            steps_scale=self.recipe.tiny.steps_scale,
            on_progress=lambda what, done, total: self.on_progress(f"tiny {what}", done, total),
        )

    def _read_task(self, name: str) -> Task:
        settings = self.recipe.tasks[name]
        seeded = settings.sampling.model_copy(update={"seed": self.recipe.sampling_seed(name)})
        settings = settings.model_copy(update={"sampling": seeded})
        if isinstance(settings, ChoiceSettings):
            return choice_task(name, settings, self.places.file)
        if isinstance(settings, IfevalSettings):
            return ifeval_task(name, settings, self.places.file)
        if isinstance(settings, MtBenchSettings):
            return mt_bench_task(name, settings, self.places.file)
        if isinstance(settings, PairwiseSettings | RatedSettings):
            return one_turn_task(name, settings, self.places.file)
        return checked_task(name, settings, self.places.file)

    def _answers(self, task: str, model: str) -> Path:
        return self.run.path / "answers" / task / model

    def _answer(self, model: _Model, task: Task) -> None:
        """The stage that asks one model all of a task."""

        def make(folder: Path) -> None:
            on_progress = partial(self.on_progress, f"{task.name} {model.name}")
            if isinstance(task, ChoiceTask):
                found = task.likelihoods(model.loaded, on_progress=on_progress)
                write_likelihoods(folder / "likelihoods.jsonl", found)
                return
            sampler = model.sampler(task.name)
            records: list[Record] = []
            turn = 1
            while asked := task.asked(turn, records):
                parts = folder / f"turn-{turn}"
                records += ask(sampler, model.name, task.name, asked, parts, on_progress=on_progress)
                turn += 1
            write_jsonl(folder / "records.jsonl", (record.to_json() for record in records))
            for parts in folder.glob("turn-*"):
                shutil.rmtree(parts)

        self.run.stage(f"answers/{task.name}/{model.name}", make)

    def _judge(self, task: JudgedTask, judges: _Judges) -> None:
        """The stages in which the judge sees every model's replies, after all models have answered."""
        baseline = _baseline(task)
        for model in self._compared(task):

            def make(folder: Path, model: str = model) -> None:
                found = task.judged(
                    judges.open(task.settings.judge),
                    self._records(task.name, model),
                    self._records(task.name, baseline) if baseline else [],
                    on_progress=partial(self.on_progress, f"judge {task.name} {model}"),
                )
                write_jsonl(folder / "judgments.jsonl", (one.to_json(task.name) for one in found))

            self.run.stage(f"judgments/{task.name}/{model}", make)

    def _compared(self, task: Task) -> list[str]:
        """The models that a task compares: a baseline is not compared with itself."""
        return [model for model in self.recipe.models if model != _baseline(task)]

    def _records(self, task: str, model: str) -> list[Record]:
        return read_records(self._answers(task, model) / "records.jsonl")

    def _judgments(self, task: str) -> list[Judged]:
        folders = (self.run.path / "judgments" / task / model for model in self.recipe.models)
        return [one for folder in folders if folder.is_dir() for one in read_judged(folder / "judgments.jsonl")]

    def _judge_of(self, task: Task) -> str:
        """The judge's name, as it signs its judgments; of a rule, nothing."""
        if not isinstance(task, JudgedTask):
            return ""
        return next((one.judgment.judge for one in self._judgments(task.name)), task.settings.judge)

    def _scores(self, task: Task) -> list[Score]:
        if isinstance(task, JudgedTask):
            return [*task.scores(self._judgments(task.name))]
        scores: list[Score] = []
        for model in self.recipe.models:
            folder = self._answers(task.name, model)
            if isinstance(task, ChoiceTask):
                scores += task.scores(read_likelihoods(folder / "likelihoods.jsonl"))
            else:
                scores += task.scores(read_records(folder / "records.jsonl"))
        return scores

    def _result(self, task: Task, scores: Sequence[Score]) -> dict[str, Any]:
        result = {
            "kind": task.settings.kind,
            "items": len(task.items),
            "comparisons": {metric: self._comparison(task, metric, scores) for metric in task.metrics},
            "samples": self._samples(task),
        }
        if isinstance(task, JudgedTask):
            judged = self._judgments(task.name)
            settings = task.settings
            pairs = isinstance(settings, PairwiseSettings) or _baseline(task) is not None
            prompts = {one.judgment.prompt for one in judged if one.judgment.prompt}
            result["judge"] = {
                "name": self._judge_of(task),
                "prompts": [prompt_named(digest) for digest in sorted(prompts)],
                "notes": [*task.notes, *_cut(judged)],
                "pairs": pairs,
                "bias": {
                    model: bias_of(
                        [one for one in judged if one.model == model],
                        pairs=pairs,
                        unit_kind=task.unit_kind,
                        level=self.recipe.level,
                    )
                    for model in self._compared(task)
                },
            }
            if isinstance(task, OneTurnTask) and isinstance(settings, PairwiseSettings) and settings.length_control:
                result["length_control"] = self._length_control(task, judged)
        return result

    def _length_control(self, task: OneTurnTask, judged: Sequence[Judged]) -> dict[str, Any]:
        """Length-controlled win rates compared in pairs, and every model's fit."""
        made, refused = fits(task, judged, self.places.file)
        result: dict[str, Any] = {"fits": {model: dict(fit.shown) for model, fit in made.items()}, "refused": refused}
        if made:
            found = compare_estimates(
                lambda level: {model: fit.at(level) for model, fit in made.items()},
                rng=stream(0, "compare"),
                level=self.recipe.level,
                margin=self.recipe.margins.get(task.name),
            )
            [metric] = task.metrics
            result["comparison"] = estimates_json(
                found,
                metric=f"length-controlled {metric}",
                unit_kind="instructions",
                judged=self._judge_of(task),
                reference=self.recipe.reference,
            )
        return result

    def _comparison(self, task: Task, metric: str, scores: Sequence[Score]) -> dict[str, Any]:
        """As `consilience compare` has it; a model without any score is named apart, with what became of its items."""
        mine = [score for score in scores if score.metric == metric]
        measured = {score.model for score in mine if not math.isnan(score.value)}
        log = Log(
            kind="evaluation (consilience)",
            scores=[score for score in mine if score.model in measured],
            metrics=task.metrics,
            item_kind=task.item_kind,
            cluster_kind=getattr(task, "unit_kind", "clusters"),
            judged=self._judge_of(task),
        )
        left_out = {
            model: dict(Counter(str(score.status) for score in mine if score.model == model))
            for model in self._compared(task)
            if model not in measured
        }
        settings = CompareSettings(
            metric=metric,
            level=self.recipe.level,
            margin=self.recipe.margins.get(task.name),
            reference=self.recipe.reference if self.recipe.reference in measured else None,
        )
        if not measured:
            return {"metric": metric, "not_measured": left_out, "refused": "no model has a score on any item"}
        try:
            return compared({task.name: log}, settings, fewest=1) | {"not_measured": left_out}
        except DataError as error:  # so few items were scored that no spread is known: said beside the other results
            return {"metric": metric, "not_measured": left_out, "refused": str(error)}

    def _about(self, name: str) -> str:
        model = self.recipe.models[name]
        if model.endpoint is not None:
            return f"{model.endpoint.model} at {model.endpoint.url}"
        return str(model.path) if model.path is not None else "finished replies"

    def _samples(self, task: Task) -> list[dict[str, Any]]:
        """The first items with every model's reply: not chosen by hand."""
        if isinstance(task, ChoiceTask):
            return []
        by_item: dict[str, dict[str, Record]] = {item.id: {} for item in task.items[:SAMPLES]}
        for model in self.recipe.models:
            for record in read_records(self._answers(task.name, model) / "records.jsonl"):
                if record.item in by_item and (record.turn, record.sample) == (1, 0):
                    by_item[record.item][model] = record
        return [
            {
                "prompt": next(iter(found.values())).messages[-1].content,
                "replies": {model: {"text": one.reply, "status": one.status.value} for model, one in found.items()},
            }
            for found in by_item.values()
            if found
        ]


def _not_included(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the intervals leave out, each once; with the tasks it is true of, where it is not true of all."""
    said: dict[str, dict[str, None]] = {}
    for name, task in tasks.items():
        for comparison in [*task["comparisons"].values(), task.get("length_control", {}).get("comparison")]:
            for line in (comparison or {}).get("not_included", ()):
                said.setdefault(line, {})[name] = None
    return [line if len(of) == len(tasks) else f"{line} ({', '.join(of)})" for line, of in said.items()]


class _Model:
    """A model of the recipe, loaded or connected to when it is first asked something."""

    def __init__(self, recipe: EvaluateRecipe, places: Places, name: str, cache: Path) -> None:
        self.recipe, self.places, self.name, self.cache = recipe, places, name, cache
        self.settings = recipe.models[name]
        self.endpoint: Endpoint | None = None

    def __enter__(self) -> _Model:
        return self

    def __exit__(self, *_: object) -> None:
        if self.endpoint is not None:
            self.endpoint.close()

    def refuse_unusable(self, tasks: Sequence[str]) -> None:
        """Raises for a missing key, weights, tokenizer, chat template or file, before anything is asked or paid."""
        if self.settings.endpoint is not None:
            self.settings.endpoint.api_key()
        refuse_engine(self.settings)
        if self.settings.path is not None:
            from consilience.chat import render_prompt
            from consilience.models import load_tokenizer
            from consilience.weights import Checkpoint

            path = self.places.model(self.settings.path)
            Checkpoint(path)
            tokenizer = load_tokenizer(path, code=self.recipe.trust_remote_code)
            if any(self.recipe.tasks[task].needs_chat for task in tasks):
                render_prompt(tokenizer, [Message("user", "Hello")])
        for task in tasks:
            finished = self.settings.answers_to(task)
            if finished is not None:
                FinishedAnswers(self.name, self.places.file(finished), task)

    @cached_property
    def loaded(self) -> Any:
        import torch

        from consilience.models.load import make_room

        make_room()
        if self.recipe.threads:
            torch.set_num_threads(self.recipe.threads)
        assert self.settings.path is not None
        return open_model(
            self.places.model(self.settings.path),
            self.settings,
            name=self.name,
            dtype=self.settings.dtype,
            code=self.recipe.trust_remote_code,
        )

    def sampler(self, task: str) -> Sampler:
        """Who answers the task's prompts."""
        finished = self.settings.answers_to(task)
        if finished is not None:
            return FinishedAnswers(self.name, self.places.file(finished), task)
        if self.settings.endpoint is not None:
            if self.endpoint is None:
                self.endpoint = Endpoint(self.settings.endpoint, cache=self.cache)
            return self.endpoint
        from consilience.models import LocalSampler

        return LocalSampler(self.loaded, self.settings.batch_size)


class _Judges:
    """The recipe's judges, each opened when it is first asked."""

    def __init__(self, recipe: EvaluateRecipe, places: Places, cache: Path) -> None:
        self.recipe, self.places, self.cache = recipe, places, cache
        self.opened: dict[str, Judge] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Judges:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, name: str) -> Judge:
        """The judge called `name`. Raises what `open_judge` raises."""
        if name not in self.opened:
            settings = self.recipe.judges[name]
            if settings.model is not None:
                settings = settings.model_copy(update={"model": str(self.places.model(settings.model).resolve())})
            opened = open_judge(settings, folder=self.places.recipe_folder, cache=self.cache)
            self.opened[name] = self._stack.enter_context(opened)
        return self.opened[name]


def _cut(judged: Sequence[Judged]) -> list[str]:
    """How many judgments are of texts that the judge could not read to their end."""
    cut = sum(one.judgment.cut for one in judged)
    longer = "the prompt or a reply is longer than the judge reads, which saw its beginning only"
    return [f"{cut:,} of {len(judged):,} judgments: {longer}"] if cut else []


def _baseline(task: Task) -> str | None:
    """The model of the recipe that a task compares the others with."""
    return task.settings.baseline if isinstance(task.settings, PairwiseSettings | MtBenchSettings) else None


def _refuse_one_unit(task: Task) -> None:
    """Raises `DataError` before anything is asked: a spread takes two independent units."""
    units = {item.cluster or item.id for item in task.items}
    if len(units) < 2:
        what = f"all {len(task.items)} items are of one cluster" if len(task.items) > 1 else "it has one item"
        raise DataError(f"task {task.name}: {what}, {next(iter(units))!r}; an interval takes at least two.")
