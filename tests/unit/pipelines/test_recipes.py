"""Every recipe that is shipped is one that the command accepts."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilience.config import load_recipe
from consilience.pipelines.demo import demo_recipe
from consilience.pipelines.recipe import FuseRecipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_recipe_is_sound(path: Path) -> None:
    recipe = load_recipe(path, FuseRecipe)
    assert recipe.result_name in {*recipe.merges, *recipe.target_names}


def test_the_demonstrations_recipe_is_among_them() -> None:
    assert demo_recipe() in RECIPES


def test_fusechats_published_settings() -> None:
    # FuseChat (arXiv 2408.07990): 3 epochs, 5e-6 cosine, warm-up 0.03, no weight decay, 128 per step, 0.9 CLM, top 10.
    recipe = load_recipe(RECIPES[0].with_name("fusechat-7b-v2.yaml"), FuseRecipe)
    train = recipe.train
    assert (train.epochs, train.learning_rate, train.warmup, train.weight_decay) == (3, 5e-6, 0.03, 0)
    assert (train.batch_size, train.schedule) == (128, "cosine")
    assert (recipe.select.gold_weight, recipe.represent.top_k) == (0.9, 10)
