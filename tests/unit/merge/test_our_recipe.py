"""Our own recipe: which value of a parameter counts for which model and tensor, and every fault on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.errors import ConfigError
from consilience.merge.read import read_recipe
from consilience.merge.recipe import Choice, ModelRef, Recipe, When, look_up

Tree = dict[str, Any]


def read(tree: Tree, folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return read_recipe(path, overrides)


def tree_of(**keys: Any) -> Tree:
    return {"method": "ties", "base": "base", "models": {"a": "path/a", "b": {"model": "path/b"}}} | keys


def weight_of(recipe: Recipe, model: str, name: str, layer: int | None, depth: float) -> Any:
    source = next(source for source in recipe.slices[0].sources if recipe.names[source.model] == model)
    return look_up([source.parameters, recipe.parameters], "weight", name, layer, depth)


def test_what_is_said_of_a_parameter_counts_in_its_order(tmp_path: Path) -> None:
    tree = tree_of(
        models={"a": "path/a", "b": {"model": "path/b", "parameters": {"weight": 0.5}}},
        parameters={"weight": 1.0},
        rules=[
            {"tensors": r"mlp\.", "layers": [1, 3], "parameters": {"weight": {"b": [0.0, 1.0]}}},
            {"tensors": "norm$", "parameters": {"weight": 0.25}},
        ],
    )
    recipe = read(tree, tmp_path)
    # (model, tensor, layer, depth): a rule for b alone, a rule for all, the model's own, the recipe's.
    assert weight_of(recipe, "b", "model.layers.2.mlp.up.weight", 2, 0.75) == 0.75
    assert weight_of(recipe, "a", "model.layers.2.mlp.up.weight", 2, 0.75) == 1.0
    assert weight_of(recipe, "b", "model.layers.3.mlp.up.weight", 3, 1.0) == 0.5
    assert weight_of(recipe, "a", "model.norm", None, 0.0) == 0.25
    assert weight_of(recipe, "b", "model.norm", None, 0.0) == 0.25
    assert weight_of(recipe, "b", "lm_head.weight", None, 0.0) == 0.5


def test_a_range_of_layers_holds_no_tensor_outside_the_layers() -> None:
    when = When(pattern="weight", layers=(0, 4))
    assert when.holds("model.layers.3.weight", 3)
    assert not when.holds("model.layers.4.weight", 4)
    assert not when.holds("lm_head.weight", None)


@pytest.mark.parametrize(
    ("gradient", "depth", "value"),
    [
        ((0, 1), 0.25, 0.25),
        ((0, 0.5, 0.3, 0.7, 1), 0.5, 0.3),
        ((1, 0, 4), 0.75, 2),
        ((3,), 0.7, 3),
        ((True, False), 0.9, True),
    ],
)
def test_a_gradient_runs_evenly_over_the_layers(gradient: Any, depth: float, value: Any) -> None:
    assert Choice(gradient).at(depth) == pytest.approx(value)


def test_the_rest_of_a_recipe(tmp_path: Path) -> None:
    tree = tree_of(
        donor="b",
        dtype="float16",
        chat_template="a",
        tokenizer="union",
        seed=3,
        models={"a": "path/a", "b": {"model": "path/b", "adapter": "path/lora"}},
        rules=[{"tensors": "embed", "copy": "base"}, {"layers": [0, 1], "method": "linear"}],
    )
    recipe = read(tree, tmp_path)
    a, b = ModelRef("path/a"), ModelRef("path/b", adapter="path/lora")
    assert (recipe.donor, recipe.dtype, recipe.chat_template, recipe.seed) == (b, "float16", a, 3)
    assert recipe.models == (ModelRef("base"), a, b)
    assert [(rule.method, rule.copy) for rule in recipe.rules] == [("", ModelRef("base")), ("linear", None)]
    assert recipe.vocabulary is not None
    assert recipe.vocabulary.source == "union"


def test_an_override_is_applied_and_recorded(tmp_path: Path) -> None:
    recipe = read(tree_of(), tmp_path, "parameters.density=0.4")
    assert recipe.parameters["density"] == (Choice(0.4),)
    assert recipe.source.endswith("# --set parameters.density=0.4\n")


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (tree_of(metod="ties"), "Did you mean 'method'?"),
        (tree_of(models={}), "models"),
        (tree_of(parameters={"weight": {"c": 1}}), "no model is called 'c'"),
        (tree_of(donor="bse"), "Did you mean 'base'?"),
        (tree_of(dtype="float23"), "Did you mean 'float32'?"),
        (tree_of(rules=[{"tensors": "(", "copy": "a"}]), "not a regular expression"),
        (tree_of(rules=[{"copy": "a"}]), "'tensors' (a regular expression) or 'layers'"),
        (tree_of(rules=[{"tensors": "x"}]), "a model to 'copy'"),
        (tree_of(rules=[{"tensors": "x", "copy": "a", "method": "linear"}]), "a model to 'copy'"),
        (tree_of(rules=[{"tensors": "x", "copy": "c"}]), "no model is called 'c'"),
        (tree_of(slices=[{"layers": {"c": [0, 1]}}]), "no model is called 'c'"),
        (tree_of(parameters={"weight": []}), "empty list"),
        (tree_of(tokenizer={"source": "base", "tokens": {"<x>": {"zero": True, "model": "a"}}}), "'zero: true'"),
        (tree_of(tokenizer="c"), "no model is called 'c'"),
        ({"models": {"a": "b"}, "methd": "ties"}, "Did you mean 'method'?"),
    ],
)
def test_a_fault_is_named(tmp_path: Path, tree: Tree, says: str) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yaml") as refusal:
        read(tree, tmp_path)
    assert says in str(refusal.value)
