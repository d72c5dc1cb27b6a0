"""`consilience prefer` on a tiny world whose reward is known: the run folder, resume, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.cli.preference_table import handed_over
from consilience.prefer.data import read_preferences
from fake_endpoint import Reply, choices, fake_server

RECIPE: dict[str, Any] = {
    "tiny": {"pairs": 48, "held_out": 12, "steps_scale": 0.2},
    "model": "tiny:chat",
    "data": {"path": "tiny:pairs.jsonl"},
    "held_out": {"path": "tiny:held_out.jsonl"},
    "judge": {"kind": "function", "function": "tiny:reward.py:score"},
    "annotator": 2,
    "rounds": 2,
    "sample": {"max_new_tokens": 10},
    "measure": {"sample": {"temperature": 1.0, "samples": 2, "max_new_tokens": 10}},
    "train": {
        "epochs": 1, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 0.001, "log_steps": 1, "save_steps": 1,
    },
    "loss": {"name": "selm", "alpha": 0.1},
    "threads": 1,
    "arms": {
        "online": {"loss": {"name": "dpo", "alpha": 0.0}},
        "selm": {},
        "selm-replay": {"data_from": "online"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def run(written: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from consilience.pipelines.prefer import prefer_recipe

    return prefer_recipe(written(), tmp_path_factory.mktemp("prefer") / "run").run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_sample_verdict_and_pair_is_on_disk(run: Path) -> None:
    (sample,) = (run / "start" / "sample").iterdir()
    replies = {row["id"]: row for row in rows(sample / "replies-00000.jsonl")}
    assert len(replies) == 24
    home = run / "selm" / "round-1"
    verdicts = {(row["id"], row["slot"]): row for row in rows(home / "judge" / "verdicts.jsonl")}
    for pair in rows(home / "pair" / "pairs.jsonl"):
        if pair["status"] == "ok":
            mine = [row["score"] for (id_, _), row in verdicts.items() if id_ == pair["id"]]
            if pair["third"] is None or pair["third"]["ended"]:
                assert verdicts[pair["id"], pair["chosen"]["slot"]]["score"] == max(mine)
            assert pair["chosen"]["ended"]
            assert verdicts[pair["id"], pair["rejected"]["slot"]]["score"] == min(mine)
            if replies[pair["id"]]["text"].strip():
                assert pair["third"]["text"] == replies[pair["id"]]["text"].strip()


def test_both_arms_learn_from_the_same_first_round_and_a_replay_from_the_others_pairs(run: Path) -> None:
    first = [(run / arm / "round-1" / "pair" / "pairs.jsonl").read_text() for arm in ("online", "selm")]
    assert first[0] == first[1]
    assert not (run / "selm-replay" / "round-1" / "pair").exists()
    weights = [(run / arm / "round-1" / "train" / "model.safetensors").read_bytes() for arm in ("selm", "selm-replay")]
    assert weights[0] == weights[1]


def test_results_and_report(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    assert list(results["arms"]) == ["online", "selm", "selm-replay"]
    (parts,) = results["decompositions"]
    assert (parts["arm"], parts["twin"], parts["baseline"]) == ("selm", "selm-replay", "online")
    for of_round in parts["rounds"]:
        total, same, exploration = (of_round[key]["value"] for key in ("total", "same_data", "exploration"))
        assert total == pytest.approx(same + exploration, abs=1e-12)
    assert results["arms"]["selm"]["rounds"][0]["kl"]["n"] <= 12
    assert handed_over(results) == "selm-replay after round 2"
    page = (run / "report.html").read_text()
    for words in ("selm-replay", "exploration", "KL from start", "wins over start"):
        assert words in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_model_loads_and_differs_from_the_start(run: Path) -> None:
    from consilience.weights import Checkpoint

    new, old = Checkpoint(run / "model"), Checkpoint(run / "tiny" / "chat")
    assert {*new.names} == {*old.names}
    assert any(not (new.tensor(name) == old.tensor(name)).all() for name in new.names)


def test_reference_logprobs_are_those_of_the_policy_before(run: Path) -> None:
    # At step 1 policy and reference are one model: the loss is ln 2, whatever the pairs (and SELM's third reply shifts
    # it only where it is neither chosen nor rejected, whose reference is not computed).
    curve = json.loads((run / "online" / "round-2" / "train" / "curve.json").read_text())
    assert curve[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert curve[0]["chosen_logprob"] == pytest.approx(curve[0]["ref_chosen_logprob"], abs=1e-4)


def hashes(run: Path) -> dict[str, str]:
    """Weights and records; not the times, nor the pages that show them."""
    names = [*run.rglob("*.safetensors"), *run.rglob("*.jsonl")]
    found = {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in names}
    return {name: value for name, value in found.items() if "events" not in name and ".partial" not in name}


def test_killed_anywhere_and_again_gives_the_same(written: Callable[..., Path], run: Path, tmp_path: Path) -> None:
    recipe, out = written(), tmp_path / "run"
    command = [sys.executable, "-m", "consilience.cli", "prefer", str(recipe), "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # The stages up to one in the making are the undisturbed run's; then the process is killed while it trains.
    shutil.copytree(run, out)
    for made in ("online/round-2", "selm", "selm-replay", "model"):
        shutil.rmtree(out / made)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = out / "online" / "round-2" / "train.partial" / "checkpoints"
    until = time.monotonic() + 120
    while not [*checkpoints.glob("checkpoint-*/whole.json")] and process.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert hashes(out) == hashes(run)


Refused = tuple[dict[str, Any], str]
REFUSED: dict[str, Refused] = {
    "a misspelt key": ({"jugde": 1}, "Did you mean 'judge'"),
    "alpha below zero": ({"loss": {"alpha": -1}}, "loss.alpha"),
    "beta without end": ({"loss": {"beta": float("inf")}}, "loss.beta: Input should be a finite number"),
    "a rate below zero": ({"learning_rates": [-1e-6]}, "learning_rates.0: Input should be greater than 0"),
    "beta of zero": ({"loss": {"beta": 0}}, "loss.beta"),
    "wrpo's share above 1": ({"loss": {"name": "wrpo", "alpha": 2}}, "at most 1"),
    "an unknown loss": ({"loss": {"name": "dpoo"}}, "Did you mean 'dpo'"),
    "an unknown arm": ({"baseline": "onlin"}, "Did you mean 'online'"),
    "an arm's unknown key": ({"arms": {"a": {"los": 1}}}, "arms.a: unknown key 'los'"),
    "data from nowhere": ({"arms": {"a": {"data_from": "b"}}}, "arms.a.data_from: no arm is called 'b'"),
    "no pair possible": ({"arms": {"a": {"offline_pair": False}}}, "one sample and no offline pair"),
    "selm without alpha": ({"loss": {"name": "selm"}}, "loss.name is selm and loss.alpha 0, which is dpo"),
    "no y for selm": ({"arms": {"a": {"pair": "swap"}}}, "pair: swap samples nothing"),
    "offline in every round": ({"offline_rounds": 2}, "offline_rounds is 2 of 2 rounds"),
    "a server never asked": (
        {"sampler": {"endpoint": {"url": "http://x/v1", "model": "m"}, "rounds": "first"}, "offline_rounds": 1},
        "the server would never be asked",
    ),
    "a split of a file": (
        {"data": {"path": "tiny:pairs.jsonl", "split": "train"}},
        "data.split",
    ),
    "no tiny block": ({"tiny": None}, "no 'tiny:' block"),
    "too many rounds": ({"rounds": 49}, "49 rounds of at least 1 prompts need 49, and the data has 48"),
    "no file": ({"data": {"path": "nowhere.jsonl"}}, "no file 'nowhere.jsonl'"),
    "no model": ({"model": "nowhere"}, "no model folder 'nowhere'"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_refused_in_one_line(case: str, written: Callable[..., Path], tmp_path: Path, consilience: Any) -> None:
    changes, message = REFUSED[case]
    quick = {"tiny": {"pairs": 48, "held_out": 12, "steps_scale": 0.01}}
    answer = consilience("prefer", written(**{**quick, **changes}), "--out", tmp_path / "run")
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1.0", "the judge gives 1 to all"),
        ("return 1.0 if reply[0] < 'n' else None", "replies that it scored, of "),
        ("return float('nan')", "no score for any of"),
        ("return float('inf')", "no score for any of"),
        ("return 'good'", "gives 'good' (str) for a reply"),
        ("return [1]", "gives '[1]' (list) for a reply"),
        ("return row['answer']", "KeyError: 'answer' (reward.py, line 2). Let it give None"),
    ],
)
def test_a_reward_that_says_nothing_stops_the_run(
    body: str, message: str, written: Callable[..., Path], run: Path, tmp_path: Path, consilience: Any
) -> None:
    recipe = written(
        tiny=None,
        model=str(run / "tiny" / "chat"),
        data={"path": str(run / "tiny" / "pairs.jsonl")},
        held_out={"path": str(run / "tiny" / "held_out.jsonl")},
        judge={"kind": "function", "function": "reward.py:score"},
    )
    (recipe.parent / "reward.py").write_text(f"def score(prompt, reply, row):\n    {body}\n")
    answer = consilience("prefer", recipe, "--out", tmp_path / "run")
    assert answer.code == 2
    assert message in answer.err


def test_a_judge_that_is_gone_ends_no_stage_and_the_same_command_goes_on(
    written: Callable[..., Path], run: Path, tmp_path: Path, consilience: Any
) -> None:
    """Data and held-out prompts without ids of their own: both are numbered from 0."""
    for name in ("pairs", "held_out"):
        kept = [{key: value for key, value in row.items() if key != "id"} for row in rows(run / f"tiny/{name}.jsonl")]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept[:12]))
    answering = {"left": 0}

    def behave(body: dict[str, Any], nth: int) -> Reply:
        if not answering["left"]:
            return Reply(b"", status=503)
        answering["left"] -= 1
        return Reply(choices("?" if answering["left"] % 9 == 0 else f"[[{1 + nth % 9}]]"))

    with fake_server(behave) as server:
        endpoint = {"url": server.url, "model": "m", "retries": 0, "concurrency": 1}
        recipe = written(
            tiny=None,
            model=str(run / "tiny" / "chat"),
            data={"path": str(tmp_path / "pairs.jsonl")},
            held_out={"path": str(tmp_path / "held_out.jsonl")},
            judge={"kind": "rating", "endpoint": endpoint},
            annotator=None,
            rounds=1,
            arms={"policy": {}},
        )
        for left, finished in ((0, []), (15, []), (24, ["start/measure"])):
            answering["left"] = left
            answer = consilience("prefer", recipe, "--out", tmp_path / "run")
            assert answer.code == 2, answer.err
            assert "does not answer: " in answer.err
            assert answer.err.strip().endswith("The same command goes on from here.")
            stages = [path.parent for path in (tmp_path / "run").rglob("stage.json")]
            judged = [str(path.relative_to(tmp_path / "run")) for path in stages if path.name in ("measure", "judge")]
            assert judged == finished
        answering["left"] = 10_000
        answer = consilience("prefer", recipe, "--out", tmp_path / "run", "--json")
        assert answer.code == 0, answer.err
    said = rows(tmp_path / "run/start/measure/replies.jsonl")
    states = answer.json["start"]["states"]
    assert states.get("unparsed", 0) == sum(row["state"] == "unparsed" for row in said) > 0
    assert sum(states.values()) == len(said) == 24
    assert "Without a reward, and not part of any: start " in (tmp_path / "run/report.html").read_text()
    ended = [(row["id"], row["text"], row["logprob"]) for row in said if row["text"] and row["status"] == "ok"]
    _are_behind_the_prompts_of(tmp_path / "held_out.jsonl", run / "tiny/chat", ended[:4])
    pairs = {row["id"]: row for row in rows(tmp_path / "run/policy/round-1/pair/pairs.jsonl")}
    referred = rows(tmp_path / "run/policy/round-1/reference/logprobs.jsonl")
    learnt = [(row["id"], pairs[row["id"]]["chosen"]["text"], row["logprobs"][0]) for row in referred]
    _are_behind_the_prompts_of(tmp_path / "pairs.jsonl", run / "tiny/chat", learnt)


def _are_behind_the_prompts_of(data: Path, model: Path, found: list[tuple[str, str, float]]) -> None:
    """The log-probabilities of replies are transformers' own, behind the prompts of the same place in `data`."""
    assert found
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    prompts = read_preferences(data, pairs=False)
    for place, text, logprob in found:
        turns = [{"role": turn.role, "content": turn.content} for turn in prompts[int(place)].prompt]
        before = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        turns.append({"role": "assistant", "content": text})
        ids = torch.tensor([tokenizer.apply_chat_template(turns, return_dict=False)])
        with torch.no_grad():
            logprobs = policy(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[len(before) - 1 :]
        assert logprob == pytest.approx(float(logprobs.sum()), abs=1e-3)


def test_a_reference_of_another_vocabulary_is_refused(
    world: Path, written: Callable[..., Path], tmp_path: Path, consilience: Any
) -> None:
    quick = {"tiny": {"pairs": 48, "held_out": 12, "steps_scale": 0.01}}
    answer = consilience(
        "prefer", written(**quick, arms={"a": {"reference": str(world / "wren")}}), "--out", tmp_path / "run"
    )
    assert answer.code == 2
    assert "have different vocabularies" in answer.err
