"""Genuine logs of lm-evaluation-harness 0.4.13 and inspect_ai 0.3.285, made by benchmarks/peer_logs.py on two tiny
models of ours: compared with `consilience compare`, against what the logs' own harnesses say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LOGS = Path(__file__).parent / "peer_logs"
Command = Callable[..., Any]
# The harnesses' own summaries of these runs: `acc`, `acc_norm` and `exact_match` of the results tables, and the
# accuracies and standard errors that inspect_ai printed, which reduce two epochs to their mean.
LM_EVAL = json.loads((LOGS / "lm_eval.json").read_text())
INSPECT = json.loads((LOGS / "inspect.json").read_text())


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_lm_eval(metric: str, consilience: Command) -> None:
    files = [next((LOGS / "lm_eval" / name).glob("samples_tiny_choice_*.jsonl")) for name in ("pivot", "sums")]
    result = consilience("compare", *files, "--metric", metric, "--json").json
    assert result["sources"] == dict.fromkeys(result["sources"], "lm-evaluation-harness samples")
    assert set(result["models"]) == {"pivot", "sums"}
    for name, model in result["models"].items():
        assert model["estimate"]["value"] == pytest.approx(LM_EVAL[name]["tiny_choice"][f"{metric},none"])
        assert model["statuses"] == {"scored": 30}
    [pair] = result["pairs"]
    own = LM_EVAL["pivot"]["tiny_choice"], LM_EVAL["sums"]["tiny_choice"]
    assert pair["difference"]["value"] == pytest.approx(own[0][f"{metric},none"] - own[1][f"{metric},none"])
    unpaired = sum(one[f"{metric}_stderr,none"] ** 2 for one in own) ** 0.5  # lm-evaluation-harness' comparator
    assert pair["difference"]["standard_error"] != pytest.approx(unpaired, rel=0.01)


def test_lm_eval_folders_of_two_tasks(consilience: Command) -> None:
    folders = [LOGS / "lm_eval" / name for name in ("pivot", "sums")]
    result = consilience("compare", *folders, "--metric", "exact_match", "--json").json
    for name, model in result["models"].items():
        assert model["estimate"]["value"] == pytest.approx(LM_EVAL[name]["tiny_write"]["exact_match,none"])


@pytest.mark.parametrize("scorer", ["includes", "exact"])
def test_inspect(scorer: str, consilience: Command) -> None:
    files = [LOGS / "inspect" / f"{name}.eval" for name in ("pivot", "sums")]
    result = consilience("compare", *files, "--metric", scorer, "--json").json
    assert result["sources"] == dict.fromkeys(result["sources"], "inspect_ai log")
    for name in ("pivot", "sums"):
        found = result["models"][f"hf/{name}"]
        own = INSPECT[name][scorer]
        assert found["estimate"]["value"] == pytest.approx(own.get("accuracy", own.get("mean")))
        assert found["statuses"] == {"scored": 60}  # two epochs of thirty samples
        assert found["estimate"]["standard_error"] == pytest.approx(own["stderr"])
    clustered = consilience("compare", *files, "--metric", scorer, "--cluster", "metadata.wording", "--json")
    assert clustered.code == 0, clustered.err
    assert clustered.json["pairs"][0]["difference"]["n"] == 4  # What, Add, How, Count
