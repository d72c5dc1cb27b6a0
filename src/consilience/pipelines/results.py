"""What a run found, from the records of its stages: the one dictionary that results.json and the report show."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from consilience.align import likeliest_partner
from consilience.errors import DataError
from consilience.evaluate import Answer, Outcome, Question, ReplyLikelihood
from consilience.fuse import Match, Representation
from consilience.pipelines.recipe import REPLIES, FuseRecipe, target_of
from consilience.records import Conversation
from consilience.run import RunFolder, versions
from consilience.stats import Estimate, average, difference, proportion, ratio
from consilience.train import read_curve

SAMPLES = 6
CAVEATS = (
    "Intervals cover the choice of held-out chats and questions. They do not cover another training run, "
    "another data set or another recipe.",
    "Comparisons are paired: the same chats and the same questions under every model.",
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model did on the held-out chats and on the questions of every task."""

    likelihood: Sequence[ReplyLikelihood]
    answers: Mapping[str, Sequence[Answer]]


def summarize(
    recipe: FuseRecipe,
    run: RunFolder,
    *,
    paths: Mapping[str, Path],
    train_chats: Sequence[Conversation],
    held_out: Sequence[Conversation],
    questions: Mapping[str, Sequence[Question]],
    representations: Mapping[str, Representation],
    matches: Mapping[str, Match],
    evaluations: Mapping[str, Evaluation],
) -> dict[str, Any]:
    """The results of a run: every measured number as an estimate with its interval."""
    everywhere = _scored_by_all(evaluations)
    if not everywhere:
        raise DataError(
            f"none of the {len(held_out)} held-out conversations was read whole by every model, so nothing can be "
            f"compared; evaluate.max_tokens is {recipe.evaluate.max_tokens}. Raise it, or hold out shorter chats."
        )
    measured = {
        name: _Measures.of(evaluation, everywhere, recipe.evaluate.level) for name, evaluation in evaluations.items()
    }
    baselines = ["pivot", *recipe.targets.controls]
    return {
        "title": recipe.title,
        "note": recipe.note,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "run": run.path.name,
        "recipe": yaml.safe_dump(recipe.model_dump(mode="json", exclude_none=True), sort_keys=False),
        "result": recipe.result_name,
        "pivot": "pivot",
        "baseline": "sft" if "sft" in measured else None,
        "data": {
            "train": _described(train_chats),
            "held_out": _described(held_out),
            "set_aside": _set_aside(representations, evaluations, everywhere) | _gold_kept(run),
        },
        "alignment": {name: _alignment(recipe, run, name, found) for name, found in matches.items()},
        "models": {
            name: {
                "role": _role(recipe, name),
                "path": _path_of(recipe, run, name, paths[name]),
                "about": _about(recipe, name),
                **measures.to_json(),
                "differences": {other: measures.minus(measured[other]) for other in baselines if other != name},
            }
            for name, measures in measured.items()
        },
        "samples": _samples(questions, evaluations),
        "training": {name: read_curve(run.path / "train" / name) for name in recipe.target_names},
        "padding": {name: found for name in recipe.target_names if (found := _padding(run.path / "train" / name))},
        "seconds": run.seconds(),
        "versions": versions(),
        "caveats": [*CAVEATS, *_overlap(train_chats, held_out)],
    }


def _padding(trained: Path) -> dict[str, Any] | None:
    """What padding is of the positions of a training's padded batches, and whether it was left out."""
    counted = trained / "batches.json"
    if not counted.is_file():  # taken from a run that did not count
        return None
    batches = json.loads(counted.read_text())
    return {"share": 1 - batches["tokens"] / max(batches["padded"], 1), "left_out": batches["packed"]}


@dataclass(frozen=True, slots=True)
class _Measures:
    nll: Estimate
    nll_by_group: Mapping[str, Estimate]
    accuracy: Estimate | None
    accuracy_by_task: Mapping[str, Estimate]
    outcomes: Mapping[str, Mapping[str, int]]

    @classmethod
    def of(cls, evaluation: Evaluation, ids: set[str], level: float) -> _Measures:
        scored = [record for record in evaluation.likelihood if record.id in ids]
        groups = sorted({record.group for record in scored} - {""})
        by_group = {group: _nll([r for r in scored if r.group == group], level) for group in groups}
        by_task = {
            task: proportion(
                [answer.outcome == Outcome.CORRECT for answer in answers],
                [f"{task}/{answer.id}" for answer in answers],
                unit_kind="questions",
                level=level,
            )
            for task, answers in evaluation.answers.items()
        }
        outcomes = {
            task: dict(Counter(str(a.outcome) for a in answers)) for task, answers in evaluation.answers.items()
        }
        several = len(by_task) > 1
        accuracy = average([*by_task.values()]) if several else next(iter(by_task.values()), None)
        return cls(_nll(scored, level), by_group, accuracy, by_task, outcomes)

    def to_json(self) -> dict[str, Any]:
        return {
            "nll": self.nll.to_json(),
            "nll_by_group": {group: nll.to_json() for group, nll in self.nll_by_group.items()},
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
            "accuracy_by_task": {task: share.to_json() for task, share in self.accuracy_by_task.items()},
            "outcomes": self.outcomes,
        }

    def minus(self, other: _Measures) -> dict[str, Any]:
        both = self.accuracy is not None and other.accuracy is not None
        return {
            "nll": difference(self.nll, other.nll).to_json(),
            "accuracy": difference(self.accuracy, other.accuracy).to_json() if both else None,  # type: ignore[arg-type]
        }


def _nll(records: Sequence[ReplyLikelihood], level: float) -> Estimate:
    """Nats per byte of reply text; conversations with one opening prompt are one unit."""
    return ratio(
        [record.nats for record in records],
        [record.bytes for record in records],
        [record.opening for record in records],
        unit_kind="prompts",
        level=level,
    )


def _scored_by_all(evaluations: Mapping[str, Evaluation]) -> set[str]:
    """Held-out conversations that every model read whole: the ones all are compared on."""
    scored = [{r.id for r in e.likelihood if r.status == "scored"} for e in evaluations.values()]
    return set.intersection(*scored)


def _set_aside(
    representations: Mapping[str, Representation], evaluations: Mapping[str, Evaluation], everywhere: set[str]
) -> dict[str, int]:
    """Counts of what was left out, by model and reason."""
    counts: Counter[str] = Counter()
    for name, representation in representations.items():
        counts.update(f"training: {reason} ({name})" for reason in representation.set_aside.values())
    for name, evaluation in evaluations.items():
        aside = (record.status for record in evaluation.likelihood if record.status != "scored")
        counts.update(f"held out: {status} ({name})" for status in aside)
    some = {record.id for evaluation in evaluations.values() for record in evaluation.likelihood} - everywhere
    if some:
        counts["held out: not read whole by every model, so compared under none"] = len(some)
    return dict(counts)


def _gold_kept(run: RunFolder) -> dict[str, int]:
    """Replies of the sources that are not learnt, by reason: gold stayed in their place."""
    files = sorted((run.path / "sample").glob("*/kept_gold.json"))
    counts = {file.parent.name: json.loads(file.read_text()) for file in files}
    return {
        f"sampled {what}, gold kept ({name})": n for name, by_reason in counts.items() for what, n in by_reason.items()
    }


def _overlap(train_chats: Sequence[Conversation], held_out: Sequence[Conversation]) -> list[str]:
    """A caveat where prompts are on both sides, which can only be when the held-out chats are a file of their own."""
    learnt = {chat.opening for chat in train_chats}
    both = sum(chat.opening in learnt for chat in held_out)
    if not both:
        return []
    return [f"{both} of the {len(held_out)} held-out chats begin with a prompt that is also trained on."]


def _described(chats: Sequence[Conversation]) -> dict[str, Any]:
    groups = Counter(chat.group for chat in chats if chat.group)
    reply_bytes = sum(len(reply.encode(errors="surrogatepass")) for chat in chats for reply in chat.replies)
    return {"conversations": len(chats), "reply_bytes": reply_bytes, "groups": dict(groups)}


def _alignment(recipe: FuseRecipe, run: RunFolder, name: str, found: Match) -> dict[str, Any]:
    """How well a source's positions and tokens match the pivot's, over the training chats."""
    quality, level = found.quality, recipe.evaluate.level
    result: dict[str, Any] = {
        "matched": _ratio_over_chats(quality["matched"], quality["positions"], level),
        "same_span": quality["one_to_one"] / max(sum(quality["positions"]), 1),
        "vocabulary": _vocabulary(found, recipe.align.vocabulary),
        "examples": quality["examples"],
    }
    teaching = next((t for t in (target_of(name), "many_to_one") if t in recipe.target_names), None)
    if teaching is not None:
        teachers = json.loads((run.path / "select" / teaching / "teachers.json").read_text())
        mass = teachers["mass"][name]
        result["kept_mass"] = _ratio_over_chats(mass["kept"], mass["positions"], level)
        if recipe.select.teach == "tokens":
            result["mapped_mass"] = _ratio_over_chats(mass["mapped"], mass["positions"], level)
        result["teacher_share"] = {
            group or "all": {teacher: count / sum(counts.values()) for teacher, count in sorted(counts.items())}
            for group, counts in sorted(teachers["positions"].items())
        }
    return result


def _ratio_over_chats(parts: Sequence[float], wholes: Sequence[float], level: float) -> dict[str, Any]:
    chats = [(part, whole, str(i)) for i, (part, whole) in enumerate(zip(parts, wholes)) if whole > 0]
    numerators, denominators, units = zip(*chats)
    return ratio(numerators, denominators, units, unit_kind="conversations", level=level).to_json()


def _vocabulary(found: Match, name: str) -> dict[str, int]:
    """How many source tokens are mapped, and how: to a token of the same bytes, by statistics, or not at all."""
    partner = likeliest_partner(found.vocabulary(name))
    same = (partner >= 0) & (partner == likeliest_partner(found.vocabulary("exact")))
    counts = {"exact": int(same.sum())} | ({name: int(((partner >= 0) & ~same).sum())} if name != "exact" else {})
    return counts | {"unmapped": int((partner < 0).sum())}


def _path_of(recipe: FuseRecipe, run: RunFolder, name: str, path: Path) -> str:
    """Where a model is: inside the run folder, or as the recipe names it."""
    if path.is_relative_to(run.path):
        return str(path.relative_to(run.path))
    return recipe.pivot if name == "pivot" else recipe.sources[name]


def _role(recipe: FuseRecipe, name: str) -> str:
    if name == "pivot":
        return "pivot"
    if name in recipe.sources:
        return "source"
    if name in recipe.merges:
        return "merge"
    return "control" if name in recipe.targets.controls else "target"


def _about(recipe: FuseRecipe, name: str) -> str:
    """One line on what a model is."""
    if name == "pivot":
        return "where every target starts"
    if name in recipe.sources:
        return recipe.sources[name]
    if name in recipe.merges:
        merge = recipe.merges[name]
        how = ", ".join([merge.method, *(f"{key} {value}" for key, value in merge.parameters.items())])
        return f"a merge ({how}) of the {len(recipe.sources)} copies of the pivot that are fused with one source each"
    if name in recipe.targets.variants:
        variant = recipe.targets.variants[name].model_dump(exclude_none=True)
        changed = ", ".join(f"{key}={value}" for key, value in variant.items() if key != "sources")
        return f"pivot fused with {', '.join(variant['sources'])}" + (f"; {changed}" if changed else "")
    return {
        "sft": "pivot trained on the gold replies, same chats and steps",
        "seqkd": "pivot trained on the winning sources' own replies, gold where no source wins",
        "many_to_one": "pivot fused with all sources in one run",
        REPLIES: "pivot trained on the sources' replies that the judge rated best, gold where none was rated",
    }.get(name, f"pivot fused with {name.removeprefix('fused_')}")


def _samples(
    questions: Mapping[str, Sequence[Question]], evaluations: Mapping[str, Evaluation]
) -> list[dict[str, Any]]:
    """A few questions with every model's reply: the first ones of every task, not chosen by hand."""
    return [
        {
            "prompt": question.messages[-1].content,
            "expected": question.answer,
            "answers": {name: evaluation.answers[task][index].reply for name, evaluation in evaluations.items()},
        }
        for task, index, question in _first_of_each(questions)
    ]


def _first_of_each(questions: Mapping[str, Sequence[Question]]) -> Iterable[tuple[str, int, Question]]:
    each = max(1, SAMPLES // max(len(questions), 1))
    return ((task, index, question) for task, asked in questions.items() for index, question in enumerate(asked[:each]))
