"""One vocabulary of several: which row goes where, by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from consilience.errors import BackendError, ConfigError
from consilience.merge.plan import MergePlan, Rows
from consilience.merge.read import read_recipe
from consilience.merge.resolve import plan_merge

EMBEDDINGS = "model.embed_tokens.weight"


def write(folder: Path, tokens: str, rows: int | None = None, added: str = "", **config: Any) -> None:
    """A model whose vocabulary is the words of `tokens`, then the added ones of `added`, with `rows` rows."""
    words, extra = tokens.split(), added.split()
    count = rows or len(words) + len(extra)
    folder.mkdir()
    matrix = torch.arange(2.0 * count).reshape(count, 2)
    save_file({EMBEDDINGS: matrix, "model.norm.weight": torch.ones(2)}, folder / "model.safetensors")
    settings = {"model_type": "llama", "num_hidden_layers": 0, "vocab_size": count, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(settings | config))
    entries = [{"id": len(words) + place, "content": word, "special": True} for place, word in enumerate(extra)]
    vocabulary = {word: place for place, word in enumerate(words)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "added_tokens": entries}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def planned(folder: Path, tokenizer: Any, *models: str, base: str | None = None, **keys: Any) -> MergePlan:
    tree = {"method": "task_arithmetic" if base else "linear", "models": {name: name for name in models}}
    tree |= {"tokenizer": tokenizer} | keys | ({"base": base} if base else {})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return plan_merge(read_recipe(path)).plan


def embeddings(plan: MergePlan) -> dict[str, Rows]:
    (tensor,) = (tensor for tensor in plan.tensors if tensor.name == EMBEDDINGS)
    return {rows.model: rows for rows in (*tensor.models, *([tensor.base] if tensor.base else []))}


def origins(rows: Rows) -> list[str]:
    """Row by row, `model:row` of every part that has it."""
    found: list[list[str]] = [[] for _ in range(rows.shape[0])]
    for part in rows.parts:
        places = np.arange(rows.shape[0]) if part.rows is None else part.rows
        for place, row in enumerate(places):
            if row >= 0:
                found[place].append(f"{part.tensor.file.parent.name}{row}")
    return ["+".join(sorted(row)) or "0" for row in found]


def tokens_of(plan: MergePlan) -> dict[str, int]:
    content = plan.files["tokenizer.json"]
    found = json.loads(content if isinstance(content, bytes) else content.read_text())
    return found["model"]["vocab"] | {entry["content"]: entry["id"] for entry in found["added_tokens"]}


def config_of(plan: MergePlan) -> Mapping[str, Any]:
    content = plan.files["config.json"]
    assert isinstance(content, bytes)
    return dict(json.loads(content))


def test_the_union_without_a_base(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y")
    write(tmp_path / "b", "y z w")
    write(tmp_path / "c", "w x")
    plan = planned(tmp_path, "union", "a", "b", "c")
    assert tokens_of(plan) == {"x": 0, "y": 1, "z": 2, "w": 3}
    rows = embeddings(plan)
    assert origins(rows["a"]) == ["a0", "a1", "b1", "b2+c0"]  # w: the mean of the two models that have it
    assert origins(rows["b"]) == ["a0+c1", "b0", "b1", "b2"]
    assert origins(rows["c"]) == ["c1", "a1+b0", "b1", "c0"]
    assert config_of(plan)["vocab_size"] == 4


def test_a_token_of_the_base_is_the_bases_row(tmp_path: Path) -> None:
    write(tmp_path / "base", "x y")
    write(tmp_path / "a", "y x z")
    write(tmp_path / "b", "x")
    rows = embeddings(planned(tmp_path, "base", "a", "b", base="base"))
    assert origins(rows["a"]) == ["a1", "a0"]  # z is not in the result
    assert origins(rows["b"]) == ["b0", "base1"]
    assert rows["base"].plain is not None  # nothing moves: read as it is stored


def test_a_model_s_vocabulary_takes_token_ids_along(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y end", eos_token_id=2, bos_token_id=0)
    write(tmp_path / "b", "end x q", eos_token_id=0)
    (tmp_path / "a" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    plan = planned(tmp_path, "b", "a", "b")
    assert config_of(plan)["eos_token_id"] == 0  # the donor's `end`
    assert config_of(plan)["bos_token_id"] == 1  # the donor's `x`
    generation = plan.files["generation_config.json"]
    assert isinstance(generation, bytes)
    assert json.loads(generation)["eos_token_id"] == [0, None]  # `y` is in no row of the result
    assert origins(embeddings(plan)["a"]) == ["a2", "a0", "b2"]


def test_padded_rows_stay_and_new_tokens_take_them_first(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y", rows=5)
    write(tmp_path / "b", "x y z", rows=4)
    plan = planned(tmp_path, "union", "a", "b")
    assert tokens_of(plan)["z"] == 2
    rows = embeddings(plan)
    assert rows["a"].shape == (5, 2)
    assert origins(rows["a"]) == ["a0", "a1", "b2", "a3", "a4"]
    assert origins(rows["b"]) == ["b0", "b1", "b2", "b3", "a4"]
    padded = planned(tmp_path, {"source": "union", "pad_to_multiple_of": 4}, "a", "b")
    assert origins(embeddings(padded)["b"])[5:] == ["0", "0", "0"]
    assert config_of(padded)["vocab_size"] == 8


def test_a_token_past_the_matrix_has_no_row(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y", added="<tool>", rows=2)
    write(tmp_path / "b", "x y", added="<tool>")
    rows = embeddings(planned(tmp_path, "base", "a", "b"))
    assert origins(rows["a"]) == ["a0", "a1", "b2"]


def test_single_tokens_on_request(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y")
    write(tmp_path / "b", "x y end")
    tokens = {
        "y": {"model": "b", "force": True},
        "<new>": {"model": "b", "token": "end"},
        "<id>": {"model": "a", "token_id": 1},
        "<zero>": {"zero": True},
        "x": {"model": "b"},  # both have it: without force nothing changes
    }
    plan = planned(tmp_path, {"source": "base", "tokens": tokens}, "a", "b", donor="a")
    place = tokens_of(plan)
    for model, own in (("a", "a0"), ("b", "b0")):
        found = origins(embeddings(plan)[model])
        assert {token: found[place[token]] for token in tokens} == {
            "y": "b1", "<new>": "b2", "<id>": "a1", "<zero>": "0", "x": own,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ({"<n>": {"model": "b", "token": "nd"}}, "b has no token 'nd'"),
        ({"<n>": {"model": "b", "token_id": 9}}, "token_id 9; b has 3 rows"),
    ],
)
def test_a_token_that_is_not_there(tmp_path: Path, tokens: Any, says: str) -> None:
    write(tmp_path / "a", "x y")
    write(tmp_path / "b", "x y end")
    with pytest.raises(ConfigError, match=says):
        planned(tmp_path, {"source": "base", "tokens": tokens}, "a", "b")


def test_a_model_without_a_tokenizer_file(tmp_path: Path) -> None:
    write(tmp_path / "a", "x y")
    write(tmp_path / "b", "x y")
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(BackendError, match=r"b has no tokenizer\.json"):
        planned(tmp_path, "base", "a", "b")


# -- chat templates ----------------------------------------------------------------------------------------------------


def with_template(folder: Path, template: str, end: str) -> None:
    settings = {"chat_template": template, "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def template_of(plan: MergePlan) -> str:
    content, settings = plan.files["chat_template.jinja"], plan.files["tokenizer_config.json"]
    assert isinstance(content, bytes)
    assert isinstance(settings, bytes)
    assert json.loads(settings)["chat_template"] == content.decode()  # whichever a reader prefers
    return content.decode()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name, template, end in (
        ("a", "{{ A }}", "</s>"),
        ("b", "{{ B }}", "<|im_end|>"),
        ("c", "{{ B }}", "<|im_end|>"),
    ):
        write(tmp_path / name, "x y")
        with_template(tmp_path / name, template, end)
    return tmp_path


def test_the_template_of_most_models_and_what_its_replies_end_with(three: Path) -> None:
    plan = planned(three, None, "a", "b", "c", chat_template="auto")
    assert template_of(plan) == "{{ B }}"
    assert any("2 of 3 templates" in note for note in plan.recipe["notes"])
    assert any("'<|im_end|>'" in note and "'</s>'" in note for note in plan.recipe["notes"])


def test_equally_frequent_templates_are_the_donors(three: Path) -> None:
    for donor, expected in (("a", "{{ A }}"), ("b", "{{ B }}")):
        assert template_of(planned(three, None, "a", "b", chat_template="auto", donor=donor)) == expected


def test_a_models_a_named_and_an_own_template(three: Path) -> None:
    assert template_of(planned(three, None, "a", "b", chat_template="b")) == "{{ B }}"
    assert "<|im_start|>" in template_of(planned(three, None, "a", "b", chat_template="chatml"))
    assert template_of(planned(three, None, "a", "b", chat_template="{{ own }}")) == "{{ own }}"
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        planned(three, None, "a", "b", chat_template="chatlm")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"),
        (
            "llama3",
            "<bos><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
            "U<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "<bos> [INST] S\n\nU [/INST]"),
        ("alpaca", "S\n\n### Instruction:\nU\n\n### Response:\n"),
        ("exaone", "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]"),
    ],
)
def test_the_named_formats(name: str, expected: str) -> None:
    """The formats as their models document them."""
    from jinja2 import Environment

    from consilience.merge.templates import NAMED

    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    rendered = Environment(keep_trailing_newline=True).from_string(NAMED[name]).render(
        messages=messages, add_generation_prompt=True, bos_token="<bos>", eos_token="<eos>"
    )  # fmt: skip
    assert rendered == expected
