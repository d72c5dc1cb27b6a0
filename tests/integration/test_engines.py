"""`engine: vllm` in the recipes and commands, before a stand-in that has vLLM's interface: the same as transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

Command = Callable[..., Any]
Json = dict[str, Any]
QUESTIONS = ("Tell me of the river.", "Stars?", "Maps?")


def rows_of(path: Path) -> list[Json]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, tree: Json) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def pair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`pair(name)`: that model with other weights, and as it is."""
    from safetensors.torch import load_file, save_file

    def make(name: str) -> str:
        tuned = tmp_path_factory.mktemp("pair") / "tuned"
        shutil.copytree(world / name, tuned)
        weights = load_file(tuned / "model.safetensors")
        save_file({key: w * 1.1 for key, w in weights.items()}, tuned / "model.safetensors", {"format": "pt"})
        return f"{tuned}:{world / name}"

    return make


@pytest.mark.usefixtures("vllm_stand_in")
@pytest.mark.parametrize("guide", ["wren", "finch"])  # another tokenizer than the large model's, and its own
def test_a_greedy_search_finds_the_same(
    world: Path, pair: Callable[[str], str], tmp_path: Path, consilience: Command, guide: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    words = ["search", "--model", world / "finch", "--guide", pair(guide), "--prompts", prompts, "--temperature", 0]
    words += ["--width", 2, "--successors", 2, "--chunk", 3, "--max-new-tokens", 12, "--stop", "ou"]
    ours = consilience(*words, "--out", tmp_path / "ours.jsonl")
    theirs = consilience(*words, "--out", tmp_path / "theirs.jsonl", "--engine", "vllm")
    assert (ours.code, theirs.code) == (0, 0), theirs.err
    for one, other in zip(rows_of(tmp_path / "ours.jsonl"), rows_of(tmp_path / "theirs.jsonl"), strict=True):
        assert other.pop("score") == pytest.approx(one.pop("score"), abs=2e-4)
        assert other.pop("others") is not None
        one.pop("others")
        assert one == other


def test_a_drawn_search_is_the_same_whatever_is_beside_it(
    world: Path, pair: Callable[[str], str], tmp_path: Path, consilience: Command, vllm_stand_in: Any
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in QUESTIONS))
    words = ["search", "--model", world / "finch", "--guide", pair("wren"), "--prompts", prompts, "--temperature", 1.5]
    words += ["--width", 2, "--successors", 3, "--chunk", 4, "--max-new-tokens", 12, "--engine", "vllm", "--json"]
    one = consilience(*words, "--out", tmp_path / "one.jsonl", "--batch", 1)
    assert one.code == 0, one.err
    assert {params.n for params in vllm_stand_in.LLM.requests} == {6, 3}  # W·K of a prompt; K of a beginning
    together = consilience(*words, "--out", tmp_path / "all.jsonl", "--batch", 3)
    assert together.code == 0, together.err
    assert rows_of(tmp_path / "one.jsonl") == rows_of(tmp_path / "all.jsonl")
    again = consilience(*words, "--out", tmp_path / "one.jsonl", "--engine-option", "gpu_memory_utilization=0.5")
    assert again.json["searched"] == 0  # another pace is the same search
    other = consilience(*words, "--out", tmp_path / "one.jsonl", "--engine-option", "max_model_len=64")
    assert (other.code, "engine_options.max_model_len was None, now 64" in other.err) == (2, True)
    beam = consilience(*words, "--out", tmp_path / "beam.jsonl", "--method", "beam")
    assert (beam.code, "With --engine vllm there are: cbs, best-of-n, sample" in beam.err) == (2, True)


def test_annotations_are_the_same(world: Path, tmp_path: Path, consilience: Command, vllm_stand_in: Any) -> None:
    rows = "".join(f"t{i},{QUESTIONS[i % 3]} {i},{'ab'[i % 2]}\n" for i in range(12))
    book = {"variable": "kind", "question": "Which?", "labels": [{"name": n, "definition": n} for n in "ab"]}
    strategies: Json = {
        "zero_shot": {},
        "letters": {"kind": "zero_shot", "answer": "letters", "orders": 2},
        "drawn": {"kind": "zero_shot", "answer": "constrained", "samples": 3, "temperature": 1.0},
    }
    found = {}
    for engine in ("transformers", "vllm"):
        project = tmp_path / engine
        project.mkdir()
        (project / "texts.csv").write_text(f"key,text,human\n{rows}")
        written(project / "codebook.yaml", book)
        tree = {"data": {"path": "texts.csv", "id": "key"}, "gold": {"column": "human"}, "dev": {"items": 6}}
        models = {"small": {"path": str(world / "finch"), "engine": engine}}
        mine = {name: strategy for name, strategy in strategies.items() if engine == "vllm" or name != "drawn"}
        written(project / "recipe.yaml", tree | {"models": models, "strategies": mine})
        chosen = [f"small.{name}" for name in mine]
        words = [word for name in chosen for word in ("--choose", name)]
        for command in (["dev"], ["freeze", *words], ["run"]):
            answer = consilience("annotate", command[0], project, *command[1:])
            assert answer.code == 0, answer.err
        found[engine] = {name: rows_of(project / "labels" / f"{name}.jsonl") for name in chosen}
        about = json.loads((project / "labels" / "small.zero_shot.json").read_text())["engine"]
        assert about["engine"] == f"{engine}, in this process"
        assert about["architecture"] == "Qwen2ForCausalLM"
    for name in ("small.zero_shot", "small.letters"):
        for one, other in zip(found["transformers"][name], found["vllm"][name], strict=True):
            assert other["status"] == one["status"] == "ok"
            assert other["logprobs"] == pytest.approx(one["logprobs"], abs=1e-3)
    drawn = found["vllm"]["small.drawn"]
    assert {row["status"] for row in drawn} == {"ok"}
    assert {text for row in drawn for text in row["raw"]} == {'{"label": "a"}', '{"label": "b"}'}
    assert any(params.structured_outputs for params in vllm_stand_in.LLM.requests)


@pytest.mark.usefixtures("vllm_stand_in")
def test_evaluations_are_the_same(world: Path, tmp_path: Path, consilience: Command) -> None:
    questions = [{"id": f"q{i}", "prompt": text, "answer": "a"} for i, text in enumerate(QUESTIONS)]
    choices = [
        {"id": f"c{i}", "prompt": text, "choices": ["sea", "sky"], "answer": 0} for i, text in enumerate(QUESTIONS)
    ]
    for name, rows in (("say", questions), ("pick", choices)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: Json = {
        "models": {
            "ours": str(world / "wren"),
            "theirs": {"path": str(world / "wren"), "engine": "vllm", "engine_options": {"max_model_len": 128}},
        },
        "tasks": {
            "say": {"kind": "checked", "path": "say.jsonl", "match": "contains", "sampling": {"max_new_tokens": 6}},
            "pick": {"kind": "choice", "path": "pick.jsonl"},
        },
    }
    answer = consilience("evaluate", written(tmp_path / "recipe.yaml", tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    said, likely = (
        [rows_of(tmp_path / "run" / "answers" / task / model / file) for model in ("ours", "theirs")]
        for task, file in (("say", "records.jsonl"), ("pick", "likelihoods.jsonl"))
    )
    assert [row["reply"] for row in said[0]] == [row["reply"] for row in said[1]]
    for one, other in zip(*likely, strict=True):
        assert other["nats"] == pytest.approx(one["nats"], abs=1e-3)


@pytest.mark.usefixtures("vllm_stand_in")
def test_a_fusion_reads_its_models_with_vllm(recipe: Callable[..., Path], tmp_path: Path, consilience: Command) -> None:
    tree = {"top_k": 5, "shard_conversations": 8, "engine": "vllm", "engine_options": {"enforce_eager": True}}
    controls = {"targets": {"controls": ["sft", "seqkd"], "max_new_tokens": 8}, "merges": {}}
    runs = []
    for name, represent in (("theirs", tree), ("ours", {"top_k": 5, "shard_conversations": 8})):
        answer = consilience("fuse", recipe(represent=represent, **controls), "--out", tmp_path / name, "--json")
        assert answer.code == 0, answer.err
        runs.append(answer.json)
    for model, estimates in runs[0]["models"].items():
        assert estimates["nll"]["value"] == pytest.approx(runs[1]["models"][model]["nll"]["value"], abs=1e-3)
    told = [consilience("fuse", recipe(represent={**tree, **bad}), "--out", tmp_path / "no") for bad in (
        {"engine_options": {"gpu_memory_utilisation": 0.5}}, {"spread": True},
    )]  # fmt: skip
    assert [answer.code for answer in told] == [2, 2]
    assert "Did you mean 'gpu_memory_utilization'" in told[0].err
    assert "tensor_parallel_size" in told[1].err


def test_without_vllm_nothing_is_begun(recipe: Callable[..., Path], tmp_path: Path, consilience: Command) -> None:
    answer = consilience("fuse", recipe(represent={"engine": "vllm"}), "--out", tmp_path / "run")
    assert (answer.code, "pip install vllm" in answer.err) == (2, True)
    assert not [*(tmp_path / "run").glob("represent/*")]


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_policy_writes_the_same_with_vllm(world: Path, tmp_path: Path, lora: Json | None, vllm_stand_in: Any) -> None:
    from peft import LoraConfig, get_peft_model

    from consilience.models import EngineSettings, Prompt, Sampling, load_model
    from consilience.prefer.policy import Load, Policy
    from consilience.records import Message
    from consilience.train import TrainSettings

    model = load_model(world / "finch")
    policy = Policy(world / "finch", "home")
    if lora:
        get_peft_model(model.model, LoraConfig(r=4, init_lora_weights=False)).save_pretrained(tmp_path)
        policy = Policy(world / "wren", "home", world / "finch", tmp_path)  # its own path is not what is read
    settings = TrainSettings(lora=lora)
    prompts = [Prompt(text, (Message("user", text),)) for text in QUESTIONS]
    ours, theirs = (
        sorted(load.sampler(policy, settings).sample(prompts, Sampling(max_new_tokens=8)), key=lambda reply: reply.id)
        for load in (
            Load(model.tokenizer, code=False),
            Load(model.tokenizer, code=False, engine=EngineSettings(engine="vllm")),
        )
    )
    assert ours == theirs
    assert len(vllm_stand_in.LLM.requests) == 3
