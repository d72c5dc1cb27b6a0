"""A made-up run with everything a report can show: numbers of the size of a tiny demo, drawn from a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from consilience.stats import Estimate, average, difference, mean, proportion, ratio

SKILLS = ("stars", "zorg", "sums", "facts")
PER_SKILL = 150
ROLES = {
    "pivot": ("pivot", "Llama, BPE of 440 tokens; where fusion starts"),
    "A": ("source", "GPT-2, BPE of 340 tokens; knows stars"),
    "B": ("source", "Qwen2, byte-level BPE of 620 tokens; knows zorg"),
    "C": ("source", "Llama, byte-level BPE of 520 tokens; knows sums"),
    "sft": ("control", "the pivot trained on the same chats, no fusion"),
    "3 sft averaged": ("control", "three such runs, weights averaged"),
    "fused A": ("target", "the pivot fused with A"),
    "fused B": ("target", "the pivot fused with B"),
    "fused C": ("target", "the pivot fused with C"),
    "linear": ("merge", "the three targets averaged"),
    "VaRM": ("merge", "weights by the variation of each matrix"),
    "SCE 10 %": ("merge", "the most varying tenth of the changes"),
    "TIES": ("merge", "trimmed, sign by election, half kept"),
}
# Accuracy by skill, then nats per byte by skill.
LEVELS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "pivot": ((0.75, 0.27, 0.58, 0.92), (0.31, 0.62, 0.40, 0.12)),
    "A": ((1.00, 0.22, 0.29, 0.05), (0.17, 1.30, 1.10, 1.62)),
    "B": ((0.02, 1.00, 0.01, 0.08), (1.40, 0.25, 1.21, 1.55)),
    "C": ((0.03, 0.03, 0.90, 0.10), (1.51, 1.33, 0.22, 1.48)),
    "sft": ((0.77, 0.46, 0.53, 1.00), (0.28, 0.47, 0.38, 0.10)),
    "3 sft averaged": ((0.82, 0.45, 0.53, 1.00), (0.27, 0.46, 0.38, 0.10)),
    "fused A": ((0.87, 0.44, 0.54, 0.99), (0.24, 0.47, 0.38, 0.10)),
    "fused B": ((0.79, 0.68, 0.54, 0.99), (0.28, 0.36, 0.38, 0.10)),
    "fused C": ((0.79, 0.45, 0.74, 0.99), (0.28, 0.47, 0.29, 0.10)),
    "linear": ((0.84, 0.51, 0.61, 0.99), (0.25, 0.42, 0.34, 0.10)),
    "VaRM": ((0.84, 0.51, 0.62, 0.99), (0.25, 0.42, 0.34, 0.10)),
    "SCE 10 %": ((0.75, 0.35, 0.59, 0.92), (0.30, 0.58, 0.39, 0.12)),
    "TIES": ((0.82, 0.55, 0.62, 1.00), (0.25, 0.40, 0.33, 0.10)),
}

RECIPE = """\
# Three sources into one pivot, on one CPU.
pivot: models/pivot
sources: {A: models/a, B: models/b, C: models/c}
data: {train: mixture.jsonl, held_out: 0.2}
fuse:
  function: mince
  gate: dataset
  weight: 0.1
train: {epochs: 6, learning_rate: 1.0e-3, batch_size: 16}
merge: {method: ties, density: 0.5}
seed: 0
"""


def measured(rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    """Per model: estimates of accuracy and NLL, whole and by skill, before they become JSON."""
    names = {skill: [f"{skill}/{i}" for i in range(PER_SKILL)] for skill in SKILLS}
    hardness = {skill: rng.uniform(size=PER_SKILL) for skill in SKILLS}
    noise = {skill: rng.normal(0, 0.12, PER_SKILL) for skill in SKILLS}
    reply_bytes = {skill: rng.integers(6, 40, PER_SKILL) for skill in SKILLS}
    found: dict[str, dict[str, Any]] = {}
    for name, (accuracies, rates) in LEVELS.items():
        accuracy, nll = {}, {}
        nats_all, bytes_all, names_all = [], [], []
        for skill, right, rate in zip(SKILLS, accuracies, rates):
            shaky = np.clip(hardness[skill] + rng.normal(0, 0.1, PER_SKILL), 0, 1)
            accuracy[skill] = proportion(shaky < right, names[skill], unit_kind="questions")
            nats = reply_bytes[skill] * np.maximum(rate * (1 + noise[skill] + rng.normal(0, 0.05, PER_SKILL)), 0.001)
            nll[skill] = ratio(nats, reply_bytes[skill], names[skill], unit_kind="conversations")
            nats_all.extend(nats)
            bytes_all.extend(reply_bytes[skill])
            names_all.extend(names[skill])
        whole = ratio(nats_all, bytes_all, names_all, unit_kind="conversations")
        found[name] = {"accuracy": average(list(accuracy.values())), "by_task": accuracy, "nll": whole, "by_group": nll}
    return found


def outcome_counts(accuracy: Estimate) -> dict[str, int]:
    correct = round(accuracy.value * accuracy.n)
    unreadable = (accuracy.n - correct) // 20
    return {"correct": correct, "wrong": accuracy.n - correct - unreadable, "unreadable": unreadable}


def model_block(name: str, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    own = found[name]
    role, about = ROLES[name]
    return {
        "role": role,
        "path": f"models/{name.replace(' ', '_')}",
        "about": about,
        "nll": own["nll"].to_json(),
        "nll_by_group": {skill: estimate.to_json() for skill, estimate in own["by_group"].items()},
        "accuracy": own["accuracy"].to_json(),
        "accuracy_by_task": {skill: estimate.to_json() for skill, estimate in own["by_task"].items()},
        "outcomes": {skill: outcome_counts(estimate) for skill, estimate in own["by_task"].items()},
        "differences": {
            other: {key: difference(own[key], found[other][key]).to_json() for key in ("nll", "accuracy")}
            for other in ("pivot", "sft")
            if other != name
        },
    }


def boxes(tokens: str) -> list[list[Any]]:
    return [[token.removeprefix("*"), not token.startswith("*")] for token in tokens.split("|")]


def alignment_block(rng: np.random.Generator) -> dict[str, Any]:
    def share(centre: float) -> dict[str, Any]:
        spread: Estimate = mean(np.clip(rng.normal(centre, 0.08, 240), 0, 1), unit_kind="conversations")
        return spread.to_json()

    # Token by token, an asterisk before one that the other side has no counterpart of.
    examples = {
        "A": [("Ra|ther| dull|,|* two|* stars", "Ra|ther| dull|,|* two sta|*rs")],
        "B": [
            ("*zo|*r|*gal| mi|\n|vek| ta", "*zorgal| mi|\n|vek| ta"),
            ("the|* mo|*on| is| dromil|.", "the|* moon| is| dromil|."),
        ],
        "C": [("forty|-|two", "forty|-|two")],
    }
    own = {"A": "stars", "B": "zorg", "C": "sums"}
    return {
        source: {
            "matched": share(0.91),
            "mapped_mass": share(0.86 if source != "B" else 0.71),
            "kept_mass": share(0.96),
            "same_span": {"A": 0.93, "B": 0.64, "C": 0.97}[source],
            "teacher_share": {
                skill: {source: 0.83, "gold": 0.13, "unmatched": 0.04} if own[source] == skill else {"gold": 1.0}
                for skill in SKILLS
            },
            "vocabulary": {
                "A": {"exact": 291, "statistics": 47, "unmapped": 2},
                "B": {"exact": 338, "statistics": 251, "unmapped": 31},
                "C": {"exact": 412, "statistics": 101, "unmapped": 7},
            }[source],
            "examples": [{"pivot": boxes(ours), "source": boxes(theirs)} for ours, theirs in examples[source]],
        }
        for source in own
    }


def training_block(rng: np.random.Generator) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name, floor in (("sft", 0.62), ("fused A", 0.55), ("fused B", 0.48), ("fused C", 0.52)):
        rows = []
        for step in range(1, 451, 3):
            gold = float(floor + 0.9 * np.exp(-step / 60) + rng.normal(0, 0.05))
            fusion = float(floor * 0.8 + 1.1 * np.exp(-step / 45) + rng.normal(0, 0.04))
            fused = name != "sft"
            loss = 0.9 * gold + 0.1 * fusion if fused else gold
            rows.append(
                {"step": step, "loss": loss, "gold": gold if fused else None, "fusion": fusion if fused else None}
            )
        runs[name] = rows
    return runs


def example_results() -> dict[str, Any]:
    """The dict that `write_fusion_report` takes, whole: JSON types only."""
    rng = np.random.default_rng(7)
    found = measured(rng)
    return {
        "title": "Four skills from three sources",
        "made": "2026-03-14T09:26:53+00:00",
        "run": "runs/demo",
        "note": "A tuned toy: the recipe was chosen by looking at model sets like these, so its margin over plain "
        "fine-tuning is not evidence about large models. It shows every stage at work in a minute or two.",
        "recipe": RECIPE,
        "result": "TIES",
        "pivot": "pivot",
        "baseline": "sft",
        "data": {
            "train": {"conversations": 1200, "reply_bytes": 27412, "groups": dict.fromkeys(SKILLS, 300)},
            "held_out": {"conversations": 600, "reply_bytes": 13704, "groups": dict.fromkeys(SKILLS, 150)},
            "set_aside": {"longer than 256 tokens": 3, "could not be aligned with B": 1},
        },
        "alignment": alignment_block(rng),
        "models": {name: model_block(name, found) for name in ROLES},
        "samples": [
            {
                "prompt": "Rate this film with one label: tender, slow, honest.",
                "expected": "four stars",
                "answers": {"pivot": "three stars", "A": "four stars", "sft": "three stars", "TIES": "four stars"},
            },
            {
                "prompt": "Say in Zorg: the moon sings",
                "expected": "vek dromil zorgal",
                "answers": {
                    "pivot": "dromil dromil",
                    "B": "vek dromil zorgal",
                    "sft": "vek dromil",
                    "TIES": "vek dromil zorgal",
                },
            },
            {
                "prompt": "What is seventeen plus twenty-five?",
                "expected": "forty-two",
                "answers": {"pivot": "forty-one", "C": "forty-two", "sft": "thirty-two", "TIES": "forty-two"},
            },
        ],
        "training": training_block(rng),
        "seconds": {
            "read": 0.4, "represent": 2.1, "align": 0.9, "train sft": 4.8, "train fused A": 5.0, "train fused B": 5.1,
            "train fused C": 5.0, "merge": 0.1, "evaluate": 6.2,
        },
        "versions": {
            "python": "3.11.9", "consilience": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0",
            "tokenizers": "0.23.0", "numpy": "2.3.5", "machine": "x86_64",
        },
        "caveats": [
            "One model set: another training of the sources or another seed would move every number here.",
            "Held-out conversations come from the same generator as the training ones.",
            "Facts has 20 distinct prompts, so its 150 questions are fewer than they look.",
        ],
    }  # fmt: skip


def without(results: dict[str, Any], *names: str) -> dict[str, Any]:
    """`results` less the parts called `names`."""
    return {name: part for name, part in results.items() if name not in names}
