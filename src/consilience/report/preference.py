"""The page of `consilience prefer`: every arm by round, where a difference is from, and what became of the prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from consilience.report import numbers
from consilience.report.figures import ForestRow, forest_plot
from consilience.report.numbers import estimates_in, with_interval
from consilience.report.page import environment, write_page

PARTS = {"total": "in all", "same_data": "same data", "exploration": "exploration"}
MEASURED = ("reward", "win_rate", "kl", "tokens")


def write_preference_report(results: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`, from the results of `consilience prefer`. All text is escaped."""
    arms = results["arms"]
    rounds = range(1, len(next(iter(arms.values()))["rounds"]) + 1)
    page = (
        environment()
        .get_template("preference.html.j2")
        .render(
            results=results,
            arms=arms,
            rounds=rounds,
            parts=PARTS,
            sentences=headline(results),
            differences=differences(results),
            decompositions=[(found, decomposition(found)) for found in results["decompositions"]],
            decimals={
                name: numbers.decimals_of(of_round[name] for arm in arms.values() for of_round in arm["rounds"])
                for name in MEASURED
            },
            decimals_of=numbers.decimals_of,
            methods=sorted({found["method"] for found in estimates_in(results)}),
            units=results["units"],
        )
    )
    write_page(page, path)


def headline(results: Mapping[str, Any]) -> list[str]:
    """What was measured of the result after the last round, one sentence per quantity."""
    last = results["arms"][results["result"]]["rounds"][-1]
    sentences = []
    if last["reward"] and results["start"]["reward"]:
        sentences.append(
            f"{results['result']} after {len(results['arms'][results['result']]['rounds'])} rounds: reward "
            f"{with_interval(last['reward'])}, start policy {with_interval(results['start']['reward'])}."
        )
    if last["difference"]:
        sentences.append(f"Minus {results['baseline']}: {with_interval(last['difference'], signed=True)}.")
    left_out = without_reward(results)
    return [*sentences, *([left_out] if left_out else []), *(f"{note}." for note in results["notes"])]


def without_reward(results: Mapping[str, Any]) -> str:
    """Whose replies after the last round have no reward, and why; nothing where all have one."""
    states_of = {"start": results["start"]["states"]}
    states_of |= {name: arm["rounds"][-1]["states"] for name, arm in results["arms"].items()}
    told = []
    for name, states in states_of.items():
        left_out = {state: count for state, count in states.items() if state not in ("ok", "tie")}
        if left_out:
            why = ", ".join(f"{count} {state}" for state, count in left_out.items())
            told.append(f"{name} {sum(left_out.values())} of {sum(states.values())} replies ({why})")
    return f"Without a reward, and not part of any: {'; '.join(told)}." if told else ""


def differences(results: Mapping[str, Any]) -> Markup | None:
    """Every arm minus the baseline, round by round."""
    rows = [
        ForestRow(label=name, group=f"round {t}", estimates=[arm["rounds"][t - 1]["difference"]])
        for t in range(1, len(results["arms"][results["baseline"]]["rounds"]) + 1)
        for name, arm in results["arms"].items()
        if arm["rounds"][t - 1]["difference"]
    ]
    panels = [f"reward minus {results['baseline']}"]
    return forest_plot(rows, panels, name=f"Every arm minus {results['baseline']} by round") if rows else None


def decomposition(found: Mapping[str, Any]) -> Markup:
    """An arm minus the baseline, and the two parts that add up to it, round by round."""
    rows = [
        ForestRow(label=shown, group=f"round {t}", estimates=[of_round[part]])
        for t, of_round in enumerate(found["rounds"], start=1)
        for part, shown in PARTS.items()
    ]
    return forest_plot(rows, [f"reward, {found['arm']} minus {found['baseline']}"], name="Parts of the difference")
