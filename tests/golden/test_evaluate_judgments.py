"""`consilience evaluate` from end to end on stored judgments: published scores come out of finished replies."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SHARED = Path(__file__).parents[3] / "shared"
ALPACA, MT_BENCH = SHARED / "data" / "alpaca_eval", SHARED / "data" / "mt_bench"
CHECKS = SHARED / "checks" / "evaluation"
pytestmark = pytest.mark.skipif(
    not (ALPACA.is_dir() and MT_BENCH.is_dir() and CHECKS.is_dir()), reason="no ../shared/data beside the repo"
)
STORED = """
import json
SAID = {tuple(key): value for key, value in json.load(open(%r))}
def compare(prompt, first, second):
    asked = prompt[-1].content
    for one, other, turn in ((first, second, False), (second, first, True)):
        if (asked, one, other) in SAID:  # baseline, candidate; the value is the candidate's
            return SAID[asked, one, other] if turn else 1 - SAID[asked, one, other]
def rate(prompt, reply):
    return SAID[(reply[-1].content,)]
"""


def judged_by(tmp_path: Path, said: list[tuple[tuple[str, ...], float]], function: str) -> str:
    """A judge who gives the stored verdicts again."""
    (tmp_path / "said.json").write_text(json.dumps(said))
    (tmp_path / "stored.py").write_text(STORED % str(tmp_path / "said.json"))
    return f"{tmp_path / 'stored.py'}:{function}"


def annotations(model: str) -> list[dict[str, Any]]:
    with gzip.open(ALPACA / f"{model}.annotations.json.gz", "rt") as file:
        found: list[dict[str, Any]] = json.load(file)
        return found


def test_alpaca_eval_with_length_control(consilience: Callable[..., Any], tmp_path: Path) -> None:
    """One model with all replies, and one of which the stored judgments lack a row: there the package's own value is
    2.7 points above what it is with every difficulty in its place."""
    expected = json.loads((CHECKS / "alpaca_eval_expected.json").read_text())
    models = {"FuseChat-Llama-3.1-8B-Instruct": "fused", "gpt35_turbo_instruct": "instruct"}
    rows = {name: annotations(model) for model, name in models.items()}
    keys = {"instruction": "instruction", "output": "output_1", "generator": "generator_1", "dataset": "dataset"}
    asked = [{key: row[name] for key, name in keys.items()} for row in rows["fused"]]
    (tmp_path / "eval_set.json").write_text(json.dumps(asked))
    for name, mine in rows.items():
        replies = [{"instruction": row["instruction"], "output": row["output_2"]} for row in mine]
        (tmp_path / f"{name}.json").write_text(json.dumps(replies))
    outputs = {row["instruction"]: row["output"] for row in asked}
    said = [
        ((row["instruction"], outputs[row["instruction"]], row["output_2"]), row["preference"] - 1)
        for mine in rows.values()
        for row in mine
    ]
    recipe = {
        "models": {name: {"answers": f"{name}.json"} for name in rows},
        "judges": {"stored": {"kind": "function", "compares": True, "function": judged_by(tmp_path, said, "compare")}},
        "tasks": {
            "alpaca": {
                "kind": "pairwise",
                "path": "eval_set.json",
                "judge": "stored",
                "length_control": {"gamed": str(ALPACA / "df_gamed.csv")},
            }
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    answer = consilience("evaluate", tmp_path / "r.yaml", "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    alpaca = answer.json["tasks"]["alpaca"]
    raw = alpaca["comparisons"]["win rate against gpt4_1106_preview"]["models"]
    fits, controlled = alpaca["length_control"]["fits"], alpaca["length_control"]["comparison"]["models"]
    for model, name in models.items():
        pin = expected[model]
        published = pin["published"]
        assert raw[name]["estimate"]["value"] == pytest.approx(published["win_rate"], abs=1e-6)
        assert raw[name]["estimate"]["standard_error"] == pytest.approx(published["standard_error"], abs=1e-6)
        assert fits[name]["published_compatible"] == pytest.approx(published["length_controlled_winrate"], abs=0.02)
        assert controlled[name]["estimate"]["value"] == pytest.approx(pin["aligned"]["lc"], abs=1e-4)
        assert controlled[name]["estimate"]["standard_error"] == pytest.approx(pin["honest_se_influence"], abs=1e-4)
    assert raw["instruct"]["statuses"] == {"scored": 804, "no reply to judge": 1}
    assert controlled["fused"]["estimate"]["standard_error"] > 2 * fits["fused"]["published_standard_error"]


def test_mt_bench_score(consilience: Callable[..., Any], tmp_path: Path) -> None:
    with gzip.open(MT_BENCH / "judgments" / "jxiw.single.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if row["model"] == "mamba_0_5_dpo_ep1"]
    ratings = {(str(row["question_id"]), row["turn"]): row["score"] for row in rows}
    replies = {key: f"reply {key}" for key in ratings}
    with (tmp_path / "answers.jsonl").open("w") as file:
        for question in range(81, 161):
            turns = [replies[str(question), turn] for turn in (1, 2)]
            file.write(json.dumps({"question_id": question, "model_id": "m", "choices": [{"turns": turns}]}) + "\n")
    said = [((replies[key],), score) for key, score in ratings.items()]
    recipe = {
        "models": {"mamba": {"answers": "answers.jsonl"}},
        "judges": {"stored": {"kind": "function", "function": judged_by(tmp_path, said, "rate")}},
        "tasks": {
            "mt_bench": {
                "kind": "mt_bench",
                "path": str(MT_BENCH / "question.jsonl"),
                "references": str(MT_BENCH / "reference_answer_gpt-4.jsonl"),
                "judge": "stored",
            }
        },
    }
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    answer = consilience("evaluate", tmp_path / "r.yaml", "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    found = answer.json["tasks"]["mt_bench"]
    pin = json.loads((CHECKS / "mt_bench_expected.json").read_text())["files"]["jxiw"]["models"]["mamba_0_5_dpo_ep1"]
    estimate = found["comparisons"]["rating"]["models"]["mamba"]["estimate"]
    assert round(estimate["value"], 2) == 7.12  # as published
    assert estimate["value"] == pytest.approx(pin["mean"], abs=1e-9)
    assert estimate["standard_error"] == pytest.approx(pin["se_cluster_inspect_ai"], abs=1e-9)
    assert (estimate["n"], estimate["units"]) == (80, "questions")
    assert "13 reference answers are known to be wrong (questions 104, 105" in found["judge"]["notes"][0]
