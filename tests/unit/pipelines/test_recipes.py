"""Every recipe that is shipped is one that the command accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consilience.config import Settings, load_recipe, load_tree, parse
from consilience.pipelines.demo import demo_recipe
from consilience.pipelines.evaluation_recipe import EvaluateRecipe
from consilience.pipelines.places import Places
from consilience.pipelines.prefer_recipe import PreferRecipe
from consilience.pipelines.recipe import FuseRecipe

ALL = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))
RECIPES = [path for path in ALL if "pivot" in load_tree(path)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_sound(path: Path) -> None:
    recipe = load_recipe(path, FuseRecipe)
    assert recipe.result_name in {*recipe.merges, *recipe.target_names}


@pytest.mark.parametrize("path", [path for path in ALL if "judge" in load_tree(path)], ids=lambda path: path.stem)
def test_the_preference_recipe_is_sound(path: Path) -> None:
    recipe = load_recipe(path, PreferRecipe)
    assert {*recipe.of_arms()} == {*recipe.arms}


@pytest.mark.parametrize("path", [path for path in ALL if "tasks" in load_tree(path) and "models" in load_tree(path)])
def test_the_evaluation_recipe_is_sound(path: Path) -> None:
    recipe = load_recipe(path, EvaluateRecipe)
    places = Places(path.parent, path.parent)
    for task in recipe.tasks.values():
        assert places.is_made_here(task.path) or places.file(task.path).is_file()


@pytest.mark.parametrize(
    ("name", "alpha", "batch_size", "rates", "offline_rounds"),
    [
        ("selm-zephyr", 1e-3, 256, (5e-7, 5e-7, 5e-7, 1e-7), 1),
        ("selm-llama3", 1e-4, 128, (5e-7, 3e-7, 1e-7), 0),
    ],
)
def test_selms_published_settings(
    name: str, alpha: float, batch_size: int, rates: tuple[float, ...], offline_rounds: int
) -> None:
    # SELM (arXiv 2405.19332, appendix D): beta 0.01, cosine, warm-up 0.1, one epoch, greedy replies.
    recipe = load_recipe(RECIPES[0].with_name(f"{name}.yaml"), PreferRecipe)
    selm = recipe.of_arms()["selm"]
    assert (selm.loss.name, selm.loss.alpha, selm.loss.beta, selm.loss.times_beta) == ("selm", alpha, 0.01, True)
    assert (selm.train.batch_size, selm.train.epochs, selm.train.warmup) == (batch_size, 1, 0.1)
    assert (selm.learning_rates, selm.offline_rounds, selm.sample.temperature) == (rates, offline_rounds, 0)
    assert recipe.decompositions() == [("selm", "selm-replay", "dpo")]
    first = selm.in_round(1)
    assert first.loss.name == ("dpo" if offline_rounds else "selm")
    assert first.train.learning_rate == 5e-7


def test_the_demonstrations_recipe_is_among_them() -> None:
    assert demo_recipe() in RECIPES


def test_fusechats_published_settings() -> None:
    # FuseChat (arXiv 2408.07990): 3 epochs, 5e-6 cosine, warm-up 0.03, no weight decay, 128 per step, 0.9 CLM, top 10.
    recipe = load_recipe(RECIPES[0].with_name("fusechat-7b-v2.yaml"), FuseRecipe)
    train = recipe.train
    assert (train.epochs, train.learning_rate, train.warmup, train.weight_decay) == (3, 5e-6, 0.03, 0)
    assert (train.batch_size, train.schedule) == (128, "cosine")
    assert (recipe.select.gold_weight, recipe.represent.top_k) == (0.9, 10)


@pytest.mark.parametrize("kind", [EvaluateRecipe, PreferRecipe, FuseRecipe])
def test_a_servers_pace_price_and_key_decide_no_outcome(kind: type[Settings]) -> None:
    def recipe(**endpoint: Any) -> Settings:
        judge = {"kind": "rating", "endpoint": {"url": "http://localhost:1/v1", "model": "m"} | endpoint}
        file = {"path": "data.jsonl"}
        trees: dict[type[Settings], dict[str, Any]] = {
            EvaluateRecipe: {
                "models": {"served": {"endpoint": judge["endpoint"]}},
                "judges": {"judge": judge},
                "tasks": {"rated": {"kind": "rated", "judge": "judge"} | file},
            },
            PreferRecipe: {"model": "model", "data": file, "judge": judge},
            FuseRecipe: {
                "pivot": "a",
                "sources": {"b": "b", "c": "c"},
                "data": file,
                "fusion": {"kind": "replies", "judge": judge},
            },
        }
        return parse(trees[kind], kind, where="recipe.yaml")

    same = recipe(
        api_key_env="KEY", concurrency=1, requests_per_minute=1, tokens_per_minute=1, timeout_s=1, retries=1,
        backoff_s=2, longest_wait_s=2, price={"input": 1, "output": 1}, budget={"money": 1},
        max_tokens_field="max_completion_tokens",
    )  # fmt: skip
    assert same.decides() == recipe().decides() != recipe(model="other").decides()
    assert recipe(url="http://localhost:2/v1").decides() != recipe().decides()
    assert "max_completion_tokens" in str(same.model_dump())  # what a report shows of the recipe is the whole
