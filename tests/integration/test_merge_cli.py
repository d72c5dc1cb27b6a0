"""`consilience merge` from a recipe to a model that answers. Expected: by hand, from peft, or a property."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

RECIPES = Path(__file__).parents[2] / "recipes" / "merge"
EMBEDDINGS = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"

Consilience = Callable[..., Any]
Weights = dict[str, Tensor]


def weights_of(folder: Path) -> Weights:
    return {name: tensor for file in folder.glob("model*.safetensors") for name, tensor in load_file(file).items()}


def answer_of(folder: Path) -> str:
    """What the model at `folder` says, loaded by transformers with no code of ours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "The river"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**ids, max_new_tokens=4, do_sample=False)
    return str(tokenizer.decode(reply[0]))


@pytest.fixture(scope="module")
def family(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base` and its fine-tunes `code` and `math`: a small Llama with a tokenizer, a template and a tied head."""
    folder = tmp_path_factory.mktemp("family")
    random = torch.Generator().manual_seed(0)
    shutil.copytree(world / "pivot", folder / "base")
    base = weights_of(folder / "base")
    for name in ("code", "math"):
        shutil.copytree(world / "pivot", folder / name)
        tuned = {key: tensor + 0.05 * torch.randn(tensor.shape, generator=random) for key, tensor in base.items()}
        save_file(tuned, folder / name / "model.safetensors", metadata={"format": "pt"})
    return folder


def write(folder: Path, tree: Mapping[str, Any], name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    return path


def soup(family: Path, **keys: Any) -> dict[str, Any]:
    """mergekit's YAML of the mean of the two fine-tunes."""
    models = [{"model": str(family / name), "parameters": {"weight": 0.5}} for name in ("code", "math")]
    return {"models": models, "merge_method": "linear", "dtype": "float32"} | keys


def test_mergekits_yaml_gives_a_model_that_answers(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, soup(family)), out, "--json")
    assert result.code == 0, result.err
    assert result.json["out"] == str(out)
    code, math, merged = (weights_of(folder) for folder in (family / "code", family / "math", out))
    assert merged.keys() == code.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, (code[name] + math[name]) / 2, rtol=0, atol=1e-6)
    assert answer_of(out)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (out / name).read_bytes() == (family / "code" / name).read_bytes()
    card = (out / "README.md").read_text()
    assert "merge_method: linear" in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])  # a folder's name would link to a stranger
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["yaml"] == (tmp_path / "recipe.yaml").read_text()


def test_a_merge_needs_neither_torch_nor_transformers(family: Path, tmp_path: Path) -> None:
    tree = soup(family, merge_method="ties", base_model=str(family / "base"), tokenizer_source="union")
    words = ["consilience", "merge", str(write(tmp_path, tree)), str(tmp_path / "out"), "--inspect"]
    code = (
        f"import sys; sys.argv = {words!r}\n"
        "from consilience.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=environment)


def test_our_own_recipe_with_rules(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    recipe = {
        "method": "task_arithmetic",
        "base": str(family / "base"),
        "models": {
            "code": str(family / "code"),
            "math": {"model": str(family / "math"), "parameters": {"weight": 0.25}},
        },
        "parameters": {"weight": {"code": [0.0, 1.0]}},
        "rules": [
            {"tensors": r"embed_tokens", "copy": "math"},
            {"tensors": r"mlp\.", "layers": [1, 2], "parameters": {"weight": {"math": 0.0}}},
            {"tensors": r"norm", "method": "linear", "parameters": {"weight": 1}},
        ],
    }
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out)
    assert result.code == 0, result.err
    base, code, math, merged = (weights_of(folder) for folder in (*(family / n for n in ("base", "code", "math")), out))
    assert torch.equal(merged[EMBEDDINGS], math[EMBEDDINGS])
    torch.testing.assert_close(merged[UP], code[UP], rtol=0, atol=1e-6)  # last layer: code 1, math 0
    torch.testing.assert_close(
        merged[QUERY], base[QUERY] + 0.25 * (math[QUERY] - base[QUERY]), rtol=0, atol=1e-6
    )  # first layer: code 0, math 0.25
    norm = "model.norm.weight"
    torch.testing.assert_close(merged[norm], (code[norm] + math[norm]) / 2, rtol=0, atol=1e-6)
    assert answer_of(out)


def test_a_dry_run_says_what_it_would_do_and_does_nothing(
    consilience: Consilience, family: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, soup(family)), out, "--dry-run", "--json")
    sizes = [(family / name / "model.safetensors").stat().st_size for name in ("code", "math")]
    weights = sum(tensor.nbytes for tensor in weights_of(family / "code").values())
    assert result.json["bytes_in"] == 2 * weights < sum(sizes)
    assert result.json["bytes_out"] == weights
    assert result.json["methods"] == {"linear": len(weights_of(family / "code"))}
    assert not out.exists()
    shown = consilience("merge", tmp_path / "recipe.yaml", out, "--dry-run")
    assert "writes" in shown.out
    assert not out.exists()


def test_several_merges_in_one_pass_are_those_made_alone(
    consilience: Consilience, family: Path, tmp_path: Path
) -> None:
    def masked(method: str, **parameters: Any) -> dict[str, Any]:
        return soup(family, merge_method=method, base_model=str(family / "base"), parameters=parameters)

    trees = {
        "half": soup(family),
        "ties": masked("ties", density=0.3),
        "ties again": masked("ties", density=0.7),
        "dare": masked("dare_linear", density=0.5),
        "dare again": masked("dare_ties", density=0.2, rescale=False),
        "della": masked("della", density=0.5),
        "della again": masked("della_linear", density=0.7, epsilon=0.1),
        "breadcrumbs": masked("breadcrumbs", density=0.5),
        "sce": masked("sce", select_topk=0.1),
        "sce again": masked("sce", select_topk=0.5),
    }
    for name in ("sce", "sce again"):
        trees[name]["models"] = [{"model": model["model"]} for model in trees[name]["models"]]
    paths = [write(tmp_path, tree, f"{name}.yml") for name, tree in trees.items()]
    result = consilience("merge", "--compare", *paths, tmp_path / "all", "--json")
    assert result.code == 0, result.err
    assert [Path(merge["out"]).name for merge in result.json["merges"]] == list(trees)
    for name, path in zip(trees, paths):
        assert consilience("merge", path, tmp_path / name).code == 0
        alone, together = tmp_path / name / "model.safetensors", tmp_path / "all" / name / "model.safetensors"
        assert alone.read_bytes() == together.read_bytes()


@pytest.mark.parametrize("method", ["slerp", "ties", "della"])
def test_another_device_than_the_cpu(consilience: Consilience, family: Path, tmp_path: Path, method: str) -> None:
    """torch's own name for the cpu takes the way of a GPU."""
    tree = soup(family, merge_method=method, base_model=str(family / "base"), dtype="bfloat16")
    if method == "slerp":
        tree |= {"models": [{"model": str(family / "code")}], "parameters": {"t": 0.3}}
    recipe = write(tmp_path, tree)
    assert consilience("merge", recipe, tmp_path / "cpu").code == 0
    result = consilience("merge", recipe, tmp_path / "torch", "--device", "cpu:0", "--json")
    assert result.code == 0, result.err
    expected, merged = weights_of(tmp_path / "cpu"), weights_of(tmp_path / "torch")
    apart = sum(int((merged[name] != tensor).sum()) for name, tensor in expected.items())
    assert apart <= 1e-3 * sum(tensor.numel() for tensor in expected.values())
    for name, record in json.loads((tmp_path / "cpu" / "manifest.json").read_text())["tensors"].items():
        again = json.loads((tmp_path / "torch" / "manifest.json").read_text())["tensors"][name]
        assert again["delta_norms"] == pytest.approx(record["delta_norms"], rel=1e-6)


def test_a_device_that_is_not_there(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    result = consilience("merge", write(tmp_path, soup(family)), tmp_path / "out", "--device", "cuda:99")
    assert result.code == 2
    assert "cuda:99" in result.err
    assert not (tmp_path / "out").exists()


def test_how_far_each_model_moved(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    tree = soup(family, merge_method="task_arithmetic", base_model=str(family / "base"))
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, tree), out, "--inspect", "--json")
    assert result.code == 0, result.err
    shown = result.json["inspect"]
    base, code, math, merged = (weights_of(folder) for folder in (*(family / n for n in ("base", "code", "math")), out))
    changes = [
        torch.cat([(other[name] - base[name]).double().flatten() for name in base]) for other in (code, math, merged)
    ]
    everything = shown["groups"]["all"]
    for label, change in zip(shown["models"], changes):
        assert everything["norms"][label] == pytest.approx(change.norm().item(), rel=1e-5)
    expected = torch.nn.functional.cosine_similarity(changes[0], changes[2], dim=0).item()
    assert everything["cosine"][shown["models"][0]] == pytest.approx(expected, abs=1e-5)
    again = consilience("merge", "--inspect", out, "--json")
    assert again.json["inspect"] == shown
    assert "cosine between changes" in consilience("merge", "--inspect", out).out


def test_layers_are_stacked(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    slices = [("code", [0, 2]), ("math", [0, 1]), ("code", [1, 2])]
    sources = [{"sources": [{"model": str(family / name), "layer_range": layers}]} for name, layers in slices]
    recipe = {"slices": sources, "merge_method": "passthrough", "dtype": "float32"}
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out)
    assert result.code == 0, result.err
    code, math, merged = (weights_of(folder) for folder in (family / "code", family / "math", out))
    origins = [(code, 0), (code, 1), (math, 0), (code, 1)]
    for layer, (origin, number) in enumerate(origins):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.equal(merged[name], origin[f"model.layers.{number}.mlp.up_proj.weight"])
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 4
    assert answer_of(out)


@pytest.fixture(scope="module")
def adapter(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA on `code`, as peft saves it, and beside it the model that peft makes of the two."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "up_proj"], alpha_pattern={"up_proj": 2}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(family / "code"), config)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(folder / "lora")
    model.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def test_an_adapter_is_merged_as_it_is_read(
    consilience: Consilience, family: Path, adapter: Path, tmp_path: Path
) -> None:
    recipe = {"models": [{"model": f"{family / 'code'}+{adapter / 'lora'}"}], "merge_method": "passthrough"}
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out)
    assert result.code == 0, result.err
    expected = weights_of(adapter / "merged")
    for name, tensor in weights_of(out).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights_of(out)[UP], weights_of(family / "code")[UP])


def test_the_change_comes_out_as_an_adapter(
    consilience: Consilience, family: Path, adapter: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    recipe = {
        "models": [{"model": str(adapter / "merged"), "parameters": {"weight": 1}}],
        "merge_method": "task_arithmetic",
        "base_model": str(family / "code"),
    }
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out, "--extract-lora", "4", "--json")
    assert result.code == 0, result.err
    assert result.json["lora"]["kept"] == pytest.approx(1, abs=1e-6)  # the change has rank 4
    base = AutoModelForCausalLM.from_pretrained(family / "code")
    merged = PeftModel.from_pretrained(base, out / "lora").merge_and_unload().state_dict()
    for name, tensor in weights_of(adapter / "merged").items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-5)


def with_tokens(family: Path, name: str, folder: Path, tokens: list[str]) -> Path:
    """The model `name` with further tokens, rows of ones times 1, 2, ... for them."""
    from transformers import AutoTokenizer

    shutil.copytree(family / name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(tokens)
    tokenizer.save_pretrained(folder)
    weights = weights_of(folder)
    rows = torch.arange(1.0, len(tokens) + 1)[:, None].expand(-1, weights[EMBEDDINGS].shape[1])
    weights[EMBEDDINGS] = torch.cat([weights[EMBEDDINGS], rows])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": len(weights[EMBEDDINGS])}))
    return folder


def test_the_union_of_two_vocabularies(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    """`left` adds <a> (row 1) and <b> (row 2), `right` adds <b> (row 1) and <c> (row 2)."""
    from transformers import AutoTokenizer

    left = with_tokens(family, "code", tmp_path / "left", ["<a>", "<b>"])
    right = with_tokens(family, "math", tmp_path / "right", ["<b>", "<c>"])
    models = [
        {"model": str(folder), "parameters": {"weight": weight}} for folder, weight in ((left, 0.75), (right, 0.25))
    ]
    recipe = {"models": models, "merge_method": "linear", "tokenizer": {"source": "union"}, "dtype": "float32"}
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out)
    assert result.code == 0, result.err
    tokenizer = AutoTokenizer.from_pretrained(out)
    rows = weights_of(out)[EMBEDDINGS]
    assert len(tokenizer) == len(rows) == json.loads((out / "config.json").read_text())["vocab_size"]
    found = {token: rows[tokenizer.convert_tokens_to_ids(token), 0].item() for token in ("<a>", "<b>", "<c>")}
    # <a>: only left has it, so right gets left's row; <b>: 0.75 * 2 + 0.25 * 1; <c>: right's row
    assert found == pytest.approx({"<a>": 1.0, "<b>": 1.75, "<c>": 2.0})
    old = len(weights_of(family / "code")[EMBEDDINGS])
    expected = 0.75 * weights_of(left)[EMBEDDINGS][:old] + 0.25 * weights_of(right)[EMBEDDINGS][:old]
    torch.testing.assert_close(rows[:old], expected, rtol=0, atol=1e-6)
    assert answer_of(out)


def test_padded_rows_stay(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    """Matrices longer than the tokenizer: mergekit cuts them to the tokenizer's length."""
    padded = [with_tokens(family, name, tmp_path / name, ["<x>"] * 1) for name in ("code", "math")]
    for folder in padded:  # the rows stay, the token goes
        shutil.copy(family / "code" / "tokenizer.json", folder / "tokenizer.json")
        shutil.copy(family / "code" / "tokenizer_config.json", folder / "tokenizer_config.json")
    models = [{"model": str(folder), "parameters": {"weight": 0.5}} for folder in padded]
    recipe = {"models": models, "merge_method": "linear", "tokenizer_source": "union", "dtype": "float32"}
    out = tmp_path / "out"
    result = consilience("merge", write(tmp_path, recipe), out)
    assert result.code == 0, result.err
    rows = weights_of(out)[EMBEDDINGS]
    assert len(rows) == len(weights_of(padded[0])[EMBEDDINGS])
    assert rows[-1].tolist() == [1.0] * rows.shape[1]


def test_pickled_weights_are_read_when_asked_for(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(family / "code", pickled)
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    recipe = write(tmp_path, {"models": [{"model": str(pickled)}], "merge_method": "passthrough"})
    refused = consilience("merge", recipe, tmp_path / "out")
    assert refused.code == 2
    assert "--allow-pickle" in refused.err
    assert consilience("merge", recipe, tmp_path / "out", "--allow-pickle").code == 0
    expected = weights_of(family / "code")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights_of(tmp_path / "out").items())


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.y*ml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_run_on_small_models(
    consilience: Consilience, family: Path, tmp_path: Path, path: Path
) -> None:
    """The recipe as it is shipped, its hub names found as folders beside it."""
    from consilience.merge.read import read_recipe

    recipe = read_recipe(path)
    layers = {end for slice_ in recipe.slices for source in slice_.sources for _, end in [source.layers or (0, 2)]}
    for number, ref in enumerate(recipe.models):
        _deepen(family / ("base", "code", "math")[number % 3], tmp_path / ref.path, max(layers))
    shutil.copy(path, tmp_path / path.name)
    out = tmp_path / "out"
    result = consilience("merge", tmp_path / path.name, out)
    assert result.code == 0, result.err
    expected = {"bfloat16": torch.bfloat16, "float16": torch.float16}[recipe.dtype or ""]
    assert {tensor.dtype for tensor in weights_of(out).values()} == {expected}
    assert json.loads((out / "config.json").read_text()).get("dtype") == recipe.dtype


def _deepen(model: Path, copy: Path, layers: int) -> None:
    """`model` with `layers` layers, its own two over and over."""
    shutil.copytree(model, copy)
    weights = weights_of(model)
    deep = {name: tensor for name, tensor in weights.items() if ".layers." not in name}
    for layer in range(layers):
        for name, tensor in weights.items():
            if f".layers.{layer % 2}." in name:
                deep[name.replace(f".layers.{layer % 2}.", f".layers.{layer}.")] = tensor.clone()
    save_file(deep, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((model / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))


def test_an_adapter_with_tokens_of_its_own(consilience: Consilience, family: Path, tmp_path: Path) -> None:
    """peft saves resized embeddings whole: the result is as long as they are, and says so."""
    from transformers import AutoTokenizer

    weights = weights_of(family / "code")[EMBEDDINGS]
    longer = torch.cat([weights, torch.ones(2, weights.shape[1])])
    lora = tmp_path / "lora"
    tokenizer = AutoTokenizer.from_pretrained(family / "code")
    tokenizer.add_tokens(["<a>", "<b>"])
    tokenizer.save_pretrained(lora)
    settings = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": []}
    (lora / "adapter_config.json").write_text(json.dumps(settings))
    save_file({f"base_model.model.{EMBEDDINGS}": longer}, lora / "adapter_model.safetensors")
    recipe = {"method": "passthrough", "models": {"tuned": {"model": str(family / "code"), "adapter": str(lora)}}}
    out = tmp_path / "out"
    assert consilience("merge", write(tmp_path, recipe), out).code == 0
    assert torch.equal(weights_of(out)[EMBEDDINGS], longer)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == len(longer)
    assert "<b>" in AutoTokenizer.from_pretrained(out).get_vocab()
    assert answer_of(out)
