"""What the experiment behind docs/search.md found: every arm by kind of prompt, with intervals, and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from consilience.pipelines.tiny import reviews
from consilience.pipelines.weak_to_strong_recipe import SearchRecipe
from consilience.stats import Estimate, difference, mean


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
