"""`consilience fuse` from a recipe to a model that plain transformers loads, on tiny random models."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_weights
from safetensors.torch import save_file as save_weights
from transformers import AutoModelForCausalLM, AutoTokenizer

Recipe = Callable[..., Path]
Consilience = Callable[..., Any]

FAST = {"targets": {"controls": []}, "merges": {"linear": {"method": "linear"}}}
STAGES = {
    *("represent/pivot", "represent/wren", "represent/finch", "align/wren", "align/finch"),
    *(f"{verb}/{target}" for verb in ("select", "train", "evaluate") for target in
      ("sft", "seqkd", "fused_wren", "fused_finch", "many_to_one", "wren_exact")),
    *("sample/seqkd", "merge/sce", "merge/linear", "evaluate/pivot", "evaluate/wren", "evaluate/finch"),
    *("evaluate/sce", "evaluate/linear", "model"),
}  # fmt: skip


@pytest.fixture(scope="module")
def whole_recipe(recipe: Recipe, world: Path) -> Path:
    return recipe(
        title="Three birds <b>fused</b>",
        targets={
            "controls": ["sft", "seqkd"],
            "many_to_one": True,
            "max_new_tokens": 4,
            "variants": {"wren_exact": {"sources": ["wren"], "vocabulary": "exact", "select": {"teach": "tokens"}}},
        },
        merges={"sce": {"method": "sce"}, "linear": {"method": "linear"}},
        tasks={"lines": {"path": str(world / "questions.jsonl"), "match": "contains", "max_new_tokens": 8}},
    )


@pytest.fixture(scope="module")
def command(whole_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["fuse", str(whole_recipe), "--out", str(tmp_path_factory.mktemp("whole") / "run"), "--json"]


@pytest.fixture(scope="module")
def printed(command: list[str]) -> dict[str, Any]:
    """The JSON object that the installed command ends with."""
    door = Path(sys.executable).with_name("consilience")
    found = subprocess.run([door, *command], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return answer


@pytest.fixture(scope="module")
def run(printed: dict[str, Any]) -> Path:
    return Path(printed["run"])


def results(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "results.json").read_text())
    return found


def curve(run: Path, target: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((run / "train" / target / "curve.json").read_text())
    return found


def test_the_last_line_says_where_everything_is_and_what_was_measured(printed):
    assert Path(printed["model"]) == Path(printed["run"]) / "model"
    assert Path(printed["report"]).is_file()
    names = "pivot wren finch sft seqkd fused_wren fused_finch many_to_one wren_exact sce linear"
    assert [*printed["models"]] == names.split()
    for model in printed["models"].values():
        for quantity in ("nll", "accuracy"):
            estimate = model[quantity]
            assert estimate["low"] <= estimate["value"] <= estimate["high"]
            assert estimate["level"] == 0.95


def test_every_stage_is_there_and_none_is_half(run):
    assert {str(mark.parent.relative_to(run)) for mark in run.rglob("stage.json")} == STAGES
    assert not [*run.rglob("*.partial")]
    assert not [*run.rglob("checkpoints")]


def test_the_same_command_again_gives_the_same_and_makes_nothing(printed, command, run, consilience):
    def made() -> dict[Path, int]:
        later = ("results.json", "report.html", "run.lock")
        return {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file() and file.name not in later}

    before = made()
    again = consilience(*command)
    assert (again.code, again.err) == (0, "")
    assert again.json == printed
    assert made() == before


def test_the_table_is_printed_without_json(printed, command, consilience):
    shown = consilience(*command[:-1])
    assert shown.code == 0
    for name in printed["models"]:
        assert re.search(rf"^{name} ", shown.out, re.MULTILINE)
    pivot = next(line for line in shown.out.splitlines() if line.startswith("pivot "))
    values = [float(number) for number in re.findall(r"\S+(?= \[)", pivot)]
    nll = printed["models"]["pivot"]["nll"]
    # Two digits of the interval's width are shown.
    assert any(value == pytest.approx(nll["value"], abs=nll["standard_error"] / 2) for value in values)
    assert shown.out.rstrip().endswith("report.html")


PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
chat = [{"role": "user", "content": "Tell me line 3: Bread is m"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
reply = model.generate(**inputs, max_new_tokens=6, do_sample=False)
print(json.dumps({
    "new": reply.shape[1] - inputs["input_ids"].shape[1],
    "prompt": tokenizer.decode(inputs["input_ids"][0]),
    "finite": all(bool(p.isfinite().all()) for p in model.parameters()),
    "kind": type(model).__name__,
    "ours": [name for name in sys.modules if name.startswith("consilience")],
}))
"""


def test_plain_transformers_loads_the_model_and_it_answers(printed, tmp_path):
    words = [sys.executable, "-c", PLAIN, printed["model"]]
    found = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    answer = json.loads(found.stdout.splitlines()[-1])
    assert 1 <= answer.pop("new") <= 6
    assert answer == {
        "prompt": "<s>[INST] Tell me line 3: Bread is m [/INST]",
        "finite": True,
        "kind": "LlamaForCausalLM",
        "ours": [],
    }


def test_the_model_s_folder_is_whole(printed, run, world):
    model = Path(printed["model"])
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"):
        assert (model / name).is_file()
    assert (model / "chat_template.jinja").read_text() == (world / "pivot" / "chat_template.jinja").read_text()
    card = (model / "README.md").read_text()
    assert "consilience" in yaml.safe_load(card.split("---")[1])["tags"]
    for words in (str(world / "wren"), "## Recipe", "method: sce"):
        assert words in card
    merged, fused = load_weights(run / "merge/sce/model.safetensors"), load_weights(model / "model.safetensors")
    assert all(torch.equal(merged[name], fused[name]) for name in merged | fused)


@pytest.mark.parametrize("name", ["pivot", "sft", "sce"])
def test_held_out_nll_is_what_plain_transformers_gives(run, world, name):
    folder = {"pivot": world / "pivot", "sft": run / "train" / "sft", "sce": run / "model"}[name]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    chats = {chat["id"]: chat["messages"] for chat in map(json.loads, (world / "chats.jsonl").read_text().splitlines())}
    records = [*map(json.loads, (run / "evaluate" / name / "likelihood.jsonl").read_text().splitlines())]
    one_reply = [record for record in records if len(chats[record["id"]]) <= 3 and record["id"] != "chat-0"]
    assert one_reply
    for record in one_reply:
        *prompt, reply = chats[record["id"]]
        start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False))
        ids = torch.tensor([tokenizer.apply_chat_template([*prompt, reply], return_dict=False)])
        loss = torch.nn.functional.cross_entropy(
            model(ids).logits[0, start - 1 : -2], ids[0, start:-1], reduction="sum"
        )
        assert record["nats"] == pytest.approx(loss.item(), rel=1e-5)
        assert record["bytes"] == len(reply["content"].encode())
    total = sum(record["nats"] for record in records) / sum(record["bytes"] for record in records)
    assert results(run)["models"][name]["nll"]["value"] == pytest.approx(total)


def test_no_prompt_is_both_learnt_and_held_out(run, world):
    """One quarter of the 24 chats, none of which shares its opening with another."""
    data = results(run)["data"]
    held_out = [*map(json.loads, (run / "evaluate/pivot/likelihood.jsonl").read_text().splitlines())]
    assert (data["train"]["conversations"], data["held_out"]["conversations"], len(held_out)) == (18, 6, 6)
    assert data["train"]["groups"]["even"] + data["train"]["groups"]["odd"] == 18
    assert not any("held out" in what for what in data["set_aside"])


def test_the_report_is_one_file_that_asks_for_nothing(printed):
    page = Path(printed["report"]).read_text()
    assert "Three birds &lt;b&gt;fused&lt;/b&gt;" in page
    assert "<b>fused</b>" not in page
    for name in printed["models"]:
        assert name in page
    asked = re.findall(r"""(?:src|href|action)\s*=\s*["'](?!#)([^"']*)""", page)
    assert [where for where in asked if not where.startswith("data:")] == []
    assert not re.search(r"<script|<link|@import|url\((?!#|data:)", page)


def test_what_the_targets_learn_differs_by_source(run):
    """But for many_to_one: among these models one source is ahead on every chat, and all is learnt from it."""
    targets = ("sft", "fused_wren", "fused_finch", "wren_exact")
    weights = {name: load_weights(run / "train" / name / "model.safetensors") for name in targets}
    for name, mine in weights.items():
        for other, theirs in weights.items():
            assert name == other or any(not torch.equal(mine[key], theirs[key]) for key in mine)
    assert curve(run, "sft")[0].keys() == {"step", "loss", "gold", "learning_rate"}
    assert "fusion" in curve(run, "fused_wren")[0]


def test_a_sampled_reply_that_does_not_end_is_counted_and_gold_is_learnt(run):
    """Random models do not come to an end within four tokens: all that seqkd learns is gold, as sft does."""
    teachers = json.loads((run / "select/seqkd/teachers.json").read_text())["conversations"]
    won = sum(teacher is not None for teacher in teachers)
    assert results(run)["data"]["set_aside"] == {"sampled reply cut off, gold kept (seqkd)": won}
    sft, seqkd = (load_weights(run / "train" / name / "model.safetensors") for name in ("sft", "seqkd"))
    assert all(torch.allclose(sft[name], seqkd[name], atol=1e-6) for name in sft)


def test_a_pivot_with_tensors_that_transformers_leaves_out_is_merged_too(recipe, consilience, world, run, tmp_path):
    """As Llama 2's published files: a buffer of every layer is stored, and a head that is tied all the same."""
    pivot = tmp_path / "pivot"
    shutil.copytree(world / "pivot", pivot)
    weights = load_weights(pivot / "model.safetensors")
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    more["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_weights(weights | more, pivot / "model.safetensors", metadata={"format": "pt"})
    path = recipe(pivot=str(pivot), targets={"controls": []}, merges={"sce": {"method": "sce"}})
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    plain, merged = (
        load_weights(run / "model/model.safetensors"),
        load_weights(tmp_path / "run/model/model.safetensors"),
    )
    assert all(torch.equal(merged[name], plain[name]) for name in plain | merged)
    assert (tmp_path / "run/model/chat_template.jinja").is_file()


def test_the_pivot_s_template_serves_every_source_also_one_without(recipe, consilience, world, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in (world / "wren").iterdir():
        if file.name != "chat_template.jinja":
            (bare / file.name).symlink_to(file)
    out = tmp_path / "run"
    path = recipe(represent={"template": "pivot"}, sources={"wren": str(bare), "finch": str(world / "finch")}, **FAST)
    assert consilience("fuse", path, "--out", out).code == 0
    tokenizer = AutoTokenizer.from_pretrained(world / "wren")
    template = (world / "pivot" / "chat_template.jinja").read_text()
    chats = {chat["id"]: chat["messages"] for chat in map(json.loads, (world / "chats.jsonl").read_text().splitlines())}
    held_out = {json.loads(line)["id"] for line in (out / "evaluate/pivot/likelihood.jsonl").read_text().splitlines()}
    first = next(messages for id_, messages in chats.items() if id_ not in held_out)
    ids = tokenizer.apply_chat_template(first, chat_template=template, return_dict=False)
    for name in ("wren", "finch"):
        assert json.loads((out / "represent" / name / "manifest.json").read_text())["template"] == "pivot"
    shard = load_file(out / "represent" / "wren" / "shard-00000.safetensors")
    mine = shard["conversation_N"] == 0
    assert shard["gold_ids_N"][mine].tolist() == [ids[place] for place in shard["position_N"][mine]]


def test_per_token_decides_inside_a_conversation(recipe, consilience, tmp_path):
    assert consilience("fuse", recipe(select={"per": "token"}, **FAST), "--out", tmp_path / "run").code == 0
    targets = load_file(tmp_path / "run/select/fused_wren/targets-00000.safetensors")
    first = targets["teacher_N"][targets["conversation_N"] == targets["conversation_N"][0]]
    assert len({*first.tolist()}) > 1


def test_avg_ce_mixes_the_candidates_of_pivot_and_source(recipe, consilience, tmp_path):
    assert (
        consilience(
            "fuse", recipe(select={"function": "avg_ce", "teach": "tokens"}, **FAST), "--out", tmp_path / "run"
        ).code
        == 0
    )
    targets = load_file(tmp_path / "run/select/fused_wren/targets-00000.safetensors")
    fused = targets["fusion_weight_N"] > 0
    kept = (targets["probs_NJ"] > 0).sum(1)[fused]
    assert kept.max() > 5  # more than either of the two, which keep five
    assert (targets["probs_NJ"].sum(1) <= 1 + 1e-5).all()


def test_kl_learns_the_same_from_a_lower_loss(recipe, consilience, run, tmp_path):
    """KL is the cross-entropy less the teacher's entropy, which no weight of the student changes."""
    assert consilience("fuse", recipe(loss="kl", **FAST), "--out", tmp_path / "run").code == 0
    for ce, kl in zip(curve(run, "fused_wren"), curve(tmp_path / "run", "fused_wren"), strict=True):
        assert kl["gold"] == pytest.approx(ce["gold"], rel=1e-4)
        assert 0 < kl["fusion"] < ce["fusion"]


def test_lora_changes_the_linear_layers_by_its_rank_and_leaves_no_adapter(recipe, consilience, world, tmp_path):
    path = recipe(train={"lora": {"rank": 2, "alpha": 4}}, **FAST)
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    folder = tmp_path / "run" / "train" / "fused_wren"
    assert not [*folder.glob("adapter*")]
    pivot, target = load_weights(world / "pivot" / "model.safetensors"), load_weights(folder / "model.safetensors")
    assert pivot.keys() == target.keys()
    changed = {name for name in pivot if not torch.equal(pivot[name], target[name])}
    assert changed == {name for name in pivot if "_proj" in name}
    for name in changed:
        assert torch.linalg.matrix_rank((target[name] - pivot[name]).double(), rtol=1e-4) <= 2


def test_lora_on_a_bfloat16_pivot_learns_less_than_bfloat16_resolves(recipe, consilience, world, tmp_path):
    stored = shutil.copytree(world / "pivot", tmp_path / "pivot")
    halved = {name: tensor.bfloat16() for name, tensor in load_weights(stored / "model.safetensors").items()}
    save_weights(halved, stored / "model.safetensors", {"format": "pt"})
    train = {"lora": {"rank": 2, "alpha": 4}, "dtype": "bfloat16", "learning_rate": 1e-4}
    path = recipe(pivot=str(stored), train=train, **FAST)
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    target = load_weights(tmp_path / "run" / "train" / "fused_wren" / "model.safetensors")
    assert {tensor.dtype for tensor in target.values()} == {torch.float32}
    changes = {name: target[name] - halved[name].float() for name in halved}
    # What LoRA leaves alone is the pivot's own number; what it changes would be lost in bfloat16.
    assert {name for name, change in changes.items() if change.any()} == {name for name in halved if "_proj" in name}
    lost = sum(
        int(((change != 0) & (target[name].bfloat16() == halved[name])).sum()) for name, change in changes.items()
    )
    assert lost > 0.5 * sum(int((change != 0).sum()) for change in changes.values())


def test_a_source_is_added_later_without_starting_again(recipe, consilience, world, tmp_path):
    robin = shutil.copytree(world / "wren", tmp_path / "robin")
    weights = {name: 1.5 * tensor for name, tensor in load_weights(robin / "model.safetensors").items()}
    save_weights(weights, robin / "model.safetensors", {"format": "pt"})
    two = {"wren": str(world / "wren"), "finch": str(world / "finch")}
    later, first, again = recipe(sources={**two, "robin": str(robin)}), tmp_path / "first", tmp_path / "again"
    assert consilience("fuse", recipe(sources=two), "--out", first).code == 0
    assert consilience("fuse", later, "--out", again, "--reuse", first).code == 0
    events = [json.loads(line) for line in (again / "events.jsonl").read_text().splitlines()]
    assert {event["stage"] for event in events if "taken_from" not in event} == {
        *("represent/robin", "align/robin", "select/fused_robin", "train/fused_robin", "merge/sce"),
        *("evaluate/robin", "evaluate/fused_robin", "evaluate/sce", "model"),
    }
    assert consilience("fuse", later, "--out", tmp_path / "fresh").code == 0
    for path in ("model/model.safetensors", "train/fused_robin/model.safetensors", "train/sft/model.safetensors"):
        assert (again / path).read_bytes() == (tmp_path / "fresh" / path).read_bytes()
    # Another learning rate trains anew, and keeps what was represented and chosen.
    assert (
        consilience(
            "fuse", later, "--out", tmp_path / "rate", "--reuse", again, "--set", "train.learning_rate=0.1"
        ).code
        == 0
    )
    events = [json.loads(line) for line in (tmp_path / "rate" / "events.jsonl").read_text().splitlines()]
    anew = {event["stage"].split("/")[0] for event in events if "taken_from" not in event}
    assert anew == {"train", "merge", "evaluate", "model"}


def test_accumulated_micro_batches_learn_like_one_batch(recipe, consilience, run, tmp_path):
    assert consilience("fuse", recipe(train={"micro_batch_size": 2}, **FAST), "--out", tmp_path / "run").code == 0
    for whole, halves in zip(curve(run, "fused_wren"), curve(tmp_path / "run", "fused_wren"), strict=True):
        assert {**halves} == pytest.approx({**whole}, abs=1e-5)


def test_a_held_out_file_and_parquet_chats(recipe, consilience, world, tmp_path):
    import pyarrow
    import pyarrow.parquet as parquet

    chats = [*map(json.loads, (world / "chats.jsonl").read_text().splitlines())]
    parquet.write_table(pyarrow.Table.from_pylist(chats[:16]), tmp_path / "chats.parquet")
    chats[16] |= {"group": "line\u2028end", "messages": chats[0]["messages"]}
    (tmp_path / "held_out.json").write_text(json.dumps(chats[16:]))
    path = recipe(data={"path": "chats.parquet"}, held_out={"share": None, "path": "held_out.json"}, **FAST)
    path = path.rename(tmp_path / "recipe.yaml")  # paths in a recipe are relative to it
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    data = results(tmp_path / "run")["data"]
    assert (data["train"]["conversations"], data["held_out"]["conversations"]) == (16, 8)
    assert "line\u2028end" in results(tmp_path / "run")["models"]["pivot"]["nll_by_group"]
    caveat = "1 of the 8 held-out chats begin with a prompt that is also trained on."
    assert caveat in results(tmp_path / "run")["caveats"]


def test_a_chat_that_cannot_be_read_is_counted_and_not_learnt(recipe, consilience, world, tmp_path):
    chats = [*map(json.loads, (world / "chats.jsonl").read_text().splitlines())]
    half = [{"role": "user", "content": "Half?"}, {"role": "assistant", "content": "\ud83d"}]  # of a surrogate pair
    long = [{"role": "user", "content": "Long?"}, {"role": "assistant", "content": "so " * 300}]
    rows = [*chats, {"id": "half", "messages": half}, {"id": "long", "messages": long}]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = recipe(
        data={"path": str(tmp_path / "chats.jsonl")},
        held_out={"share": None, "path": str(world / "chats.jsonl")},
        represent={"max_tokens": 250},
        targets={"controls": ["seqkd"], "max_new_tokens": 2},
        merges=FAST["merges"],
    )
    assert consilience("fuse", path, "--out", tmp_path / "run").code == 0
    aside = results(tmp_path / "run")["data"]["set_aside"]
    for name in ("pivot", "wren", "finch"):
        assert aside[f"training: truncated ({name})"] == 1
        assert sum(count for what, count in aside.items() if "surrogate" in what and f"({name})" in what) == 1
