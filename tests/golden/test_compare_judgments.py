"""`consilience compare` on real judgments, against published scores and other libraries' numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from consilience.evaluate.logs import Status, read_log

SHARED = Path(__file__).parents[3] / "shared"
CHECKS, DATA = SHARED / "checks" / "evaluation", SHARED / "data"
JUDGMENTS = DATA / "mt_bench" / "judgments"
pytestmark = pytest.mark.skipif(
    not (CHECKS.is_dir() and DATA.is_dir()), reason="no ../shared/checks/evaluation and ../shared/data beside the repo"
)


@cache
def pinned(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKS / f"{name}_expected.json").read_text())
    return found


@pytest.mark.parametrize("file", ["jxiw", "muhan", "alvaro", "nathan"])
def test_mt_bench_scores(file: str, consilience: Callable[..., Any]) -> None:
    result = consilience("compare", JUDGMENTS / f"{file}.single.jsonl.gz", "--json").json
    expected = pinned("mt_bench")["files"][file]["models"]
    assert set(result["models"]) == set(expected)
    for name, pin in expected.items():
        found = result["models"][name]
        told = found["statuses"]
        assert sum(n for status, n in told.items() if "duplicate" in status) == pin["duplicate_rows"]
        assert told.get("unparsed verdict", 0) == pin["unparsed"]
        assert told.get("out of range", 0) == pin["out_of_range"]
        if pin["duplicate_rows"]:
            continue  # what was pinned of it is not of one judgment per item
        assert found["estimate"]["value"] == pytest.approx(pin["mean"], abs=1e-9)
        assert found["estimate"]["standard_error"] == pytest.approx(pin["se_cluster_inspect_ai"], abs=1e-9)
        assert [found["estimate"]["low"], found["estimate"]["high"]] == pytest.approx(pin["ci95_t_cluster"], abs=1e-9)
        by_category = {name: part["value"] for name, part in found["by_category"].items()}
        assert by_category == pytest.approx(pin["by_category"], abs=1e-9)
        if pin["published"]:
            assert round(found["estimate"]["value"] + 1e-9, 2) == pin["published"]


def test_a_judge_on_another_scale_is_out_of_range() -> None:
    pin = pinned("mt_bench")["files"]["qwenjudge"]["models"]["Qwen-1_8B-Chat"]
    statuses = [score.status for score in read_log(JUDGMENTS / "qwenjudge.single.jsonl.gz").scores]
    assert statuses.count(Status.OUT_OF_RANGE) == pin["out_of_range"]
    assert statuses.count(Status.UNPARSED) == pin["unparsed"]


def test_both_orders_of_a_pair(consilience: Callable[..., Any]) -> None:
    pin = pinned("position_swap")
    result = consilience("compare", JUDGMENTS / "stefan.pair.jsonl.gz", "--json").json
    second = result["models"]["phi-3-dpo"]["estimate"]
    assert second["value"] == pytest.approx(100 * pin["model_2_mean_of_two_orders"], abs=1e-9)
    assert second["standard_error"] == pytest.approx(100 * pin["se"], abs=1e-9)
    assert result["models"]["phi-3"]["no_score"] == pin["n_all"] - pin["n_ok"]
    told = " ".join(result["notes"])
    assert f"of {pin['n_ok']} battles" in told
    assert f"the same in {pin['consistent']};" in told
    assert f"shown first in {pin['flips_to_first']}, to whichever was shown second in {pin['flips_to_second']}." in told


def test_alpaca_eval_annotations(consilience: Callable[..., Any]) -> None:
    files = [*sorted((DATA / "alpaca_eval").glob("*.annotations.json.gz"))]
    result = consilience("compare", *files, "--json").json
    expected = {name: pin["published"] for name, pin in pinned("alpaca_eval").items()}
    for name, found in result["models"].items():
        assert found["estimate"]["value"] == pytest.approx(expected[name]["win_rate"], abs=1e-6)
        assert found["estimate"]["standard_error"] == pytest.approx(expected[name]["standard_error"], abs=1e-6)
    pair = result["pairs"][0]
    assert (result["items"], pair["items"]) == (805, 804)  # by instruction: one file lacks one of them


def test_power_as_miller_has_it(consilience: Callable[..., Any]) -> None:
    cases = json.loads((CHECKS / "power_expected.json").read_text())
    for case in cases:
        if "mde" in case:
            spread = case["var_paired_diff"] ** 0.5
            words = ("--items", case["mde_for_n"], "--probability", case["power"])
            found = consilience("power", *words, "--spread", repr(spread), "--json").json
            assert found["smallest_difference"] == pytest.approx(case["mde"], rel=1e-9)
        else:
            variance = case["omega2"] + case["sigma2_A"] / case["K_A"] + case["sigma2_B"] / case["K_B"]
            words = ("--difference", case["delta"], "--probability", case["power"])
            found = consilience("power", *words, "--spread", repr(variance**0.5), "--json").json
            assert found["items_for_difference"] == case["n_ceil"]
