"""The results of `consilience prefer` as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from consilience.cli.tables import columns, shown
from consilience.report.preference import without_reward


def preference_table(results: Mapping[str, Any]) -> str:
    """Every arm's reward by round, and after the last round its difference to the baseline, KL and length."""
    rounds = len(next(iter(results["arms"].values()))["rounds"])
    several = len(results["arms"]) > 1
    head = ["arm", *(f"reward, round {t}" for t in range(1, rounds + 1))]
    head += [f"minus {results['baseline']}"] * several + ["wins over start", "KL from start", "tokens"]
    start = results["start"]
    rows = [head, ["start", shown(start["reward"]), *[""] * (len(head) - 3), shown(start["tokens"])]]
    for name, arm in results["arms"].items():
        last = arm["rounds"][-1]
        rewards = [shown(of_round["reward"]) for of_round in arm["rounds"]]
        apart = [shown(last["difference"], signed=True)] * several
        rows.append([name, *rewards, *apart, shown(last["win_rate"]), shown(last["kl"]), shown(last["tokens"])])
    parts = [columns(rows)]
    for found in results["decompositions"]:
        last = found["rounds"][-1]
        parts.append(
            f"{found['arm']} minus {found['baseline']}, last round: {shown(last['total'], signed=True)} = same data "
            f"{shown(last['same_data'], signed=True)} + exploration {shown(last['exploration'], signed=True)}"
        )
    parts.append(f"[ ]: {100 * results['level']:g} % intervals over {results['units']}; differences are paired.")
    return "\n\n".join([*parts, *filter(None, [without_reward(results)])])


def handed_over(results: Mapping[str, Any]) -> str:
    """Which of a run's many models is the one in `RUN/model`."""
    arm, seeds = results["result"], results["seeds"]
    of_seed = f" of seed {seeds[0]}" if len(seeds) > 1 else ""
    return f"{arm} after round {len(results['arms'][arm]['rounds'])}{of_seed}"
