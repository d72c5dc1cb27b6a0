"""What an alignment will take: arithmetic by hand, disk as a real run leaves it, and what must be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.pipelines.forecast import Stage
from consilience.pipelines.prefer import prefer_recipe
from consilience.pipelines.prefer_forecast import forecast_alignment
from preference_recipe import write_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
ASSUMED = ["assumed.prompts=61135", "assumed.prompt_tokens=180", "assumed.reply_tokens=300"]
MISTRAL = 7_241_748_480 - 32_002 * 4096  # parameters that a token is multiplied with


def stages(found: Any) -> dict[str, Stage]:
    return {stage.name: stage for stage in found.stages}


def forward(tokens: float) -> float:
    """FLOPs of a token of Mistral-7B's forward pass in a text of so many."""
    return 2 * MISTRAL + 2 * 32 * 4096 * tokens


def test_selm_on_zephyr_by_hand(tmp_path: Path) -> None:
    found = stages(forecast_alignment(RECIPES / "selm-zephyr.yaml", tmp_path, ASSUMED))
    pairs = 15283
    # Round 1 learns from the data's pairs: three rounds are sampled, of one reply each, in batches of 64.
    sample = found["selm/round-*/sample"]
    assert sample.flops == pytest.approx(3 * pairs * 480 * forward(480))
    assert sample.writing_steps == 3 * 239 * 512
    # PairRM compares three replies in both orders, six readings of a prompt and two replies; not in round 1.
    deberta = found["dpo/round-*/judge"].flops / (3 * pairs * 6 * 780)
    assert deberta == pytest.approx(2 * 0.304e9 + 2 * 24 * 1024 * 780, rel=0.01)  # 304M without the embedding
    assert found["dpo/round-*/reference"].flops == pytest.approx(4 * pairs * 780 * forward(390))
    # DPO reads a prompt and two replies; three forward passes' worth, and one more that is computed again.
    assert found["dpo/round-*/train"].flops == pytest.approx(4 * pairs * 780 * 4 * forward(390))
    # SELM's third reply is another one of three in a third of the pairs, from round 2 on.
    assert found["selm/round-*/train"].flops == pytest.approx(pairs * 4 * (780 * forward(390) + 3 * 880 * forward(440)))
    assert found["selm/round-*/train"].disk_bytes == 4 * 4 * 7_241_748_480
    assert "selm-replay/round-*/sample" not in found
    assert "selm-replay/round-*/judge" not in found


def test_arms_ask_the_start_once_for_the_same(tmp_path: Path) -> None:
    words = ["offline_rounds=0", "rounds=3", "learning_rates=[]", *ASSUMED]
    found = stages(forecast_alignment(RECIPES / "selm-zephyr.yaml", tmp_path, words))
    of_round = 239 * 512
    assert found["dpo/round-*/sample"].writing_steps == 3 * of_round
    assert found["selm/round-*/sample"].writing_steps == 2 * of_round


def test_one_gpu_of_24_gb_holds_the_recipe_for_it(tmp_path: Path) -> None:
    found = forecast_alignment(RECIPES / "dpo-iterative.yaml", tmp_path).to_json()
    assert found["memory_bytes"] < 20e9
    assert any("replies; every batch goes on" in line for line in found["assumptions"])


@pytest.fixture
def recipe(world: Path, tmp_path: Path) -> Any:
    """`recipe(**changes)` writes one of a tiny model and eight prompts."""
    row = {"prompt": "Say lamp", "chosen": "A lamp.", "rejected": "Bread."}

    def write(**changes: Any) -> Path:
        return write_recipe(tmp_path, world / "pivot", [row] * 10, **changes)

    return write


def test_disk_is_what_a_run_leaves(recipe: Any, tmp_path: Path) -> None:
    path = recipe()
    found = stages(forecast_alignment(path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    run = prefer_recipe(path, tmp_path / "run").run
    left = sum((run / f"policy/round-{t}/train/model.safetensors").stat().st_size for t in (1, 2))
    assert left / found["policy/round-*/train"].disk_bytes == pytest.approx(1.1, abs=0.15)  # headers, of tiny files
    replies = (run / "start").glob("sample/*/replies-00000.jsonl")
    assert all(path.stat().st_size < 20 * found["policy/round-*/sample"].disk_bytes for path in replies)


def test_a_further_seed_doubles_all_but_memory_and_the_model(recipe: Any, tmp_path: Path) -> None:
    one, two = (forecast_alignment(recipe(seeds=seeds), tmp_path).to_json() for seeds in ([1], [1, 2]))
    assert two["flops"] == 2 * one["flops"]
    assert two["writing_steps"] == 2 * one["writing_steps"]
    assert two["memory_bytes"] == one["memory_bytes"]


def test_without_pairs_no_reply_is_longer_than_what_may_be_written(world: Path, tmp_path: Path) -> None:
    changes = {"offline_pair": False, "explore": "best_of_n", "sample": {"max_new_tokens": 6}}
    path = write_recipe(tmp_path, world / "pivot", [{"prompt": "Say lamp"}] * 10, **changes)
    assert any("6 a reply" in line for line in forecast_alignment(path, tmp_path).assumptions)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "some/model"}, "the recipe does not say its architecture"),
        ({"model": "some/model", "assumed": {"architectures": {"some/model": "qwen-3-4b"}}}, "Did you mean 'qwen3-4b'"),
        ({"data": {"path": "no.jsonl"}}, "'no.jsonl' is not here, so its prompts cannot be counted"),
        ({"rounds": 9}, "9 rounds of at least 1 prompts, and the data has 8"),
        ({"prompts_per_round": 5}, "2 rounds of 5 prompts, and the data has 8"),
        ({"tiny": {}}, "makes its own tiny models"),
    ],
)  # fmt: skip
def test_what_cannot_be_forecast(changes: dict[str, Any], says: str, recipe: Any, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError)) as refused:
        forecast_alignment(recipe(**changes), tmp_path)
    assert says in str(refused.value)


def test_the_command_prints_a_table_and_writes_nothing(recipe: Any, tmp_path: Path, consilience: Any) -> None:
    words = ("prefer", recipe(), "--out", tmp_path / "run", "--dry-run")
    table = consilience(*words, "--tflops", 10, "--steps-per-second", 30).out
    assert "hours at 10 TFLOP/s, 30 steps/s" in table
    assert "2 rounds of 4 prompts, 2 held out (counted in pairs.jsonl)" in table
    assert consilience(*words, "--json").json["stages"][0]["name"] == "start/measure"
    assert not (tmp_path / "run").exists()
