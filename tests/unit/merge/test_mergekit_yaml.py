"""mergekit's YAML: its own resolution of every parameter, and a line for each key that it would ignore silently."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.errors import ConfigError
from consilience.merge.mergekit import METHODS, OURS, reference
from consilience.merge.read import read_recipe
from consilience.merge.recipe import Choice, ModelRef, Recipe, TokenRow, When
from consilience.merge.resolve import plan_merge

# For each YAML, what mergekit 0.1.5's MergePlanner (mergekit.plan) makes of every tensor of a Llama with four layers:
# base, the models' tensor names, shared and per-model parameters.
PLANNED = json.loads((Path(__file__).parent / "mergekit_resolution.json").read_text())
NAMES = sorted(PLANNED["stack"]["tensors"])

Tree = dict[str, Any]


def models_at(folder: Path) -> Path:
    """Headers of four Llamas with four layers; the numbers are of no account."""
    import torch
    from safetensors.torch import save_file

    for name in ("base", "ft0", "ft1", "ft2"):
        (folder / name).mkdir()
        names = PLANNED["filters_and_gradients"]["tensors"]
        save_file({tensor: torch.zeros(2, 2) for tensor in names}, folder / name / "model.safetensors")
        config = {"model_type": "llama", "num_hidden_layers": 4, "vocab_size": 8, "tie_word_embeddings": False}
        (folder / name / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", sorted(PLANNED))
def test_every_parameter_of_every_tensor_is_mergekits(tmp_path: Path, case: str) -> None:
    path = models_at(tmp_path) / "recipe.yml"
    path.write_text(PLANNED[case]["yaml"].replace("IN/", f"{tmp_path}/"))
    plan = {tensor.name: tensor for tensor in plan_merge(read_recipe(path)).plan.tensors}
    assert plan.keys() == PLANNED[case]["tensors"].keys()
    for name, expected in PLANNED[case]["tensors"].items():
        tensor = plan[name]
        base = expected["base"]
        assert (tensor.base.model if tensor.base else None) == (f"{tmp_path}/{base}" if base else None)
        inputs = {f"{tmp_path}/{model}": entry for model, entry in expected["inputs"].items() if model != base}
        assert {rows.model: rows.parts[0].tensor.name for rows in tensor.models} == {
            model: entry["name"] for model, entry in inputs.items()
        }
        for key, value in expected["shared"].items():
            if key != "int8_mask":
                meant = {True: "l1", False: "none"}[value] if key == "rescale" else value
                assert tensor.parameters[OURS.get(key, key)] == pytest.approx(meant), (name, key)
        for place, rows in enumerate(tensor.models):
            for key, value in inputs[rows.model]["parameters"].items():
                found = tensor.parameters[OURS.get(key, key)]
                found = found[place] if isinstance(found, tuple) else found
                assert found == pytest.approx(1.0 if value is None else value), (name, rows.model, key)


def read(tree: Tree, folder: Path) -> Recipe:
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return read_recipe(path)


def tree_of(method: str = "linear", **keys: Any) -> Tree:
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ab"]
    return {"models": models, "merge_method": method} | keys


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (tree_of(modules={"text": {}}), "'modules' is not supported"),
        (tree_of(name="first"), "mergekit-multi"),
        (tree_of(slices=[]), "exactly one of 'models' and 'slices'"),
        (tree_of(paramters={}), "unknown key 'paramters'. Did you mean 'parameters'?"),
        (tree_of(parameters={"densty": 1}), "Did you mean"),
        (tree_of("karcher", models=[{"model": "a"}], parameters={"normalize": True}), "karcher takes no 'normalize'"),
        (tree_of("nuslerp", parameters={"nuslerp_row_wise": True}), "nuslerp_row_wise is not supported"),
        (tree_of("slerp", base_model="a"), "takes no 'weight'"),
        (tree_of(base_model="c"), "would silently merge base_model c as one more model"),
        (tree_of("ties"), "Give 'base_model'"),
        (tree_of("dare-ties", base_model="a"), "Did you mean 'dare_ties'?"),
        (tree_of(dtype="int64"), "int64"),
        (tree_of(out_dtype="bfloat"), "Did you mean 'bfloat16'?"),
        (tree_of(tokenizer_source="base", tokenizer={"source": "base"}), "got both"),
        (tree_of(tokenizer={"source": "base", "tokens": {"<x>": {"force": True}}}), "tokenizer.tokens.<x>.source"),
        (tree_of(tokenizer={"tokens": {"<x>": {"source": {"kind": "mean"}}}}), "'mean'"),
        (tree_of(tokenizer={"tokens": {"<x>": {"source": {"kind": "model_token", "model": "a"}}}}), "token_id"),
        (tree_of(parameters={"normalize": []}), "empty list"),
        (tree_of(parameters={"normalize": [{"filter": "mlp"}]}), "value is missing"),
        (tree_of(parameters={"normalize": [{"filtr": "mlp", "value": 1}]}), "Did you mean 'filter'?"),
        (tree_of(parameters={"normalize": [1, {"value": 1}]}), "mixes values and filters"),
        (tree_of(models=[{"model": {"model": {"path": "a"}, "override_architecture": "B"}}]), "override_architecture"),
        (tree_of(models=[{"model": "a+b+c", "parameters": {"weight": 1}}]), "more than one '+'"),
        (tree_of(models=[{"model": "a", "parameters": {"weight": 1}}] * 2), "lists a 2 times"),
        (tree_of(models=[{"model": "a", "parameters": {"normalize": True}}]), "top-level 'parameters'"),
        ({"merge_method": "passthrough", "slices": [{"sources": [{"model": "a"}]}]}, "layer_range"),
        ({"merge_method": "passthrough", "slices": [{"sources": []}]}, "sources is empty"),
        ({"merge_method": "linear", "slices": [{"sources": [], "residual_weight": 0.5}]}, "residual_weight"),
        (
            {
                "merge_method": "linear",
                "slices": [{"sources": [{"model": m, "layer_range": [0, n]} for m, n in (("a", 2), ("b", 3))]}],
            },
            "as many in each",
        ),
        ({"experts": [], "gate_mode": "hidden"}, "mergekit-moe"),
    ],
)  # fmt: skip
def test_what_mergekit_would_ignore_or_what_is_not_supported_is_refused_by_name(
    tmp_path: Path, tree: Tree, says: str
) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.yml") as refusal:
        read(tree, tmp_path)
    assert says in str(refusal.value)


def test_several_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "multi.yml"
    path.write_text("merge_method: linear\n---\nmerge_method: linear\n")
    with pytest.raises(ConfigError, match="another document"):
        read_recipe(path)


def test_what_has_no_effect_in_mergekit_is_a_note(tmp_path: Path) -> None:
    models = [{"model": name, "parameters": {"weight": 1, "density": 0.5}} for name in "ab"]
    recipe = read({"models": models, "merge_method": "task_arithmetic", "base_model": "c"}, tmp_path)
    assert ["density has no effect" in note for note in recipe.notes] == [True, True]
    assert all("density" not in source.parameters for source in recipe.slices[0].sources)


def test_a_number_without_a_dot_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text, and mergekit turns it into a number."""
    path = tmp_path / "recipe.yml"
    path.write_text("models: [{model: a}]\nmerge_method: nearswap\nbase_model: b\nparameters: {t: 1e-3}\n")
    assert read_recipe(path).parameters["t"] == (Choice(0.001),)


def test_references() -> None:
    assert reference("a/b", "") == ModelRef("a/b")
    assert reference("a/b@main+c/d@v2", "") == ModelRef("a/b", "main", "c/d", "v2")
    assert str(reference("a/b@main+c/d@v2", "")) == "a/b@main+c/d@v2"


def test_the_whole_tokenizer_section(tmp_path: Path) -> None:
    section = {
        "source": "b",
        "tokens": {
            "<a>": {"source": "a", "force": True},
            "<b>": {"source": {"kind": "model_token", "model": "b", "token_id": 7}},
            "<c>": {"source": {"kind": "zero"}},
        },
        "pad_to_multiple_of": 64,
    }
    found = read(tree_of(tokenizer=section), tmp_path).vocabulary
    assert found is not None
    assert found.source == ModelRef("b")
    assert found.pad_to_multiple_of == 64
    assert found.rows == {
        "<a>": TokenRow(ModelRef("a"), force=True),
        "<b>": TokenRow(ModelRef("b"), token_id=7),
        "<c>": TokenRow(None),
    }


def test_filters_and_stars(tmp_path: Path) -> None:
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 3}]
    found = read(tree_of(parameters={"weight": setting}), tmp_path).parameters["weight"]
    assert found == (Choice((0, 1), When(contains="mlp")), Choice(3))


def test_every_method_of_mergekit_has_a_place(tmp_path: Path) -> None:
    """The names are those of mergekit 0.1.5's registry (references: 20 methods)."""
    assert len(METHODS) == 20
