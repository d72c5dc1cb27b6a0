"""From a recipe and headers to a plan: what is merged with what, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from consilience.errors import BackendError, ConfigError
from consilience.merge.plan import MergePlan
from consilience.merge.read import read_recipe
from consilience.merge.resolve import Options, plan_merge

LAYERS = 2
NAMES = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
IN_LAYERS = ("self_attn.q_proj.weight", "mlp.experts.0.up_proj.weight")


def weights_of(layers: int = LAYERS) -> dict[str, Tensor]:
    names = [*NAMES, *(f"model.layers.{layer}.{name}" for layer in range(layers) for name in IN_LAYERS)]
    return {name: torch.zeros(4, 2, dtype=torch.bfloat16) for name in names}


def write(
    folder: Path, changes: Mapping[str, Tensor | None] | None = None, layers: int = LAYERS, **config: Any
) -> None:
    """A model; a tensor that `changes` maps to None is left out."""
    folder.mkdir()
    tensors = {
        name: tensor for name, tensor in (weights_of(layers) | dict(changes or {})).items() if tensor is not None
    }
    save_file(tensors, folder / "model.safetensors")
    settings = {
        "model_type": "llama",
        "num_hidden_layers": layers,
        "vocab_size": 4,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(settings | config))


def planned(folder: Path, tree: Mapping[str, Any], **options: Any) -> MergePlan:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    return plan_merge(read_recipe(path), Options(**options)).plan


def of(method: str = "linear", *models: str, **keys: Any) -> dict[str, Any]:
    """Models are found beside the recipe."""
    return {"method": method, "models": {name: name for name in models or ("a", "b")}} | keys


def config_of(plan: MergePlan) -> dict[str, Any]:
    content = plan.files["config.json"]
    assert isinstance(content, bytes)
    return dict(json.loads(content))


def test_the_names_in_the_files_are_the_plan(tmp_path: Path) -> None:
    """A head for scores and a gate that no architecture knows are merged like any tensor."""
    extra = {"score.weight": torch.zeros(3, 2), "model.layers.1.my_gate": torch.zeros(5)}
    for name in "ab":
        write(tmp_path / name, extra)
    plan = planned(tmp_path, of())
    assert {tensor.name for tensor in plan.tensors} == weights_of().keys() | extra.keys()
    assert all(tensor.method == "linear" for tensor in plan.tensors)
    assert {tensor.name: tensor.dtype for tensor in plan.tensors}["score.weight"] == "F32"  # as it is stored


def test_without_a_base_the_first_model_gives_the_configuration(tmp_path: Path) -> None:
    write(tmp_path / "a", rope_theta=1)
    write(tmp_path / "b", rope_theta=2)
    for models, theta in ((("a", "b"), 1), (("b", "a"), 2)):
        plan = planned(tmp_path, of("linear", *models))
        assert config_of(plan)["rope_theta"] == theta
        assert f"those of the first model, {models[0]}" in plan.recipe["notes"][0]
    plan = planned(tmp_path, of(donor="b"))
    assert config_of(plan)["rope_theta"] == 2
    assert plan.recipe["notes"] == []


def test_dtypes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", {name: torch.zeros(4, 2) for name in NAMES})
    kept = {tensor.name: tensor.dtype for tensor in planned(tmp_path, of()).tensors}
    assert set(kept.values()) == {"BF16"}
    plan = planned(tmp_path, of(dtype="float16"))
    assert {tensor.dtype for tensor in plan.tensors} == {"F16"}
    assert config_of(plan)["torch_dtype"] == "float16"


@pytest.mark.parametrize("holder", ["a", "b"])
def test_a_tensor_of_one_input_is_refused_or_copied(tmp_path: Path, holder: str) -> None:
    for name in "ab":
        write(tmp_path / name, {"extra.weight": torch.zeros(2)} if name == holder else {})
    with pytest.raises(BackendError, match=r"extra\.weight.*--copy-missing"):
        planned(tmp_path, of())
    plan = planned(tmp_path, of(), copy_missing=True)
    extra = next(tensor for tensor in plan.tensors if tensor.name == "extra.weight")
    assert (extra.method, [rows.model for rows in extra.models]) == ("passthrough", [holder])
    assert any("extra.weight is copied" in note for note in plan.recipe["notes"])


def test_a_buffer_that_older_checkpoints_hold_is_copied(tmp_path: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    write(tmp_path / "a", {buffer: torch.zeros(2)})
    write(tmp_path / "b")
    plan = planned(tmp_path, of(dtype="float16"))
    copied = next(tensor for tensor in plan.tensors if tensor.name == buffer)
    assert (copied.method, copied.dtype) == ("passthrough", "F32")


def test_whole_numbers_are_copied_where_all_agree(tmp_path: Path) -> None:
    for name in "ab":
        write(tmp_path / name, {"model.position_ids": torch.arange(3)})
    copied = next(tensor for tensor in planned(tmp_path, of()).tensors if tensor.name == "model.position_ids")
    assert (copied.method, copied.dtype) == ("passthrough", "I64")
    write(tmp_path / "c", {"model.position_ids": torch.arange(3) + 1})
    with pytest.raises(BackendError, match=r"model\.position_ids.*differs"):
        planned(tmp_path, of("linear", "a", "c"))


def test_shapes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", {"model.layers.1.self_attn.q_proj.weight": torch.zeros(2, 4).bfloat16()})
    with pytest.raises(BackendError, match=r"q_proj\.weight has shape \[4, 2\] in a and \[2, 4\] in b"):
        planned(tmp_path, of())
    write(tmp_path / "c", {name: torch.zeros(6, 2) for name in ("model.embed_tokens.weight", "lm_head.weight")})
    with pytest.raises(BackendError, match="tokenizer"):
        planned(tmp_path, of("linear", "a", "c"))


def test_a_tied_head_beside_an_untied_one(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", {"lm_head.weight": None}, tie_word_embeddings=True)
    for models in (("a", "b"), ("b", "a")):
        with pytest.raises(BackendError, match=r"lm_head\.weight.*--untie"):
            planned(tmp_path, of("linear", *models))
        plan = planned(tmp_path, of("linear", *models), untie=True)
        head = next(tensor for tensor in plan.tensors if tensor.name == "lm_head.weight")
        sources = {rows.model: rows.parts[0].tensor.name for rows in head.models}
        assert sources == {"a": "lm_head.weight", "b": "model.embed_tokens.weight"}
        assert config_of(plan)["tie_word_embeddings"] is False


def test_a_stored_head_that_is_tied_all_the_same(tmp_path: Path) -> None:
    """A loader takes the embeddings; the file's head is of no account, in some inputs or in all."""
    write(tmp_path / "a", tie_word_embeddings=True)
    write(tmp_path / "b", {"lm_head.weight": None}, tie_word_embeddings=True)
    plan = planned(tmp_path, of())
    assert "lm_head.weight" not in {tensor.name for tensor in plan.tensors}
    assert any("lm_head.weight is left out" in note for note in plan.recipe["notes"])


def test_remote_code(tmp_path: Path) -> None:
    write(tmp_path / "a", model_type="of_their_own", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    with pytest.raises(BackendError, match=r"needs remote code.*--trust-remote-code"):
        planned(tmp_path, of("linear", "a"))
    assert planned(tmp_path, of("linear", "a"), trust_remote_code=True).tensors
    write(tmp_path / "b", auto_map={"AutoModelForCausalLM": "modeling_x.X"})  # a Llama: transformers has its class
    assert planned(tmp_path, of("linear", "b")).tensors


def test_stacked_layers_take_the_configuration_along(tmp_path: Path) -> None:
    write(tmp_path / "a", layer_types=["full", "sliding"])
    write(tmp_path / "b", layers=3, layer_types=["x", "y", "z"])
    tree = of("passthrough", slices=[{"layers": {"a": [0, 2]}}, {"layers": {"b": [1, 3]}}], donor="a")
    tree["rules"] = [{"tensors": "^lm_head|norm", "copy": "b"}]
    plan = planned(tmp_path, tree)
    config = config_of(plan)
    assert config["num_hidden_layers"] == 4
    assert config["layer_types"] == ["full", "sliding", "y", "z"]
    origins = {tensor.name: (tensor.models[0].model, tensor.models[0].parts[0].tensor.name) for tensor in plan.tensors}
    assert origins["model.layers.2.self_attn.q_proj.weight"] == ("b", "model.layers.1.self_attn.q_proj.weight")
    assert origins["model.layers.3.mlp.experts.0.up_proj.weight"] == (
        "b",
        "model.layers.2.mlp.experts.0.up_proj.weight",
    )
    assert origins["model.embed_tokens.weight"] == ("a", "model.embed_tokens.weight")
    assert origins["lm_head.weight"] == ("b", "lm_head.weight")


def test_a_rule_may_bring_a_base_and_parameters_of_its_own(tmp_path: Path) -> None:
    for name in ("base", "a", "b"):
        write(tmp_path / name)
    rule = {"tensors": "q_proj", "method": "ties", "parameters": {"density": 0.5}}
    plan = planned(tmp_path, of(base="base", rules=[rule]))
    for tensor in plan.tensors:
        if "q_proj" in tensor.name:
            assert (tensor.method, tensor.parameters["density"]) == ("ties", (0.5, 0.5))
            assert tensor.base is not None
        else:
            assert (tensor.method, tensor.base) == ("linear", None)


def test_nothing_outside_the_layers_is_dropped_between_slices(tmp_path: Path) -> None:
    write(tmp_path / "a", {"my.gate": torch.zeros(3)})
    write(tmp_path / "b", {"lm_head.weight": None})
    slices = [{"layers": {"a": [0, 1]}}, {"layers": {"b": [1, 2]}}]
    gate = {"tensors": "gate", "copy": "a"}
    with pytest.raises(ConfigError, match=r"my\.gate is outside the layers"):
        planned(tmp_path, of("passthrough", slices=slices))
    with pytest.raises(BackendError, match=r"lm_head\.weight is in a and not in b, the last slice"):
        planned(tmp_path, of("passthrough", slices=slices, rules=[gate]))
    plan = planned(tmp_path, of("passthrough", slices=slices, rules=[gate, {"tensors": "lm_head", "copy": "a"}]))
    assert {"my.gate", "lm_head.weight"} <= {tensor.name for tensor in plan.tensors}


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (of("passthrough", "a", slices=[{"layers": {"a": [0, 3]}}]), r"layers \[0, 3\] of a: it has layers 0 to 1"),
        (of("ties", slices=[{"layers": {"a": [0, 1], "b": [0, 1]}}], base="base"), "a slice lacks the base"),
        (of("ties"), "against a base"),
        (of("slerp", base="base", parameters={"t": 0.5}), "slerp merges 1 models beside the base; the recipe names 2"),
        (of("tise", base="base"), "Did you mean 'ties'"),
        (
            of("ties", base="base", parameters={"densty": 0.5}),
            "ties takes no parameter 'densty'. Did you mean 'density'",
        ),
        (of("ties", base="base", parameters={"normalize": {"a": True}}), "one 'normalize' for all models"),
        (of("ties", base="base", parameters={"density": {"a": 0.5}}), "'density' is missing for b"),
        (of("ties", base="base", parameters={"density": 7}), r"tensor .*density is 7"),
    ],
)
def test_what_a_recipe_should_say_otherwise(tmp_path: Path, tree: dict[str, Any], says: str) -> None:
    for name in ("base", "a", "b"):
        write(tmp_path / name)
    with pytest.raises(ConfigError, match=says):
        planned(tmp_path, tree)


def test_a_folder_that_is_not_there_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / "code")
    with pytest.raises(BackendError, match="Did you mean 'code'"):
        planned(tmp_path, {"method": "passthrough", "models": {"a": "models/cod"}})
