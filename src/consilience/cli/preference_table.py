"""The results of `consilience prefer` as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilience.cli.tables import columns, shown


def preference_table(results: Mapping[str, Any]) -> str:
    """Every arm's reward by round, and after the last round its difference to the baseline, KL and length."""
    rounds = len(next(iter(results["arms"].values()))["rounds"])
    head = ["arm", *(f"reward, round {t}" for t in range(1, rounds + 1))]
    rows = [[*head, f"minus {results['baseline']}", "wins over start", "KL from start", "tokens"]]
    rows.append(
        ["start", *[shown(results["start"]["reward"])], *[""] * (rounds + 2), shown(results["start"]["tokens"])]
    )
    for name, arm in results["arms"].items():
        last = arm["rounds"][-1]
        rewards = [shown(of_round["reward"]) for of_round in arm["rounds"]]
        rows.append(
            [
                name,
                *rewards,
                shown(last["difference"], signed=True),
                shown(last["win_rate"]),
                shown(last["kl"]),
                shown(last["tokens"]),
            ]
        )
    units = next(iter(results["arms"].values()))["rounds"][-1]["reward"]["units"]
    parts = [columns(rows)]
    for found in results["decompositions"]:
        last = found["rounds"][-1]
        parts.append(
            f"{found['arm']} minus {found['baseline']}, last round: {shown(last['total'], signed=True)} = same data "
            f"{shown(last['same_data'], signed=True)} + exploration {shown(last['exploration'], signed=True)}"
        )
    parts.append(f"[ ]: {100 * results['level']:g} % intervals over {units}; differences are paired.")
    return "\n\n".join(parts)
