"""The whole of `consilience fuse`: represent -> align -> select -> train -> merge -> evaluate -> report.

Every step is a stage of the run folder, made once; what a stage needs it reads from the stages before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from consilience.config import load_recipe
from consilience.errors import ConfigError
from consilience.pipelines.card import model_card
from consilience.pipelines.data import Named, fingerprints
from consilience.pipelines.fusion import Fusion, OnProgress
from consilience.pipelines.fusion_stages import aligned, evaluated, merged, represented
from consilience.pipelines.fusion_training import trained
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import PIVOT, FuseRecipe, target_of
from consilience.pipelines.rehearsal import make_rehearsal, rehearsed
from consilience.pipelines.results import Evaluation, summarize
from consilience.pipelines.targets import targets_of
from consilience.pipelines.tiny import make_tiny_world
from consilience.report import write_fusion_report
from consilience.run import fingerprint, open_run, write_json, write_text
from consilience.train import conversations_at_once
from consilience.weights import Checkpoint, copy_companions, write_checkpoint


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
        if make_tiny is not None:
            run.stage("tiny", make_tiny)
        return _carry_out(Fusion(recipe, places, run, inputs, on_progress))


def _carry_out(fusion: Fusion) -> FuseResult:
    """All stages, in order."""
    recipe = fusion.recipe
    fusion.refuse_unusable()
    if recipe.fusion.kind == "distributions":
        fusion.representations = {name: represented(fusion, name) for name in fusion.paths}
        fusion.matches = {source: aligned(fusion, source) for source in recipe.sources}
    targets = {target.name: trained(fusion, target) for target in targets_of(recipe)}
    pairwise = [targets[target_of(source)] for source in recipe.sources if recipe.targets.pairwise]
    merges = {name: merged(fusion, name, pairwise) for name in recipe.merges}
    fusion.paths |= targets | merges
    fusion.keys |= {name: fusion.keys[f"train/{name}"] for name in targets}
    fusion.keys |= {name: fusion.keys[f"merge/{name}"] for name in merges}
    return _hand_over(fusion, {name: evaluated(fusion, name) for name in fusion.paths})


def _hand_over(fusion: Fusion, evaluations: Mapping[str, Evaluation]) -> FuseResult:
    results = summarize(
        fusion.recipe,
        fusion.run,
        paths=fusion.paths,
        train_chats=fusion.train_chats,
        held_out=fusion.held_out,
        questions=fusion.questions,
        representations=fusion.representations,
        matches=fusion.matches,
        evaluations=evaluations,
    )

    def make(folder: Path) -> None:
        fused = fusion.paths[fusion.recipe.result_name]
        dtypes = Checkpoint(fusion.paths[PIVOT]).dtypes
        usual = Counter(dtypes.values()).most_common(1)[0][0]
        fused_weights = Checkpoint(fused)
        bases = [fusion.recipe.pivot, *fusion.recipe.sources.values()]
        copy_companions(fusion.paths[PIVOT], folder)
        write_checkpoint(
            folder, ((name, fused_weights.tensor(name).to(dtypes.get(name, usual))) for name in fused_weights.names)
        )
        write_text(folder / "README.md", model_card(fusion.recipe, results, [*filter(fusion.places.is_on_hub, bases)]))

    model = fusion.run.stage("model", make)
    report = fusion.run.path / "report.html"
    if fusion.run.leads:
        write_json(fusion.run.path / "results.json", results)
        write_fusion_report(results, report)
    return FuseResult(fusion.run.path, model, report, results)


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
    files = {f"tasks.{name}": task.path for name, task in recipe.tasks.items()}
    data: dict[str, Named] = {"data": recipe.data}
    if recipe.held_out.path:
        data["held_out"] = recipe.held_out
    if judge := recipe.fusion.judge:
        models |= {"fusion.judge.model": judge.model} if judge.model else {}
        files |= {f"fusion.judge.{key}": file for key, file in judge.files.items()}
    names = [*models.values(), *files.values(), *(str(named.path) for named in data.values())]
    tiny = [name for name in names if places.is_made_here(name)]
    if tiny and not made_here:
        raise ConfigError(f"the recipe names {tiny[0]!r} but has no 'tiny:' block that makes it.")
    found = {key: places.model(name) for key, name in models.items() if not places.is_made_here(name)}
    prints = {key: fingerprint(folder) for key, folder in found.items()} | fingerprints(data, files, places)
    same = [key for key in prints if key.startswith("sources.") and prints[key] == prints.get("pivot")]
    if same:
        raise ConfigError(f"{same[0]} is the pivot itself; a pivot cannot be its own source. Remove it.")
    return prints
