"""Every configuration on the development sample: how it agrees with people, where it errs, what it costs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from consilience.annotate.codebook import CLOSED
from consilience.annotate.coder import Annotation, Coder, GivenLabels
from consilience.annotate.configuration import (
    coder_of,
    correction_to_json,
    digest,
    embedder_of,
    grouped_by_model,
    identity,
    pool_of,
    refuse_unanswerable,
    scores_labels,
)
from consilience.annotate.corpus import corpus, rows_of
from consilience.annotate.corrections import CONTENTLESS, CORRECTIONS, Affine, Fitting
from consilience.annotate.engines import load_engine
from consilience.annotate.examples import chooser_of
from consilience.annotate.gold import GoldItem, read_gold, refuse_examples, refuse_too_few
from consilience.annotate.recipe import Project
from consilience.annotate.strategies import STRATEGIES, Ask, Asked
from consilience.annotate.validate import Coded, validate
from consilience.errors import DataError
from consilience.rng import stream
from consilience.run import write_json, write_text

FOLDS = 5
ERRORS_SHOWN = 12
OnProgress = Callable[[str, int, int], None]


def compare_configurations(project: Project, on_progress: OnProgress) -> dict[str, Any]:
    """Codes the development sample with every configuration of the recipe; writes PROJECT/dev, returns its results."""
    refuse_unanswerable(project, project.recipe.configurations)
    gold = read_gold(project).dev
    if not gold:
        raise DataError(
            "no gold text is set aside for development: give dev.items above 0, or a split column with dev."
        )
    refuse_too_few(gold, project.codebook, "the development sample")
    columns = [project.recipe.data.cluster] if project.recipe.data.cluster else []
    rows = rows_of(project, [item.id for item in gold], columns)
    texts = {id_: row.text for id_, row in rows.items()}
    shown = project.codebook.example_texts | {shot.text.strip() for shot in pool_of(project)}
    refuse_examples(gold, texts, shown)
    clusters = {id_: str(row.values[0]) if columns else "" for id_, row in rows.items()}

    folder = project.folder / "dev"
    folder.mkdir(exist_ok=True)
    results: dict[str, Any] = {
        "items": len(gold),
        "ids": [item.id for item in gold],
        "gold": digest([[item.id, item.label] for item in gold]),
    }
    results["configurations"] = {}
    made = Judging(project, gold, texts, clusters)
    for model, names in grouped_by_model(project, [*project.recipe.configurations]):
        settings = project.recipe.models[model]
        if settings.column is not None:
            labels = rows_of(project, texts, text=settings.column)
            annotations = GivenLabels(project.codebook).code([*texts], [labels[id_].text for id_ in texts])
            by_id = {annotation.id: annotation for annotation in annotations}
            results["configurations"][names[0]] = made.result(names[0], [by_id[item.id] for item in gold])
            continue
        results["configurations"] |= _by_model(made, model, names, on_progress)
    write_json(folder / "results.json", results)
    return results


def _by_model(made: Judging, model: str, names: Sequence[str], on_progress: OnProgress) -> dict[str, Any]:
    """The results of one model's configurations. The model is held here only, and let go before the next is loaded."""
    recipe = made.project.recipe
    with closing(load_engine(model, recipe.models[model], made.project.folder, recipe.batch_size)) as engine:
        return {
            name: made.coded(name, coder_of(made.project, name, engine), partial(on_progress, name)) for name in names
        }


@dataclass(frozen=True)
class Judging:
    """The development texts with their gold, by which configurations are judged."""

    project: Project
    gold: Sequence[GoldItem]
    texts: Mapping[str, str]
    clusters: Mapping[str, str]

    def coded(self, name: str, coder: Coder, on_progress: Callable[[int, int], None]) -> dict[str, Any]:
        """Codes the texts with a configuration whose correction, if it has one, is fitted first."""
        ids = [item.id for item in self.gold]
        correction, out_of_fold, note = fitted(coder, self.gold, self.texts)
        started = time.perf_counter()
        annotations: list[Annotation] = []
        for begin in range(0, len(ids), 64):
            batch = ids[begin : begin + 64]
            annotations += replace(coder, correction=correction).code(batch, [self.texts[id_] for id_ in batch])
            on_progress(len(annotations), len(ids))
        seconds = time.perf_counter() - started
        judged = _with_labels(annotations, out_of_fold, coder) if out_of_fold is not None else None
        masses = [found.mass for found in annotations if found.mass is not None]
        return self.result(name, annotations, judged) | {
            "texts_per_second": len(ids) / seconds if seconds > 0 else None,
            "mean_mass": float(np.mean(masses)) if masses else None,
            "correction": correction_to_json(correction),
            "note": note,
            "prompt": example_prompt(coder, self.texts[ids[0]]),
        }

    def result(
        self, name: str, annotations: Sequence[Annotation], judged: Sequence[Annotation] | None = None
    ) -> dict[str, Any]:
        """What the annotations are worth; they are written to PROJECT/dev. `judged` are others to be judged by."""
        lines = [json.dumps(annotation.to_json(), ensure_ascii=False) + "\n" for annotation in annotations]
        path = self.project.folder / "dev" / f"{name}.jsonl"
        write_text(path, "".join(lines).encode("utf-8", "backslashreplace").decode())
        coded = [
            Coded(
                gold=item,
                label=found.label,
                status=str(found.status),
                probabilities=found.probabilities,
                cluster=self.clusters[item.id],
                length=len(self.texts[item.id]),
            )
            for item, found in zip(self.gold, judged or annotations, strict=True)
        ]
        return {
            "validation": validate(coded, self.project.codebook, seed=self.project.recipe.seed),
            "flagged": sum(bool(found.flags) for found in annotations),
            "errors": _errors(coded, self.texts),
            "identity": digest(identity(self.project, name)),
            "texts_per_second": None,
            "mean_mass": None,
            "correction": None,
            "note": "",
            "prompt": None,
        }


def fitted(
    coder: Coder, gold: Sequence[GoldItem], texts: Mapping[str, str]
) -> tuple[Affine | None, np.ndarray | None, str]:
    """The strategy's correction fitted on the development sample, and how the report has to speak of it.

    A correction that was fitted to gold flatters itself on that gold: it is judged by probabilities [N, K] from five
    folds, each fitted on the other four. Raises `DataError` where the scores that a correction needs are not there.
    """
    name = coder.strategy.correction
    if name == "none" or not scores_labels(coder):
        return None, None, ""
    plain = replace(coder, correction=None)
    scores_NK = plain.scores([texts[item.id] for item in gold]).scores_NK
    usable = np.isfinite(scores_NK).all(1)
    places = {label: i for i, label in enumerate(coder.codebook.names)}
    gold_N = np.array([places[item.label] for item in gold])
    contentless_CK, failures, _ = plain.scores(CONTENTLESS)
    given = Fitting(contentless_CK, scores_NK[usable], gold_N[usable])
    correction = CORRECTIONS[name](given)
    if not np.isfinite(correction.offsets_K).all():  # every text would get the first label
        why = next((f": {why}" for _, why in failures.values()), "")
        raise DataError(
            f"the {name} correction cannot be fitted, as the model gives no scores to {CONTENTLESS} or to any text of "
            f"the development sample{why}. Take another correction, or none."
        )
    if name != "affine":
        return correction, None, f"{name} correction fitted on the development texts, without their gold labels"
    fold_N = stream(coder.seed, "folds").permutation(int(usable.sum())) % FOLDS
    corrected_NK = np.full_like(scores_NK, np.nan)
    own_NK = np.empty_like(given.scores_NK)
    for fold in range(FOLDS):
        train = fold_N != fold
        part = Fitting(contentless_CK, given.scores_NK[train], given.gold_N[train])
        own_NK[~train] = CORRECTIONS[name](part)(given.scores_NK[~train])
    corrected_NK[usable] = own_NK
    return correction, corrected_NK, "affine correction fitted on development gold; judged by five folds"


def _with_labels(annotations: Sequence[Annotation], corrected_NK: np.ndarray, coder: Coder) -> list[Annotation]:
    found = []
    for annotation, scores_K in zip(annotations, corrected_NK):
        if annotation.label is None or not np.isfinite(scores_K).all():
            found.append(annotation)
            continue
        raised_K = np.exp(scores_K - scores_K.max())
        p = dict(zip(coder.codebook.names, (raised_K / raised_K.sum()).tolist()))
        found.append(replace(annotation, label=max(p, key=lambda name: p[name]), probabilities=p))
    return found


def _errors(coded: Sequence[Coded], texts: Mapping[str, str]) -> list[dict[str, str]]:
    wrong = [item for item in coded if item.label != item.gold.label]
    return [
        {"id": item.gold.id, "gold": item.gold.label, "model": item.category, "text": texts[item.gold.id][:300]}
        for item in wrong[:ERRORS_SHOWN]
    ]


def example_prompt(coder: Coder, text: str) -> list[dict[str, str]]:
    """What the model is asked about `text`, turn by turn, for people to look at."""
    order = coder.orders()[0] if coder.codebook.level in CLOSED else ()
    return turns_of(coder.engine.fit(STRATEGIES[coder.strategy.kind](*coder.asks([text], order=order))))


def prompts(project: Project) -> dict[str, list[dict[str, str]]]:
    """By strategy, what a model is asked about the first text, before its chat template: without any model."""
    text = next(corpus(project)).text
    found = {}
    for name, strategy in project.recipe.strategies.items():
        embed = embedder_of(project, strategy)
        shots = chooser_of(strategy.choose, pool_of(project), strategy.shots, project.recipe.seed, embed)([text])[0]
        ask = Ask(
            codebook=project.codebook,
            text=text,
            wording=project.recipe.wording,
            format="letter" if strategy.answer == "letters" else strategy.format,
            shots=shots,
            persona=strategy.persona,
        )
        found[name] = turns_of(STRATEGIES[strategy.kind](ask))
    return found


def turns_of(asked: Asked) -> list[dict[str, str]]:
    """The turns of a prompt as JSON; where the model reasons first, its reasoning has a place."""
    turns = [{"role": message.role, "content": message.content} for message in asked.messages]
    if asked.then:
        turns += [{"role": "assistant", "content": "(the model's reasoning)"}, {"role": "user", "content": asked.then}]
    return turns


def read_dev(project: Project) -> dict[str, Any] | None:
    """What `compare_configurations` found; None where it was not run."""
    path: Path = project.folder / "dev" / "results.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
