"""Merges that cannot be made: one line that names what is wrong, exit 2, and nothing overwritten."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

Consilience = Callable[..., Any]
Tree = dict[str, Any]
Weights = dict[str, Tensor]

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
HEAD = "lm_head.weight"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "tie_word_embeddings": False,
}
MODELS = ("base", "a", "b")


def sizes_of(vocabulary: int = 40) -> dict[str, tuple[int, ...]]:
    sizes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, 16)}
    for layer in range(2):
        sizes |= {
            f"model.layers.{layer}.input_layernorm.weight": (16,),
            f"model.layers.{layer}.self_attn.q_proj.weight": (16, 16),
            f"model.layers.{layer}.mlp.up_proj.weight": (32, 16),
        }
    return sizes | {"model.norm.weight": (16,), HEAD: (vocabulary, 16)}


def write_model(folder: Path, weights: Weights, **config: Any) -> None:
    """A checkpoint in two shards."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names, weight_map = sorted(weights), {}
    for shard, own in zip(SHARDS, (names[: len(names) // 2], names[len(names) // 2 :])):
        save_file({name: weights[name] for name in own}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG | config))


def weights_in(folder: Path) -> Weights:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[Weights], Any], **config: Any) -> None:
    """`folder` again, after `change` was at its weights."""
    weights = weights_in(folder)
    change(weights)
    write_model(folder, weights, **config)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with `base` and two fine-tunes `a` and `b` in bfloat16."""
    random = torch.Generator().manual_seed(0)
    base = {name: torch.randn(size, generator=random) for name, size in sizes_of().items()}
    for model in MODELS:
        moved = {name: tensor + 0.01 * torch.randn(tensor.shape, generator=random) for name, tensor in base.items()}
        write_model(tmp_path / model, {name: tensor.bfloat16() for name, tensor in moved.items()})
    return tmp_path


def tree_of(models: Path, method: str = "linear", **parameters: Any) -> Tree:
    """mergekit's YAML of a merge of `a` and `b`, each with `parameters`, which include a weight."""
    own = {"weight": 0.5} | parameters
    tree: Tree = {"merge_method": method, "models": [], "dtype": "bfloat16"}
    tree["models"] = [{"model": str(models / name), "parameters": dict(own)} for name in "ab"]
    if method != "linear":
        tree["base_model"] = str(models / "base")
    return tree


def recipe_of(tree: Tree | str, folder: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def the_line(answer: Any) -> str:
    """The one line on standard error that is not progress."""
    assert answer.code == 2, answer.err
    assert answer.out == ""
    *progress, line = answer.err.splitlines()
    assert line.startswith("consilience: ")
    assert not any(other.startswith("consilience: ") for other in progress)
    assert "Traceback" not in answer.err
    return line


@pytest.fixture
def refused(consilience: Consilience, models: Path) -> Callable[..., str]:
    """`refused(tree)` is the line a merge is refused with: in a new folder, and with --force over an earlier merge.

    Neither leaves weights or an index; what was there before stays byte for byte, and so do the inputs.
    """
    earlier = models / "earlier"
    earlier.mkdir()
    for name in (*SHARDS, INDEX, "config.json"):
        shutil.copy(models / "base" / name, earlier / name)

    def run(tree: Tree | str, *words: str) -> str:
        recipe = recipe_of(tree, models)
        inputs = {model: contents(models / model) for model in MODELS if (models / model).is_dir()}
        before = contents(earlier)
        out = models / "new" / "out"
        line = the_line(consilience("merge", recipe, out, *words))
        assert not any(out.glob("*.safetensors"))
        assert not (out / INDEX).exists()
        assert the_line(consilience("merge", recipe, earlier, "--force", *words)) == line.replace(
            str(out), str(earlier)
        )
        now = contents(earlier)
        assert {name: now.get(name) for name in before} == before
        assert {model: contents(models / model) for model in inputs} == inputs
        return line

    return run


def says(line: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in line


def test_these_models_can_be_merged(consilience: Consilience, models: Path) -> None:
    """The tests below break one thing each of a merge that works; a refused one leaves its folder free."""
    out = models / "out"
    tree = tree_of(models, "ties", density=0.5)
    tree["models"][1]["parameters"]["density"] = 7
    the_line(consilience("merge", recipe_of(tree, models), out))
    answer = consilience("merge", recipe_of(tree_of(models, "ties", density=0.5), models), out)
    assert answer.code == 0, answer.err
    assert weights_in(out).keys() == sizes_of().keys()


# -- models that do not fit together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "sce"])
def test_another_shape_is_named_with_both_shapes(refused: Callable[..., str], models: Path, method: str) -> None:
    rewrite(models / "b", lambda weights: weights.update({UP: torch.zeros(48, 16).bfloat16()}))
    tree = tree_of(models, method)
    if method == "sce":
        tree["models"] = [{"model": entry["model"]} for entry in tree["models"]]
    says(refused(tree), UP, "[32, 16]", "[48, 16]", models / "b")


def test_the_same_numbers_in_another_shape(refused: Callable[..., str], models: Path) -> None:
    rewrite(models / "b", lambda weights: weights.update({UP: weights[UP].reshape(16, 32)}))
    says(refused(tree_of(models)), UP, "[32, 16]", "[16, 32]")


def test_another_architecture(refused: Callable[..., str], models: Path) -> None:
    def as_gpt2(weights: Weights) -> None:
        renamed = {name.replace("model.layers", "transformer.h"): tensor for name, tensor in weights.items()}
        weights.clear()
        weights.update(renamed)

    rewrite(models / "b", as_gpt2, model_type="gpt2")
    says(refused(tree_of(models)), "model.layers.0", models / "b")


def test_fewer_layers(refused: Callable[..., str], models: Path) -> None:
    def shallow(weights: Weights) -> None:
        for name in [name for name in weights if ".layers.1." in name]:
            del weights[name]

    rewrite(models / "b", shallow, num_hidden_layers=1)
    says(refused(tree_of(models)), "model.layers.1.", models / "b")


def test_another_vocabulary_without_a_tokenizer_section(refused: Callable[..., str], models: Path) -> None:
    rows = {name: torch.zeros(44, 16).bfloat16() for name in ("model.embed_tokens.weight", HEAD)}
    rewrite(models / "b", lambda weights: weights.update(rows), vocab_size=44)
    says(refused(tree_of(models)), "[40, 16]", "[44, 16]", "tokenizer")


@pytest.mark.parametrize("holders", ["a", "ab", "b"])
def test_a_tensor_of_some_inputs_is_refused_or_copied_never_dropped(
    consilience: Consilience, refused: Callable[..., str], models: Path, holders: str
) -> None:
    scores = {name: torch.randn(3, 16).bfloat16() for name in "ab"}
    for name in holders:
        rewrite(models / name, lambda weights, own=scores[name]: weights.update({"score.weight": own}))  # type: ignore[misc]
    tree = tree_of(models, "task_arithmetic")
    says(refused(tree), "score.weight", models / "base", "--copy-missing")
    out = models / "out"
    answer = consilience("merge", recipe_of(tree, models), out, "--copy-missing")
    assert answer.code == 0, answer.err
    assert torch.equal(weights_in(out)["score.weight"], scores[holders[0]])
    assert "score.weight" in (out / "manifest.json").read_text()


def test_a_tensor_that_no_architecture_knows_is_merged(consilience: Consilience, models: Path) -> None:
    for name in MODELS:
        rewrite(models / name, lambda weights: weights.update({"my.gate": torch.full((4,), 2.0).bfloat16()}))
    out = models / "out"
    assert consilience("merge", recipe_of(tree_of(models), models), out).code == 0
    assert weights_in(out)["my.gate"].tolist() == [2.0] * 4


@pytest.mark.parametrize("tied", MODELS)
def test_an_untied_head_beside_a_tied_one(refused: Callable[..., str], models: Path, tied: str) -> None:
    rewrite(models / tied, lambda weights: weights.pop(HEAD), tie_word_embeddings=True)
    says(refused(tree_of(models, "task_arithmetic")), HEAD, models / tied)


def test_an_untied_head_beside_a_tied_one_on_request(consilience: Consilience, models: Path) -> None:
    rewrite(models / "base", lambda weights: weights.pop(HEAD), tie_word_embeddings=True)
    out = models / "out"
    answer = consilience("merge", recipe_of(tree_of(models, "task_arithmetic"), models), out, "--untie")
    assert answer.code == 0, answer.err
    assert HEAD in weights_in(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp", "ties", "sce", "model_stock", "dare_ties"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_in_an_input(
    refused: Callable[..., str], models: Path, method: str, number: float
) -> None:
    def spoil(weights: Weights) -> None:
        weights[UP][3, 5] = number

    rewrite(models / "b", spoil)
    tree = tree_of(models, method)
    if method in ("slerp", "sce", "model_stock"):
        tree["models"] = [{"model": str(models / name)} for name in ("b" if method == "slerp" else "ab")]
    if method == "model_stock":
        shutil.copytree(models / "a", models / "c")
        tree["models"].append({"model": str(models / "c")})
    if method == "slerp":
        tree["parameters"] = {"t": 0.5}
    says(refused(tree), UP, models / "b", "finite")


def test_a_number_that_is_not_finite_in_the_base(refused: Callable[..., str], models: Path) -> None:
    rewrite(models / "base", lambda weights: weights["model.norm.weight"].fill_(math.nan))
    says(refused(tree_of(models, "ties", density=0.5)), "model.norm.weight", models / "base", "finite")


def test_a_result_beyond_every_type(refused: Callable[..., str], models: Path) -> None:
    says(refused(tree_of(models, "task_arithmetic", weight=1e40)), "tensor", ".weight", "finite")


def test_a_result_beyond_its_type(refused: Callable[..., str], models: Path) -> None:
    tree = tree_of(models, "linear", weight=1e6) | {"dtype": "float16", "parameters": {"normalize": False}}
    says(refused(tree), "tensor", ".weight", "finite")


def test_numbers_of_a_quantised_model(refused: Callable[..., str], models: Path) -> None:
    for number, name in enumerate(MODELS):
        packed = torch.full((32, 8), number, dtype=torch.uint8)
        rewrite(models / name, lambda weights, own=packed: weights.update({UP: own}))  # type: ignore[misc]
    says(refused(tree_of(models)), UP, "U8", "bfloat16")


# -- the recipe --------------------------------------------------------------------------------------------------------


def edited(models: Path, method: str, edit: Callable[[Tree], Any], **parameters: Any) -> Tree:
    tree = tree_of(models, method, **parameters)
    edit(tree)
    return tree


@pytest.mark.parametrize(
    ("method", "parameters", "edit", "expected"),
    [
        ("ties", {}, lambda tree: tree.pop("base_model"), ["base", "ties"]),
        ("sce", {"weight": 1}, lambda tree: tree.pop("base_model"), ["base"]),
        ("linear", {"weight": 0.0}, lambda tree: None, ["weight", "0"]),
        ("ties", {"weight": 0.0}, lambda tree: None, ["weight", "0"]),
        ("linear", {}, lambda tree: tree["models"][1]["parameters"].update(weight=-0.5), ["weight", "0.5", "-0.5"]),
        ("linear", {"weight": math.nan}, lambda tree: None, ["weight", "nan"]),
        ("linear", {"weight": math.inf}, lambda tree: None, ["weight", "inf"]),
        ("linear", {"weight": "half"}, lambda tree: None, ["weight", "half"]),
        ("ties", {"density": 0}, lambda tree: None, ["density", "0"]),
        ("ties", {"density": 50}, lambda tree: None, ["density", "50"]),
        ("ties", {"density": -0.1}, lambda tree: None, ["density", "-0.1"]),
        ("dare_ties", {"density": 1.5}, lambda tree: None, ["density", "1.5"]),
        ("breadcrumbs", {"density": 1.01}, lambda tree: None, ["density", "1.01"]),
        ("della", {"density": 0.1, "epsilon": 0.15}, lambda tree: None, ["density", "epsilon", "0.1"]),
        ("della", {"density": math.nan}, lambda tree: None, ["density", "nan"]),
        ("ties", {"density": [0.5, 2.0]}, lambda tree: None, ["density"]),
        ("tise", {}, lambda tree: None, ["'tise'", "Did you mean 'ties'"]),
        ("dare-ties", {}, lambda tree: None, ["'dare-ties'", "Did you mean 'dare_ties'"]),
        ("ties", {"densty": 0.5}, lambda tree: None, ["densty", "density"]),
        ("ties", {}, lambda tree: tree.update(paramters={"normalize": True}), ["paramters", "parameters"]),
        ("ties", {}, lambda tree: tree.update(parameters={"normalise": True}), ["normalise", "normalize"]),
        ("ties", {}, lambda tree: tree["models"][0].update(parameter={}), ["parameter", "parameters"]),
        ("ties", {}, lambda tree: tree.update(dtype="bfloat"), ["bfloat", "bfloat16"]),
        ("ties", {}, lambda tree: tree.update(dtype="int8"), ["int8", "bfloat16"]),
        ("ties", {}, lambda tree: tree.update(models=[]), ["models"]),
        ("ties", {}, lambda tree: tree.pop("models"), ["models"]),
        ("ties", {}, lambda tree: tree.update(models=None), ["models"]),
        ("ties", {}, lambda tree: tree.update(modules={}), ["modules"]),
        ("linear", {}, lambda tree: tree["models"][0].pop("parameters"), ["weight"]),
        ("model_stock", {}, lambda tree: None, ["weight"]),
        ("linear", {}, lambda tree: tree["models"][1].update(model="/no/such/model"), ["/no/such/model"]),
        ("linear", {}, lambda tree: tree["models"][1].update(model=""), ["model"]),
        ("ties", {}, lambda tree: tree.update(base_model="/no/such/base"), ["/no/such/base"]),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_used(
    refused: Callable[..., str], models: Path, method: str, parameters: Tree, edit: Callable[[Tree], Any], expected: Any
) -> None:
    says(refused(edited(models, method, edit, **parameters)), *expected)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a list\n", "merge_method: [linear\n", "{}\n", "a: b: c\n"])
def test_a_file_that_is_no_recipe(refused: Callable[..., str], models: Path, text: str) -> None:
    says(refused(text), models / "recipe.yaml")


def test_a_recipe_that_is_not_there(consilience: Consilience, tmp_path: Path) -> None:
    line = the_line(consilience("merge", tmp_path / "no.yaml", tmp_path / "out"))
    says(line, tmp_path / "no.yaml")
    assert not (tmp_path / "out").exists()


def test_a_gradient_that_weighs_nothing_in_one_layer(refused: Callable[..., str], models: Path) -> None:
    says(refused(tree_of(models, weight=[1.0, 0.0])), "weight", ".layers.1.")


# -- files -------------------------------------------------------------------------------------------------------------


def cut_off(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:-64])


def cut_in_the_header(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:40])


def emptied(shard: Path) -> None:
    shard.write_bytes(b"")


def with_a_long_header(shard: Path) -> None:
    shard.write_bytes(struct.pack("<Q", 1 << 60) + shard.read_bytes()[8:])


def with_a_header_of_noise(shard: Path) -> None:
    whole = bytearray(shard.read_bytes())
    whole[8:40] = b"\xff" * 32
    shard.write_bytes(whole)


def with_overlapping_tensors(shard: Path) -> None:
    whole = shard.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    names = [name for name in header if name != "__metadata__"]
    same = [name for name in names if header[name]["shape"] == header[names[0]]["shape"]]
    header[same[-1]]["data_offsets"] = header[same[0]]["data_offsets"]
    text = json.dumps(header).encode().ljust(length)
    shard.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def missing(shard: Path) -> None:
    shard.unlink()


@pytest.mark.parametrize(
    "break_",
    [
        cut_off,
        cut_in_the_header,
        emptied,
        with_a_long_header,
        with_a_header_of_noise,
        with_overlapping_tensors,
        missing,
    ],
)
@pytest.mark.parametrize("model", ["base", "b"])
def test_a_broken_shard_is_named(
    refused: Callable[..., str], models: Path, break_: Callable[[Path], None], model: str
) -> None:
    break_(models / model / SHARDS[1])
    says(refused(tree_of(models, "ties", density=0.5)), models / model, SHARDS[1])


def test_an_index_that_names_a_tensor_of_no_shard(refused: Callable[..., str], models: Path) -> None:
    index = json.loads((models / "b" / INDEX).read_text())
    index["weight_map"]["model.layers.2.mlp.up_proj.weight"] = SHARDS[0]
    (models / "b" / INDEX).write_text(json.dumps(index))
    says(refused(tree_of(models)), models / "b" / INDEX, "model.layers.2.mlp.up_proj.weight", SHARDS[0])


def test_a_shard_outside_the_folder(refused: Callable[..., str], models: Path) -> None:
    index = json.loads((models / "b" / INDEX).read_text())
    index["weight_map"] = {name: shard.replace("model-", "../a/model-") for name, shard in index["weight_map"].items()}
    (models / "b" / INDEX).write_text(json.dumps(index))
    says(refused(tree_of(models)), models / "b" / INDEX)


def test_pickled_weights_are_not_opened(refused: Callable[..., str], models: Path) -> None:
    torch.save(weights_in(models / "b"), models / "b" / "pytorch_model.bin")
    for name in (*SHARDS, INDEX):
        (models / "b" / name).unlink()
    says(refused(tree_of(models)), models / "b", "pickle", "--allow-pickle")


def test_a_folder_without_weights_or_configuration(refused: Callable[..., str], models: Path) -> None:
    (models / "b" / "config.json").unlink()
    says(refused(tree_of(models)), models / "b", "config.json")
    shutil.rmtree(models / "b")
    (models / "b").mkdir()
    (models / "b" / "config.json").write_text(json.dumps(CONFIG))
    says(refused(tree_of(models)), models / "b", "weights")
    (models / "b" / "config.json").write_text("{")
    says(refused(tree_of(models)), models / "b" / "config.json")


def test_a_model_that_needs_remote_code(refused: Callable[..., str], models: Path) -> None:
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    rewrite(models / "base", lambda weights: None, model_type="own", auto_map=own)
    says(refused(tree_of(models, "task_arithmetic")), models / "base", "remote code")


# -- where it goes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [(*SHARDS, INDEX), ("model.safetensors",), ("notes.txt",)])
def test_a_folder_that_is_not_empty(consilience: Consilience, models: Path, held: tuple[str, ...]) -> None:
    out = models / "out"
    out.mkdir()
    for name in held:
        (out / name).write_bytes(b"earlier")
    before = contents(out)
    recipe = recipe_of(tree_of(models), models)
    line = the_line(consilience("merge", recipe, out))
    says(line, out, "--force")
    assert contents(out) == before


def test_no_stale_shard_stays_beside_a_forced_merge(consilience: Consilience, models: Path) -> None:
    out = models / "out"
    shutil.copytree(models / "base", out)  # two shards and an index
    stale = {name: (out / name).read_bytes() for name in SHARDS}
    recipe = recipe_of(tree_of(models), models)
    assert consilience("merge", recipe, out, "--force").code == 0
    found = contents(out)
    assert not any(found.get(name) == bytes_ for name, bytes_ in stale.items())
    named = set(json.loads(found[INDEX])["weight_map"].values()) if INDEX in found else {"model.safetensors"}
    assert {name for name in found if name.endswith(".safetensors")} == named
    ours, a, b = weights_in(out), weights_in(models / "a"), weights_in(models / "b")
    assert all(torch.equal(ours[name], ((a[name].double() + b[name].double()) / 2).bfloat16()) for name in ours)


@pytest.mark.parametrize("target", ["base", "a"])
def test_an_input_is_no_place_for_the_result(consilience: Consilience, models: Path, target: str) -> None:
    before = {model: contents(models / model) for model in MODELS}
    recipe = recipe_of(tree_of(models, "task_arithmetic"), models)
    says(the_line(consilience("merge", recipe, models / target, "--force")), models / target)
    assert {model: contents(models / model) for model in MODELS} == before


def test_a_file_in_the_place_of_the_folder(consilience: Consilience, models: Path) -> None:
    out = models / "out"
    out.write_bytes(b"a file")
    says(the_line(consilience("merge", recipe_of(tree_of(models), models), out)), out)
    assert out.read_bytes() == b"a file"


def test_a_disk_that_is_too_small(consilience: Consilience, models: Path) -> None:
    """Two inputs as large as one and a half times the free space, without taking any: holes in sparse files."""
    free = shutil.disk_usage(models).free
    if free > 5e12:
        pytest.skip("sparse files larger than the file system's limit would be needed")
    rows = int(1.5 * free) // 32
    header = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": [rows, 16], "data_offsets": [0, 32 * rows]}}
    text = json.dumps(header).encode()
    for model in "ab":
        for name in (*SHARDS, INDEX):
            (models / model / name).unlink()
        with (models / model / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + 32 * rows)
    out = models / "out"
    line = the_line(consilience("merge", recipe_of(tree_of(models), models), out))
    says(line, out, "GB")
    assert not any(out.rglob("*")) if out.exists() else True
