"""The whole of `consilience prefer`: every arm's rounds on every seed, each policy measured, one report.

RUN/[seed-<s>/]tiny/                    the tiny world of a seed, where the recipe asks for one
RUN/[seed-<s>/]start/                   what the start policy said, and how it measures
RUN/[seed-<s>/]<arm>/round-<t>/         sample, judge, pair, reference, train (`prefer.rounds`), measure
RUN/model  results.json  report.html
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from consilience.config import load_recipe
from consilience.errors import BackendError, ConfigError, DataError
from consilience.judge import JudgeSettings
from consilience.models import load_tokenizer, refuse_engine
from consilience.pipelines.data import fingerprints, rows_of
from consilience.pipelines.places import Places
from consilience.pipelines.prefer_recipe import PreferRecipe, data_of, folder_of_seed, models_of, servers_of
from consilience.pipelines.prefer_results import summarize
from consilience.pipelines.tiny.preference import make_preference_world
from consilience.prefer.arm import ArmSettings, ServedModel
from consilience.prefer.data import Preference, preferences_of, slices
from consilience.prefer.judging import Scorer
from consilience.prefer.measure import measure, read_measured
from consilience.prefer.policy import Load, Policy, Reader
from consilience.prefer.rounds import Round
from consilience.report.preference import write_preference_report
from consilience.rng import seed_of
from consilience.run import RunFolder, fingerprint, open_run, write_json
from consilience.train import conversations_at_once
from consilience.weights import Checkpoint, copy_companions, write_checkpoint

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class PreferResult:
    """Where a finished run left what it made, and the results that its report shows."""

    run: Path
    model: Path
    report: Path
    results: Mapping[str, Any]


def prefer_recipe(
    path: Path, out: Path, overrides: Sequence[str] = (), *, on_progress: OnProgress = lambda what, done, total: None
) -> PreferResult:
    """Runs the recipe at `path` into the run folder `out`, or goes on with the run that is there.

    Raises `ConfigError`, `DataError` or `BackendError` for what the user can put right.
    """
    recipe = load_recipe(path, PreferRecipe, overrides)
    for settings in recipe.of_arms().values():
        conversations_at_once(settings.train)
    for endpoint in [*servers_of(recipe).values(), *([recipe.judge.endpoint] if recipe.judge.endpoint else [])]:
        endpoint.api_key()  # a missing one is named before anything is asked or paid
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    refuse_engine(recipe)
    asked = recipe.decides(exclude={"title", "note", "assumed"})
    with open_run(out, asked, _fingerprints(recipe, Places(path.parent, out))) as run:
        gc.freeze()  # looking for garbage among what is imported takes 0.25 s, about as long as a tiny round
        for seed in recipe.seeds:
            _Seed(recipe, path.parent, run, seed, on_progress).carry_out()
        gc.unfreeze()
        return _hand_over(recipe, path.parent, run)


def _fingerprints(recipe: PreferRecipe, places: Places) -> dict[str, str]:
    """A hash of every model and file that the recipe names; what the run makes itself follows from its seeds."""
    models, data, files = models_of(recipe), data_of(recipe), recipe.judge.files
    for key, named in data.items():
        name = str(named.path)
        if named.split and (places.is_made_here(name) or places.file(name).is_file()):
            raise ConfigError(f"{key}.split is of a folder or a data set, and {named.path!r} is a file. Leave it out.")
    names = [*models.values(), *(str(named.path) for named in data.values()), *files.values()]
    made_here = [name for name in names if places.is_made_here(name)]
    if made_here and recipe.tiny is None:
        raise ConfigError(f"the recipe names {made_here[0]!r} but has no 'tiny:' block that makes it.")
    found = fingerprints(data, {f"judge.{key}": file for key, file in files.items()}, places)
    folders = {key: places.model(name) for key, name in models.items() if not places.is_made_here(name)}
    return found | {key: fingerprint(folder) for key, folder in folders.items()}


class _Seed:
    """Everything that one seed does."""

    def __init__(
        self, recipe: PreferRecipe, recipe_folder: Path, run: RunFolder, seed: int, on_progress: OnProgress
    ) -> None:
        self.recipe, self.run, self.seed, self.on_progress = recipe, run, seed, on_progress
        folder = folder_of_seed(recipe, run.path, seed)
        self.home = f"{folder.name}/" if folder != run.path else ""
        self.places = Places(recipe_folder, folder)

    def carry_out(self) -> None:
        recipe = self.recipe
        if recipe.tiny is not None:
            self.run.stage(f"{self.home}tiny", self._make_tiny)
        arms = recipe.of_arms()
        self.start = Policy(self.places.model(recipe.model), f"{self.home}start")
        Checkpoint(self.start.path)  # a model without weights is refused before anything else
        tokenizer = load_tokenizer(self.start.path, code=recipe.trust_remote_code)
        self._refuse_other_vocabularies(tokenizer)
        learnt, held_out = self._read(any_pairs=any(arm.offline_pair for arm in arms.values()))
        # One each: without ids of their own, the prompts of both files are numbered from 0.
        self.reader, self.reader_of_held_out = Reader(tokenizer, learnt), Reader(tokenizer, held_out)
        self.parts = slices(learnt, recipe.rounds, recipe.prompts_per_round, seed_of(self.seed, "slices"))
        self.load = Load(tokenizer, code=recipe.trust_remote_code, engine=recipe)
        with Scorer(self._judge(), self.places.recipe_folder, self.run.path / "judge.sqlite") as self.scorer:
            self._measure(self.start, recipe, held_out)
            for name, settings in arms.items():
                policy = self.start
                for number in range(1, recipe.rounds + 1):
                    policy = self._round(name, settings.in_round(number), number, policy).carry_out()
                    self._measure(policy, settings, held_out)

    def _judge(self) -> JudgeSettings:
        """The recipe's judge, with the paths of this seed and of models that were fetched."""
        judge = self.recipe.judge
        if judge.function:
            file, _, name = judge.function.rpartition(":")
            return judge.model_copy(update={"function": f"{self.places.file(file).resolve()}:{name}"})
        return judge.model_copy(update={"model": str(self.places.model(judge.model))}) if judge.model else judge

    def _make_tiny(self, folder: Path) -> None:
        assert self.recipe.tiny is not None
        make_preference_world(
            folder,
            seed=self.seed,
            pairs=self.recipe.tiny.pairs,
            held_out=self.recipe.tiny.held_out,
            steps_scale=self.recipe.tiny.steps_scale,
            on_progress=lambda what, done, total: self.on_progress(f"{self.home}tiny {what}", done, total),
        )

    def _read(self, *, any_pairs: bool) -> tuple[list[Preference], list[Preference]]:
        """What is learnt from, and what policies are measured on."""
        data, held_out = self.recipe.data, self.recipe.held_out
        found = preferences_of(rows_of(data, self.places), data.path, pairs=any_pairs)
        if held_out.path:
            return found, preferences_of(rows_of(held_out, self.places), held_out.path, pairs=False)
        assert held_out.share is not None
        count = max(2, round(held_out.share * len(found)))
        if count >= len(found):
            raise DataError(f"{data.path}: all {len(found)} prompts are held out; lower held_out.share.")
        return found[:-count], found[-count:][: held_out.limit]

    def _refuse_other_vocabularies(self, tokenizer: Any) -> None:
        """A reference reads the policy's tokens."""
        for key, name in models_of(self.recipe).items():
            if key.endswith(".reference"):
                other = load_tokenizer(self.places.model(name), code=self.recipe.trust_remote_code)
                if other.get_vocab() != tokenizer.get_vocab():
                    raise BackendError(
                        f"{key} {name!r} and the model {self.recipe.model!r} have different vocabularies "
                        f"({len(other)} and {len(tokenizer)} tokens). A reference must read the policy's tokens: "
                        "give the model that it was trained from."
                    )

    def _round(self, name: str, settings: ArmSettings, number: int, policy: Policy) -> Round:
        def given(which: str | ServedModel) -> Policy | None:
            if isinstance(which, ServedModel) or which in ("policy", "start", "previous"):
                return None
            return Policy(self.places.model(which), f"{self.home}{name}/{Path(which).name}")

        return Round(
            run=self.run,
            home=f"{self.home}{name}/round-{number}",
            number=number,
            settings=settings,
            prompts=self.parts[number - 1],
            policy=policy,
            start=self.start,
            scorer=self.scorer,
            annotator=self.recipe.annotator,
            seed=self.seed,
            load=self.load,
            reader=self.reader,
            earlier=[self._pairs_home(name, t) for t in range(1, number)] if settings.replay else [],
            pairs_of=f"{self.home}{settings.data_from}/round-{number}" if settings.data_from else None,
            reference_model=given(settings.reference),
            third_model=given(settings.third),
            on_progress=self.on_progress,
        )

    def _pairs_home(self, name: str, number: int) -> str:
        """The round whose pairs an arm learnt from."""
        settings = self.recipe.of_arms()[name].in_round(number)
        return f"{self.home}{settings.data_from or name}/round-{number}"

    def _measure(self, policy: Policy, settings: ArmSettings, held_out: Sequence[Preference]) -> None:
        def make(folder: Path) -> None:
            measure(
                lambda which: self.load(which, settings.train),
                policy,
                self.start,
                held_out,
                self.recipe.measure.sample.model_copy(update={"seed": seed_of(self.seed, "measure")}),
                self.scorer,
                self.reader_of_held_out,
                folder,
                None if policy is self.start else self.run.path / self.start.home / "measure",
                batch_tokens=self.recipe.batch_tokens,
                on_progress=partial(self.on_progress, f"measure {policy.home}"),
            )

        self.run.stage(f"{policy.home}/measure", make)


def _hand_over(recipe: PreferRecipe, recipe_folder: Path, run: RunFolder) -> PreferResult:
    measured = {
        seed: {
            home: read_measured(folder_of_seed(recipe, run.path, seed) / home / "measure")
            for home in ["start", *(f"{arm}/round-{t}" for arm in recipe.arms for t in range(1, recipe.rounds + 1))]
        }
        for seed in recipe.seeds
    }
    results = summarize(recipe, run, measured)
    first = folder_of_seed(recipe, run.path, recipe.seeds[0])
    start = Places(recipe_folder, first).model(recipe.model)

    def make(folder: Path) -> None:
        dtypes = Checkpoint(start).dtypes
        usual = Counter(dtypes.values()).most_common(1)[0][0]
        weights = Checkpoint(first / recipe.result_name / f"round-{recipe.rounds}" / "train")
        copy_companions(start, folder)
        write_checkpoint(folder, ((name, weights.tensor(name).to(dtypes.get(name, usual))) for name in weights.names))

    model = run.stage("model", make)
    report = run.path / "report.html"
    if run.leads:
        write_json(run.path / "results.json", results)
        write_preference_report(results, report)
    return PreferResult(run.path, model, report, results)
