"""What an arm may be made of: adapters, other losses, replay, other third replies, exploration, several turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from consilience.models import load_model
from consilience.pipelines.prefer import prefer_recipe
from preference_recipe import TRAIN, write_recipe

TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me"}]
MORE = [{"role": "assistant", "content": "Seven birds"}, {"role": "user", "content": "And then?"}]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`run(model, **changes)` aligns a random model of the test world for two rounds of four prompts."""

    def aligned(model: str, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("variant")
        rows = [
            {
                "id": f"p{i}",
                "prompt": [*TURNS, *(MORE if i % 2 else [])],
                "chosen": f"The river carries cold water {i}.",
                "rejected": "A lamp stands on the table." if i % 3 else "Bread.",
            }
            for i in range(10)
        ]
        return prefer_recipe(write_recipe(folder, world / model, rows, **changes), folder / "run").run

    return aligned


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(run: Path, arm: str, number: int) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((run / arm / f"round-{number}" / "train" / "curve.json").read_text())
    return found


@pytest.mark.parametrize("model", ["pivot", "wren", "finch"])  # Llama, GPT-2 and Qwen 2, each with its own template
def test_any_template_and_several_turns(run: Callable[..., Path], model: str) -> None:
    made = run(model, loss={"name": "selm", "alpha": 0.1})
    for number in (1, 2):
        pairs = rows(made / "policy" / f"round-{number}" / "pair" / "pairs.jsonl")
        assert {pair["status"] for pair in pairs} == {"ok"}
        assert curve(made, "policy", number)[0]["chosen_logprob"] < 0


def test_no_judge_is_asked_about_an_empty_reply_of_the_data(world: Path, tmp_path: Path) -> None:
    told = [
        {"id": f"p{i}", "prompt": "Tell me", "chosen": "The river carries cold water.", "rejected": " \n"}
        for i in range(2)
    ] + [{"id": f"q{i}", "prompt": "Tell me", "chosen": "Seven birds.", "rejected": "Bread."} for i in range(6)]
    path = write_recipe(tmp_path, world / "pivot", told, rounds=1)
    home = prefer_recipe(path, tmp_path / "run").run / "policy" / "round-1"
    judged = {(row["id"], row["slot"]) for row in rows(home / "judge" / "verdicts.jsonl")}
    assert {id_ for id_, slot in judged if slot == "chosen"} == {"p0", "p1", *(f"q{i}" for i in range(4))}
    assert {id_ for id_, slot in judged if slot == "rejected"} == {f"q{i}" for i in range(4)}


@pytest.mark.parametrize("train", [{"lora": {"rank": 2}}, {}])
def test_bfloat16(run: Callable[..., Path], train: dict[str, Any]) -> None:
    made = run("pivot", train={**TRAIN, "dtype": "bfloat16", "gradient_checkpointing": True, **train})
    for number in (1, 2):
        assert curve(made, "policy", number)[0]["loss"] == pytest.approx(0.693, abs=0.03)
    assert load_model(made / "policy" / "round-2" / "train").model.dtype == torch.float32


def test_adapters_learn_on_and_their_reference_is_the_policy_before(run: Callable[..., Path], world: Path) -> None:
    made = run("pivot", train={**TRAIN, "lora": {"rank": 2, "alpha": 4}})
    for number in (1, 2):
        first = curve(made, "policy", number)[0]
        assert first["loss"] == pytest.approx(0.693147, abs=1e-4)  # policy and reference are one at the first step
        assert first["chosen_logprob"] == pytest.approx(first["ref_chosen_logprob"], abs=1e-3)
    names = {path.name for path in (made / "policy" / "round-2" / "train").iterdir()}
    assert "model.safetensors" in names
    assert "adapter_model.safetensors" not in names
    # The same adapters go on learning beside the start's own weights; the merged model is their sum.
    from peft import PeftModel

    merged = load_model(made / "policy" / "round-2" / "train").model.state_dict()
    beside = PeftModel.from_pretrained(
        load_model(world / "pivot").model, made / "policy" / "round-2" / "train" / "adapters"
    ).merge_and_unload()
    for name, value in beside.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=1e-5, atol=1e-6)


def test_every_loss_runs_and_replay_learns_from_earlier_rounds(run: Callable[..., Path]) -> None:
    arms = {name: {"loss": {"name": name, "alpha": 0.1}} for name in ("ipo", "hinge", "vpo", "simpo", "orpo", "wrpo")}
    arms |= {
        "xpo": {"loss": {"name": "xpo", "alpha": 1e-5}, "third": "start", "reference": "start", "replay": True},
        "best": {"explore": "best_of_n"},
        "swap": {"pair": "swap", "offline_rounds": 1, "learning_rates": [0.01, 0.001]},
    }
    made = run("pivot", arms=arms)
    assert len(rows(made / "xpo" / "round-2" / "reference" / "logprobs.jsonl")) == 8  # four of this round, four before
    assert len(rows(made / "ipo" / "round-2" / "reference" / "logprobs.jsonl")) == 4
    assert not (made / "simpo" / "round-2" / "reference").exists()
    thirds = [
        pair["third"]["slot"] for pair in rows(made / "xpo" / "round-2" / "pair" / "pairs.jsonl") if pair["third"]
    ]
    assert set(thirds) == {"start 0"}
    verdicts = rows(made / "best" / "round-1" / "judge" / "verdicts.jsonl")
    assert {row["slot"] for row in verdicts} <= {"chosen", "rejected", *(f"sample {i}" for i in range(4))}
    assert len(verdicts) > 12
    # two steps: alpha is that of the share of the steps that are done
    assert [point["alpha"] for point in curve(made, "wrpo", 1)] == pytest.approx([0, 0.05])
    assert [point["alpha"] for point in curve(made, "vpo", 1)] == pytest.approx([0.1, 0.1])
    assert not (made / "swap" / "round-1" / "judge").exists()
    assert (made / "swap" / "round-2" / "judge").exists()
    results = json.loads((made / "results.json").read_text())
    assert {*results["arms"]} == {*arms}


def test_a_reward_model_is_a_judge(run: Callable[..., Path], world: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(world / "finch", num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(world / "finch").save_pretrained(tmp_path / "reward")
    train = {"batch_size": 2, "micro_batch_size": 2}
    made = run("pivot", judge={"kind": "reward_model", "model": str(tmp_path / "reward")}, train=train)
    assert len(curve(made, "policy", 1)) == 1  # fewer steps than log_steps: the last one is a point all the same
    assert {row["state"] for row in rows(made / "policy" / "round-1" / "judge" / "verdicts.jsonl")} == {"ok"}
