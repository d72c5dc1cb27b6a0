"""What `consilience prefer` measured: every arm by round, with intervals, and where a difference is from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from consilience.models.endpoint import notes_kept
from consilience.pipelines.prefer_recipe import PreferRecipe, folder_of_seed, servers_of
from consilience.prefer.measure import Measured
from consilience.prefer.rounds import ANSWERS
from consilience.run import RunFolder, versions
from consilience.stats import Estimate, difference, mean

Values = Mapping[int, tuple[Sequence[str], NDArray[np.float64]]]  # by seed: prompts, and a value for each
MeasuredBy = Mapping[int, Mapping[str, Measured]]  # by seed, by home


def summarize(recipe: PreferRecipe, run: RunFolder, measured: MeasuredBy) -> dict[str, Any]:
    """The results that report and `--json` show. Estimates are over seeds, or over prompts where there is one seed."""
    level = recipe.measure.level
    rounds = range(1, recipe.rounds + 1)
    settings = recipe.of_arms()

    def estimate(home: str, value: Callable[[Mapping[str, Measured], str], NDArray[np.float64]]) -> Estimate | None:
        values = {seed: (of_seed[home].prompts, value(of_seed, home)) for seed, of_seed in measured.items()}
        return _estimate(values, level)

    rewards = {
        (arm, t): estimate(f"{arm}/round-{t}", lambda of_seed, home: of_seed[home].reward_P)
        for arm in recipe.arms
        for t in rounds
    }
    arms: dict[str, Any] = {}
    for arm in recipe.arms:
        by_round = []
        for t in rounds:
            home = f"{arm}/round-{t}"
            apart = None if arm == recipe.baseline_name else _minus(rewards[arm, t], rewards[recipe.baseline_name, t])
            by_round.append(
                {
                    "reward": _json(rewards[arm, t]),
                    "difference": _json(apart),
                    "win_rate": _json(estimate(home, _wins)),
                    "kl": _json(estimate(home, lambda of_seed, home: of_seed[home].kl_P)),
                    "tokens": _json(estimate(home, lambda of_seed, home: of_seed[home].tokens_P)),
                    "statuses": dict(sum((Counter(m[home].statuses) for m in measured.values()), Counter())),
                    "states": dict(sum((Counter(m[home].states) for m in measured.values()), Counter())),
                    "pairs": _counts(recipe, run, arm, t),
                    "logprobs": _logprobs(recipe, run, home),
                }
            )
        arms[arm] = {"settings": settings[arm].model_dump(mode="json"), "rounds": by_round}
    start = "start"
    return {
        "title": recipe.title,
        "note": recipe.note,
        "notes": _notes(recipe, run, arms, measured),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.path.name,
        "recipe": yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False),
        "level": level,
        "units": "seeds" if len(recipe.seeds) > 1 else "prompts",
        "seeds": list(recipe.seeds),
        "prompts": {
            "each_round": recipe.prompts_per_round,
            "held_out": len(next(iter(measured.values()))[start].prompts),
            "samples": recipe.measure.sample.samples,
            "temperature": recipe.measure.sample.temperature,
        },
        "judge": recipe.judge.model_dump(mode="json", exclude_unset=True) | {"annotator": recipe.annotator},
        "baseline": recipe.baseline_name,
        "result": recipe.result_name,
        "start": {
            "reward": _json(estimate(start, lambda of_seed, home: of_seed[home].reward_P)),
            "tokens": _json(estimate(start, lambda of_seed, home: of_seed[home].tokens_P)),
            "statuses": dict(sum((Counter(m[start].statuses) for m in measured.values()), Counter())),
            "states": dict(sum((Counter(m[start].states) for m in measured.values()), Counter())),
        },
        "arms": arms,
        "decompositions": [
            {
                "arm": arm,
                "twin": twin,
                "baseline": baseline,
                "rounds": [
                    {
                        "total": _json(_minus(rewards[arm, t], rewards[baseline, t])),
                        "same_data": _json(_minus(rewards[twin, t], rewards[baseline, t])),
                        "exploration": _json(_minus(rewards[arm, t], rewards[twin, t])),
                    }
                    for t in rounds
                ],
            }
            for arm, twin, baseline in recipe.decompositions()
        ],
        "seconds": run.seconds(),
        "versions": versions(),
    }


def _notes(recipe: PreferRecipe, run: RunFolder, arms: Mapping[str, Any], measured: MeasuredBy) -> list[str]:
    """What servers did otherwise than asked, and how much of it all the judge has not read."""
    found = []
    if recipe.judge.endpoint:
        found += [f"judge: {note}" for note in notes_kept(run.path / "judge.sqlite", recipe.judge.endpoint)]
    for name, endpoint in servers_of(recipe).items():
        found.append(f"{name}: replies are those of {endpoint.name}; that it runs the model meant is not checked")
        found += [f"{name}: {note}" for note in notes_kept(run.path / ANSWERS, endpoint)]
    counts = [
        of_round["pairs"]
        for arm, settings in recipe.of_arms().items()
        for t, of_round in enumerate(arms[arm]["rounds"], start=1)
        if settings.in_round(t).data_from is None
    ]
    every = [one for of_seed in measured.values() for one in of_seed.values()]
    cut = sum(of.get("cut", {}).get("cut", 0) for of in counts) + sum(one.cut for one in every)
    if cut:
        judged = sum(sum(of.get("verdicts", {}).values()) for of in counts) + sum(sum(o.states.values()) for o in every)
        found.append(
            f"judge: {cut:,} of {judged:,} replies were judged by a beginning only, of themselves, of their prompt or "
            "of a reply beside them: the judge reads no more"
        )
    return found


def _estimate(values: Values, level: float) -> Estimate | None:
    """Over seeds, each by its mean over prompts; over prompts where there is one seed. NaN is left out."""
    if len(values) > 1:
        means = {seed: float(np.nanmean(value_P)) for seed, (_, value_P) in values.items() if not _all_nan(value_P)}
        return mean([*means.values()], [*map(str, means)], unit_kind="seeds", level=level) if means else None
    ((prompts, value_P),) = values.values()
    there = ~np.isnan(value_P)
    if not there.any():
        return None
    units = [prompt for prompt, is_there in zip(prompts, there, strict=True) if is_there]
    return mean(value_P[there], units, unit_kind="prompts", level=level)


def _wins(of_seed: Mapping[str, Measured], home: str) -> NDArray[np.float64]:
    """How often a policy's reply has a higher reward than the start policy's to the same prompt; ties are half."""
    won = []
    for mine, theirs in zip(of_seed[home].rewards_PS, of_seed["start"].rewards_PS, strict=True):
        pairs = [(a, b) for a, b in zip(mine, theirs, strict=True) if a is not None and b is not None]
        won.append(sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs) if pairs else np.nan)
    return np.array(won)


def _minus(ours: Estimate | None, theirs: Estimate | None) -> Estimate | None:
    return None if ours is None or theirs is None else difference(ours, theirs)


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate.to_json()


def _all_nan(values: NDArray[np.float64]) -> bool:
    return bool(np.isnan(values).all())


def _counts(recipe: PreferRecipe, run: RunFolder, arm: str, number: int) -> dict[str, dict[str, int]]:
    """What became of a round's prompts and samples, over all seeds; of the arm's whose pairs were learnt from."""
    source = recipe.of_arms()[arm].in_round(number).data_from or arm
    total: dict[str, Counter[str]] = {}
    for seed in recipe.seeds:
        path = folder_of_seed(recipe, run.path, seed) / source / f"round-{number}" / "pair" / "counts.json"
        for kind, counts in json.loads(path.read_text()).items():
            total.setdefault(kind, Counter()).update(counts)
    return {kind: dict(counts) for kind, counts in total.items()}


def _logprobs(recipe: PreferRecipe, run: RunFolder, home: str) -> dict[str, float]:
    """How far the round's last steps had moved the log-probabilities of chosen and rejected replies (nats a reply)."""
    found = []
    for seed in recipe.seeds:
        curve = json.loads((folder_of_seed(recipe, run.path, seed) / home / "train" / "curve.json").read_text())
        last = curve[-1]
        found.append(
            [
                last["chosen_logprob"] - last["ref_chosen_logprob"],
                last["rejected_logprob"] - last["ref_rejected_logprob"],
                last["accuracy"],
            ]
        )
    chosen, rejected, accuracy = np.mean(found, axis=0).tolist()
    return {"chosen": chosen, "rejected": rejected, "accuracy": accuracy}
