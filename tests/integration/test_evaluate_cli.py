"""`consilience evaluate` on tiny models: every kind of task, a stop, what compare reads, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fake_endpoint import Reply, choices, fake_server
from verdict_words import VERDICT_WORDS, spoken

Command = Callable[..., Any]
WORDS = ("river", "lamp", "birds", "bread", "stars", "maps")


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tree(world: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe of two models and a file of finished replies, on a checked task of two rules with two samples."""
    rows = [
        {"id": f"q{i}", "prompt": f"Say {word}", "answer": word, "group": "ab"[i % 2]} for i, word in enumerate(WORDS)
    ]
    finished = [
        {"id": f"q{i}", "sample": sample, "reply": word if i % 2 else "<b>\x1b[31mno"}
        for i, word in enumerate(WORDS[:5])
        for sample in (0, 1)
    ]
    return {
        "models": {
            "pivot": str(world / "pivot"),
            "wren": {"path": str(world / "wren")},
            "old": {"answers": lines(tmp_path / "old.jsonl", finished)},
        },
        "tasks": {
            "say": {
                "kind": "checked",
                "path": lines(tmp_path / "say.jsonl", rows),
                "match": ["contains", "exact"],
                "sampling": {"temperature": 1.0, "samples": 2, "max_new_tokens": 6},
            }
        },
        "margins": {"say": 0.1},
        "threads": 1,
    }


def write(tmp_path: Path, tree: dict[str, Any]) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_models_and_finished_replies_are_compared_in_pairs(
    consilience: Command, tree: dict[str, Any], tmp_path: Path
) -> None:
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    say = answer.json["tasks"]["say"]["comparisons"]
    assert set(say) == {"contains", "exact"}
    old = say["contains"]["models"]["old"]
    assert old["estimate"]["value"] == pytest.approx(2 / 5)  # of five items; the sixth has no reply
    assert old["statuses"] == {"scored": 10, "missing": 2}
    assert (old["bounds"]["least"], old["bounds"]["most"]) == pytest.approx((2 / 6, 3 / 6))
    assert {(pair["first"], pair["second"]) for pair in say["exact"]["pairs"]} == {
        ("pivot", "wren"), ("pivot", "old"), ("wren", "old"),
    }  # fmt: skip
    assert say["contains"]["margin"] == 0.1
    records = [json.loads(line) for line in (tmp_path / "run/answers/say/pivot/records.jsonl").open()]
    assert {(row["item"], row["sample"]) for row in records} == {(f"q{i}", k) for i in range(6) for k in (0, 1)}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;b&gt;" in page
    assert not VERDICT_WORDS.search(spoken(page))
    assert "<b>" not in page
    assert "://" not in page
    assert page.count("<svg") <= page.count("<table")
    shown = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert "paired difference" in shown.out
    assert "\x1b" not in shown.out


def test_compare_reads_a_run_as_it_was_scored(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    ours = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json").json
    read = consilience("compare", tmp_path / "run", "--metric", "say: exact", "--margin", "0.1", "--json").json
    assert read["other_metrics"] == ["say: contains"]
    exact = ours["tasks"]["say"]["comparisons"]["exact"]
    for name, model in exact["models"].items():
        assert read["models"][name]["statuses"] == model["statuses"]
    for found, pair in zip(read["pairs"], exact["pairs"], strict=True):
        for key in ("value", "low", "high"):
            assert found["difference"][key] == pair["difference"][key]


def test_a_stopped_run_ends_as_an_undisturbed_one(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    recipe = write(tmp_path, tree)
    assert consilience("evaluate", recipe, "--out", tmp_path / "whole").code == 0
    assert consilience("evaluate", recipe, "--out", tmp_path / "run").code == 0
    stage = tmp_path / "run/answers/say/wren"
    half = stage.with_name("wren.partial")
    stage.rename(half)  # as a kill leaves it: the stage not named yet, a part of a turn cut in a line
    (half / "stage.json").unlink()
    records = (half / "records.jsonl").read_bytes()
    (half / "records.jsonl").unlink()
    part = half / "turn-1" / json.loads(records.splitlines()[0])["sampling"] / "replies-00000.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(records[: len(records) // 2])
    for name in ("scores.jsonl", "results.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert consilience("evaluate", recipe, "--out", tmp_path / "run").code == 0
    for name in ("scores.jsonl", "answers/say/wren/records.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not [*(tmp_path / "run").rglob("turn-*")]


def test_multiple_choice_by_likelihood(consilience: Command, tree: dict[str, Any], world: Path, tmp_path: Path) -> None:
    import numpy as np
    import torch

    from consilience.models import load_model

    rows = [
        {"id": f"q{i}", "question": f"Say {word}", "choices": [*WORDS], "answer": "ABCDEF"[i]}
        for i, word in enumerate(WORDS)
    ]
    del tree["models"]["old"]
    tree["margins"] = {}
    tree["tasks"] = {
        "plain": {"kind": "choice", "path": lines(tmp_path / "c.jsonl", rows), "chat": False, "prompt": "{question}:"},
        "letters": {
            "kind": "choice",
            "path": str(tmp_path / "c.jsonl"),
            "continue_with": "letter",
            "prompt": "{question}\n{choices}",
        },
    }
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    assert set(answer.json["tasks"]["plain"]["comparisons"]) == {"acc", "acc_norm"}
    assert set(answer.json["tasks"]["letters"]["comparisons"]) == {"acc"}
    # One choice by hand: the sum of log-probabilities of the tokens behind the question.
    model = load_model(world / "wren")
    found = json.loads((tmp_path / "run/answers/plain/wren/likelihoods.jsonl").open().readline())
    question = model.tokenizer("Say river:")["input_ids"]
    whole = model.tokenizer("Say river: lamp")["input_ids"]
    assert whole[: len(question)] == question
    with torch.no_grad():
        logprobs = model.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    by_hand = sum(logprobs[i - 1, whole[i]].item() for i in range(len(question), len(whole)))
    assert found["nats"][1] == pytest.approx(by_hand, abs=1e-4)
    assert found["bytes"] == [len(word) for word in WORDS]
    right = [int(np.argmax(json.loads(line)["nats"])) == i for i, line in
             enumerate((tmp_path / "run/answers/plain/wren/likelihoods.jsonl").open())]  # fmt: skip
    assert answer.json["tasks"]["plain"]["comparisons"]["acc"]["models"]["wren"]["estimate"]["value"] == pytest.approx(
        sum(right) / 6
    )


def test_a_function_of_ones_own(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def share(reply, row):\n    return None if not reply.strip() else min(len(reply), 10) / 10\n"
    )
    tree["tasks"]["say"]["function"] = str(tmp_path / "mine.py") + ":share"
    del tree["models"]["wren"]
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    model = answer.json["tasks"]["say"]["comparisons"]["share"]["models"]["old"]
    # "lamp" and "bread"; the other three are markup, an escape of five characters and "no".
    assert model["estimate"]["value"] == pytest.approx((0.4 + 0.5 + 3 * 1.0) / 5)


def test_a_single_model_is_estimated_and_not_compared(
    consilience: Command, tree: dict[str, Any], tmp_path: Path
) -> None:
    tree["models"] = {"old": tree["models"]["old"]}
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
    assert answer.code == 0, answer.err
    found = answer.json["tasks"]["say"]["comparisons"]["contains"]
    assert (found["pairs"], found["ranks"]) == ([], None)
    assert found["models"]["old"]["estimate"]["low"] < 0.4 < found["models"]["old"]["estimate"]["high"]
    assert 'id="task-0-0-differences"' not in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tasks.say.match": "exactly"}, "no match rule is called 'exactly'. Did you mean 'exact'?"),
        ({"tasks.say.kind": "chekced"}, "tasks.say: Input tag 'chekced' found using 'kind'"),
        ({"tasks.say.promt": "x"}, "unknown key 'tasks.say.promt'. Did you mean 'prompt'?"),
        ({"tasks.say.prompt": "{prompt"}, "a brace without its other half"),
        ({"tasks.say.prompt": "{promt}"}, "{promt}, which the rows have not. Did you mean 'prompt'?"),
        ({"tasks.say.path": "no.jsonl"}, "tasks.say.path: no file"),
        ({"tasks.say.limit": 1}, "task say: it has one item"),
        ({"tasks.say.cluster": "none"}, "no field 'none' to cluster by"),
        ({"tasks.say.answer": "reply"}, "no reply; there are id, prompt, answer, group"),
        ({"tasks.say.sampling.temperature": 0}, "2 samples at temperature 0 are the same reply"),
        ({"tasks.say.function": "no.py:f"}, "tasks.say.function: no file 'no.py'"),
        ({"tasks.say.function": "say.jsonl:f"}, "expected FILE.py:NAME"),
        (
            {"models.wren": {"path": "a", "answers": "b"}},
            "a model takes one of path, endpoint and answers; got path and answers",
        ),
        ({"models.wren": "no/such/model"}, "no model folder 'no/such/model'"),
        ({"models.old.answers": {"sya": "x"}}, "no file 'x'"),
        ({"reference": "pivto"}, "no model is called 'pivto'. Did you mean 'pivot'?"),
        ({"margins": {"say": -1}}, "margins.say is -1"),
        ({"margins": {"sya": 1}}, "no task is called 'sya'. Did you mean 'say'?"),
        ({"tasks": {}}, "expected at least one model and one task"),
        ({"tasks.pick": {"kind": "choice", "path": "say.jsonl"}}, "takes a model in this process"),
    ],
    ids=str,
)
def test_bad_recipes_are_one_line(
    consilience: Command, tree: dict[str, Any], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    for key, value in change.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node[parent]
        node[last] = value
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert answer.code == 2
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err


def test_another_recipe_does_not_go_on_with_a_run(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    tree["models"] = {"old": tree["models"]["old"]}
    assert consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run").code == 0
    tree["level"] = 0.9  # what decides no reply may change
    assert consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run").code == 0
    tree["tasks"]["say"]["sampling"]["temperature"] = 0.5
    refused = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert refused.code == 2
    assert "setting tasks.say.sampling.temperature was 1.0, now 0.5" in refused.err


def test_a_server_that_fails_half_the_time(consilience: Command, tree: dict[str, Any], tmp_path: Path) -> None:
    """Every item ends with a status, and nothing that was answered is asked again."""
    failing = {"Say lamp", "Say maps"}

    def behave(body: dict[str, Any], nth: int) -> Reply:
        said = body["messages"][-1]["content"]
        if said in failing:
            return Reply({"error": {"message": "<b>no</b>"}}, status=400)
        if said == "Say birds":
            return Reply(choices("", finish="content_filter"))
        return Reply(choices("It is " + said.split()[-1], finish="length" if said == "Say bread" else "stop"))

    tree["tasks"]["say"]["sampling"] = {}
    with fake_server(behave) as server:
        settings = {"url": server.url, "model": "asked", "retries": 0}
        tree["models"] = {"served": {"endpoint": settings}, "old": tree["models"]["old"]}
        tree["cache"] = str(tmp_path / "paid.sqlite")
        answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
        assert answer.code == 0, answer.err
        first = len(server.asked)
        served = answer.json["tasks"]["say"]["comparisons"]["contains"]["models"]["served"]
        assert served["statuses"] == {"scored": 3, "error": 2, "reply withheld by a filter, counted as wrong": 1}
        assert served["estimate"]["value"] == pytest.approx(3 / 4)
        strict = answer.json["tasks"]["say"]["comparisons"]["exact"]["models"]["served"]
        assert strict["statuses"]["reply cut off, counted as wrong"] == 1
        again = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "other", "--json")
        assert again.code == 0
        assert sorted(server.contents[first:]) == ["Say lamp", "Say maps"]  # what had no answer
        failing.clear()
        same = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
        assert len(server.asked) == first + 2  # a finished run asks nothing
        assert same.json["tasks"] == answer.json["tasks"]
        assert (
            same.json["notes"]
            == answer.json["notes"]
            == ["served: the server calls the model that answered m; asked for was asked"]
        )
        mended = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--retry", "--json").json
        assert sorted(server.contents[first + 2 :]) == ["Say lamp", "Say maps"]
        assert "error" not in mended["tasks"]["say"]["comparisons"]["exact"]["models"]["served"]["statuses"]


def test_what_the_budget_does_not_allow_is_asked_when_it_does(
    consilience: Command, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for two of six questions, four have no score; the same run goes on with more, at another pace."""
    monkeypatch.setenv("OTHER_KEY", "a key")
    tree["tasks"]["say"]["sampling"] = {"max_new_tokens": 8}
    usage = {"prompt_tokens": 100, "completion_tokens": 8}
    with fake_server(lambda body, nth: Reply(choices("It is lamp", usage=usage))) as server:
        settings = {"url": server.url, "model": "m", "concurrency": 1, "budget": {"tokens": 300}}
        tree["models"] = {"served": {"endpoint": settings}, "old": tree["models"]["old"]}
        first = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
        assert first.code == 0, first.err
        served = first.json["tasks"]["say"]["comparisons"]["contains"]["models"]["served"]
        assert served["statuses"] == {"scored": 2, "not asked: the budget was spent": 4}
        assert len(server.asked) == 2
        settings |= {"budget": {"tokens": 10_000}, "concurrency": 2, "timeout_s": 9, "retries": 1}
        settings |= {"requests_per_minute": 6000, "price": {"input": 1, "output": 2}, "api_key_env": "OTHER_KEY"}
        again = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run", "--json")
        assert again.code == 0, again.err
        served = again.json["tasks"]["say"]["comparisons"]["contains"]["models"]["served"]
        assert served["statuses"] == {"scored": 6}
        assert len(server.asked) == 6
        other = tree["models"]["served"]["endpoint"] | {"model": "another"}
        tree["models"]["served"]["endpoint"] = other
        refused = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
        assert refused.code == 2
        assert "models.served.endpoint.model was 'm', now 'another'" in refused.err


def test_a_missing_key_is_named_before_anything_is_asked(
    consilience: Command, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    tree["models"]["served"] = {
        "endpoint": {"url": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}
    }
    answer = consilience("evaluate", write(tmp_path, tree), "--out", tmp_path / "run")
    assert answer.code == 2
    assert "NO_SUCH_KEY is not set" in answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run" / "answers").exists()
