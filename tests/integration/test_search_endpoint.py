"""`consilience search --endpoint`: the large model is behind a server, ours or one that does as a test says."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import NAME, Running, serving

from consilience.models import load_model
from consilience.models.endpoint import Request
from consilience.models.endpoint.server import Server
from consilience.search import SearchSettings
from consilience.search.blackbox import cost_of
from fake_endpoint import Reply, fake_server

LETTERS = "abcdefgh "


@pytest.fixture(scope="module")
def pair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    untuned = tmp_path_factory.mktemp("pair") / "untuned"
    shutil.copytree(world / "wren", untuned)
    weights = load_file(untuned / "model.safetensors")
    luck = torch.Generator().manual_seed(0)
    weights = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=luck) for name, tensor in weights.items()}
    save_file(weights, untuned / "model.safetensors", {"format": "pt"})
    return world / "wren", untuned


@pytest.fixture
def command(pair: tuple[Path, Path], tmp_path: Path, consilience: Callable[..., Any]) -> Callable[..., Any]:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"id": id_, "prompt": f"Tell me {id_}"}) + "\n" for id_ in "xyz"))

    def run(url: str, **changes: Any) -> Any:
        options = {
            "endpoint": url, "model": NAME, "guide": f"{pair[0]}:{pair[1]}", "prompts": prompts,
            "out": tmp_path / "replies.jsonl", "width": 2, "successors": 3, "chunk": 4, "max-new-tokens": 12,
        } | {key.replace("_", "-"): value for key, value in changes.items()}  # fmt: skip
        words = [[f"--{key}", *([value] if value != "" else [])] for key, value in options.items() if value is not None]
        return consilience("search", *(word for several in words for word in several))

    run.out = tmp_path / "replies.jsonl"  # type: ignore[attr-defined]
    return run


def rows(command: Callable[..., Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command.out.read_text().splitlines()]  # type: ignore[attr-defined]


def letters(body: dict[str, Any], nth: int) -> Reply:
    """A model whose tokens are letters: a reply goes on after what is there, and ends at its tenth letter."""
    chat = "messages" in body
    last = body["messages"][-1] if chat else {"role": "assistant", "content": body["prompt"].rpartition("[/INST]")[2]}
    reply = last["content"] if last["role"] == "assistant" else ""
    luck = random.Random(f"{body['seed']}")
    choices = []
    for index in range(body.get("n", 1)):
        text = "".join(luck.choices(LETTERS, k=min(body["max_tokens"], 10 - len(reply))))
        finish = "stop" if len(reply) + len(text) == 10 else "length"
        shown = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choices.append({"index": index, "finish_reason": finish} | shown)
    tokens = sum(len(c["message"]["content"] if chat else c["text"]) for c in choices)
    usage = {"prompt_tokens": 7 + len(reply), "completion_tokens": tokens, "total_tokens": 7 + len(reply) + tokens}
    return Reply({"object": "x", "model": NAME, "choices": choices, "usage": usage})


def scored(world: Path, pair: tuple[Path, Path], question: str, reply: str) -> float:
    """log π_tuned − log π_untuned of a reply and its end of text, by transformers alone."""
    found = []
    for path in pair:
        model = load_model(path)
        tokenizer = model.tokenizer
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(prompt + reply)["input_ids"] + [tokenizer.eos_token_id]
        begin = len(tokenizer(prompt)["input_ids"])
        with torch.no_grad():
            logprobs = model.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[i - 1, ids[i]]) for i in range(begin, len(ids))))
    return found[0] - found[1]


def test_what_is_asked_and_what_comes_of_it(command: Callable[..., Any], world: Path, pair: tuple[Path, Path]) -> None:
    with fake_server(letters) as server:
        answer = command(server.url, tokenizer=world / "pivot", stop="zz", batch=1)
    assert answer.code == 0, answer.err
    assert [row["id"] for row in rows(command)] == ["x", "y", "z"]
    for row in rows(command):
        reply = row["messages"][-1]["content"]
        assert (len(reply), row["tokens"], row["status"], row["chunks"]) == (10, 10, "stop", 3)
        assert row["score"] == pytest.approx(scored(world, pair, f"Tell me {row['id']}", reply), abs=2e-4)
        assert all(row["score"] >= other["score"] for other in row["others"])
    of_x = [asked.body for asked in server.asked if asked.body["prompt"].startswith("[INST] Tell me x [/INST]")]
    assert [body["n"] for body in of_x] == [6, 3, 3, 3, 3]  # W·K of the bare prompt, then K of each of W
    assert {asked.path for asked in server.asked} == {"/v1/completions"}
    assert all((body["max_tokens"], body["stop"], body["top_k"]) == (4, ["zz"], 50) for body in of_x)
    beginnings = [body["prompt"].rpartition("[/INST]")[2] for body in of_x]
    assert [len(text) for text in beginnings] == [0, 4, 4, 8, 8]
    assert all(any(later.startswith(text) for text in beginnings[1:3]) for later in beginnings[3:])
    assert rows(command)[0]["messages"][-1]["content"][:8] in beginnings[3:]
    assert len({body["seed"] for body in of_x}) == 5
    assert "at most 15 calls in 3 rounds" in answer.err
    assert "spent    15 calls" in answer.out


def test_chats_are_gone_on_with_where_the_server_says_so(command: Callable[..., Any]) -> None:
    def knows_prefix(body: dict[str, Any], nth: int) -> Reply:
        if "continue_final_message" in body:
            return Reply({"error": {"message": "Unrecognized request argument", "type": "invalid_request_error"}}, 400)
        if body["max_tokens"] == 1:  # the probe
            told = body["messages"][-1].get("prefix")
            usage = {"prompt_tokens": 9 if told else 12, "completion_tokens": 1, "total_tokens": 10}
            choice = {"index": 0, "message": {"role": "assistant", "content": " four"}, "finish_reason": "length"}
            return Reply({"model": NAME, "choices": [choice], "usage": usage})
        return letters(body, nth)

    with fake_server(knows_prefix) as server:
        answer = command(server.url)
    assert answer.code == 0, answer.err
    last = [asked.body["messages"][-1] for asked in server.asked if len(asked.body["messages"]) > 1][-1]
    assert last["role"] == "assistant"
    assert last["prefix"] is True
    assert [row["status"] for row in rows(command)] == ["stop"] * 3


def test_a_server_that_refuses_a_reply_at_the_end_except_as_a_prefix(command: Callable[..., Any]) -> None:
    """As Mistral's does: what goes on with `prefix` needs no other proof."""

    def strict(body: dict[str, Any], nth: int) -> Reply:
        last = body["messages"][-1]
        if "continue_final_message" in body or (last["role"] == "assistant" and not last.get("prefix")):
            return Reply({"error": {"message": "Expected last role User", "type": "invalid_request_error"}}, 400)
        return letters(body | {"seed": body.get("seed", 0)}, nth)

    with fake_server(strict) as server:
        answer = command(server.url)
    assert answer.code == 0, answer.err
    assert [row["status"] for row in rows(command)] == ["stop"] * 3


def test_a_budget_that_is_spent_before_it_is_known_how_to_go_on(command: Callable[..., Any]) -> None:
    """The first call may cost 9 bytes, 128 of a template and 24 tokens, and says it took 31; the question costs 222."""
    with fake_server(letters) as server:
        answer = command(server.url, limit=1, budget_tokens=200, json="")
    assert answer.code == 2
    assert answer.json["status"] == {"over_budget": 1}
    assert "With a larger budget the same command goes on" in answer.err


def test_a_server_that_begins_anew_is_not_searched_behind(command: Callable[..., Any]) -> None:
    def ignores(body: dict[str, Any], nth: int) -> Reply:
        return letters(body | {"seed": 1, "messages": body["messages"][:1]}, nth)

    with fake_server(ignores) as server:
        answer = command(server.url)
        assert answer.code == 2
        assert "does not go on with the beginning of a reply" in answer.err
        assert command(server.url, chunk=0, out=command.out.with_name("whole.jsonl")).code == 0  # type: ignore[attr-defined]


def silent(body: dict[str, Any], nth: int) -> Reply:
    """The same model behind a server that does not say how many tokens it read and wrote."""
    answer = letters(body | {"seed": body.get("seed", 0)}, nth).body
    assert isinstance(answer, dict)
    return Reply({key: value for key, value in answer.items() if key != "usage"})


def test_a_server_that_states_no_usage_is_not_believed_to_go_on(command: Callable[..., Any]) -> None:
    with fake_server(silent) as server:
        for _ in range(2):  # the second time from the cache
            answer = command(server.url)
            assert answer.code == 2
            assert "states no usage, so it cannot be told whether it goes on" in answer.err
            assert "--continue-by continue_final_message" in answer.err
        answer = command(server.url, continue_by="continue_final_message", json="")
    assert answer.code == 0, answer.err
    assert answer.json["tokens"] is None
    found = [(row["tokens"], row["prompt_tokens"], row["status"]) for row in rows(command)]
    assert found == [(None, None, "stop")] * 3


def test_what_a_server_does_otherwise_is_said_after_a_resume_too(command: Callable[..., Any], world: Path) -> None:
    with fake_server(lambda body, nth: letters(body | {"n": 1}, nth)) as server:
        first = command(server.url, tokenizer=world / "pivot", json="")
        again = command(server.url, tokenizer=world / "pivot", json="")
    assert (first.code, again.code, again.json["searched"]) == (0, 0, 0)
    assert first.json["notes"] == again.json["notes"] == ["the server ignores n: it is asked once for each sample"]


def test_a_server_without_n_is_asked_for_every_sample(command: Callable[..., Any], world: Path) -> None:
    def one(body: dict[str, Any], nth: int) -> Reply:
        return letters(body | {"n": 1}, nth)

    with fake_server(one) as server:
        answer = command(server.url, tokenizer=world / "pivot", limit=1, concurrency=1)
    assert answer.code == 0, answer.err
    assert "ignores n: it is asked once for each sample" in answer.err
    assert len(server.asked) == 6 + 6 + 6
    assert rows(command)[0]["tokens"] == 10


def test_a_server_without_top_k_is_asked_without_it(command: Callable[..., Any], world: Path) -> None:
    def strict(body: dict[str, Any], nth: int) -> Reply:
        if "top_k" in body:
            message = "Unrecognized request argument supplied: top_k"
            return Reply({"error": {"message": message, "type": "invalid_request_error"}}, 400)
        return letters(body, nth)

    with fake_server(strict) as server:
        answer = command(server.url, tokenizer=world / "pivot", json="")
    assert answer.code == 0, answer.err
    assert answer.json["status"] == {"stop": 3}
    assert answer.json["notes"] == ["the server refuses top_k: it draws among all tokens"]


def test_samples_that_are_all_alike_are_noticed(command: Callable[..., Any], world: Path) -> None:
    def greedy(body: dict[str, Any], nth: int) -> Reply:
        choice = {"finish_reason": "stop", "text": "the same words"}
        choices = [choice | {"index": index} for index in range(body["n"])]
        return Reply({"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 3 * body["n"]}})

    with fake_server(greedy) as server:
        answer = command(server.url, tokenizer=world / "pivot", chunk=0)
    assert answer.code == 0, answer.err
    assert answer.err.count("6 samples of the same beginning are all alike") == 1
    assert rows(command)[0]["tokens"] == 3


def test_what_gets_no_answer_has_a_status_and_is_asked_again(command: Callable[..., Any], world: Path) -> None:
    broken = True

    def behave(body: dict[str, Any], nth: int) -> Reply:
        if broken and "Tell me y" in body["prompt"] and len(body["prompt"]) > 30:
            return Reply({"error": {"message": "no", "type": "x"}}, 422)
        return letters(body, nth)

    with fake_server(behave) as server:
        answer = command(server.url, tokenizer=world / "pivot", json="")
        assert answer.code == 0, answer.err
        assert answer.json["status"] == {"stop": 2, "api_error": 1}
        assert "HTTP 422: no" in rows(command)[1]["why"]
        before, broken = len(server.asked), False
        again = command(server.url, tokenizer=world / "pivot", json="")
        assert again.json["status"] == {"stop": 3}
        assert [row["id"] for row in rows(command)] == ["x", "y", "z"]
        assert len(server.asked) - before <= 4  # the first chunk of y was answered already


def test_no_reply_at_all_is_a_failure(command: Callable[..., Any], world: Path) -> None:
    with fake_server(lambda body, nth: Reply({"error": {"message": "no", "type": "x"}}, 422)) as server:
        answer = command(server.url, tokenizer=world / "pivot", json="")
    assert answer.code == 2
    assert "no prompt has a reply (3 in all). The first: HTTP 422: no. The same command asks again." in answer.err
    assert answer.json["status"] == {"api_error": 3}
    assert [row["status"] for row in rows(command)] == ["api_error"] * 3


def test_a_url_that_lacks_its_end(command: Callable[..., Any], ours: Running) -> None:
    answer = command(ours.url, concurrency=1)
    assert answer.code == 2
    assert f"does not answer: HTTP 404: no such path: /chat/completions (model 'tiny' at {ours.url})." in answer.err
    assert f"The base of most servers ends in /v1: try {ours.url}/v1." in answer.err
    mended = command(f"{ours.url}/v1")  # the same --out: there is no reply yet that other settings had made
    assert mended.code == 0, mended.err
    assert "was made with other settings" in command(f"{ours.url}/v1", seed=3).err


def test_a_web_page_is_no_answer_and_not_asked_for_again(command: Callable[..., Any], world: Path) -> None:
    with fake_server(lambda body, nth: Reply(b"<!doctype html><p>Hello</p>")) as server:
        answer = command(server.url, tokenizer=world / "pivot", concurrency=1)
    assert answer.code == 2
    assert "does not answer: the answer is a web page, and no JSON. The same command" in answer.err
    assert len(server.asked) == 1


def test_nobody_listens(command: Callable[..., Any], world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is said at once; after a request's last attempt no other prompt is asked."""
    attempts = []

    def ask(server: Server, request: Request, n: int) -> Any:
        attempts.append(request)
        return asks(server, request, n)

    asks = Server.ask
    monkeypatch.setattr(Server, "ask", ask)
    monkeypatch.setattr("consilience.models.endpoint.client.backoff_s", lambda attempt, **how: 0.001)
    with fake_server(letters) as server:
        url = server.url
    answer = command(url, tokenizer=world / "pivot", batch=1, json="")
    assert answer.code == 2
    assert answer.err.count("cannot be reached ([Errno 111] Connection refused); trying again for") == 1
    assert f"{NAME} at {url} does not answer: {url} cannot be reached" in answer.err
    assert answer.json["status"] == {"api_error": 3}
    assert len(attempts) == 7  # one prompt's, of three


def test_a_budget(command: Callable[..., Any], world: Path) -> None:
    with fake_server(letters) as server:
        options = {"tokenizer": world / "pivot", "price": "1:2", "batch": 1, "json": ""}
        answer = command(server.url, budget_tokens=400, **options)
        assert answer.code == 2
        assert "With a larger budget the same command goes on from here" in answer.err
        assert answer.json["status"] == {"stop": 2, "over_budget": 1}
        assert "0.000864 in money" in answer.err  # 432 tokens in at 1 (3 prompts of 24), 216 out at 2, for a million
        more = command(server.url, budget_tokens=4000, **options)
    assert (more.code, more.json["status"]) == (0, {"stop": 3})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "eft"}, "needs the large model itself"),
        ({"mode": "published"}, "--mode published"),
        ({"continue_by": "telepathy"}, "no way to continue a reply is called 'telepathy'"),
        ({"continue_by": "completions"}, "Give --tokenizer"),
        ({"price": "cheap"}, "expected IN:OUT"),
        ({"budget": 3}, "Give --price IN:OUT as well"),
        ({"api_key_env": "UNSET_KEY_OF_A_SERVER"}, "UNSET_KEY_OF_A_SERVER is not set"),
        ({"endpoint": "ftp://x"}, "expected the base of an HTTP API"),
        ({"endpoint": None, "price": "1:1"}, "--price is for a model behind --endpoint"),
    ],
)
def test_what_is_refused(command: Callable[..., Any], changes: dict[str, Any], says: str) -> None:
    answer = command("http://127.0.0.1:9/v1", **changes)
    assert answer.code == 2
    assert says in answer.err
    assert "Traceback" not in answer.err


def test_a_dry_run_asks_nobody(command: Callable[..., Any]) -> None:
    answer = command("http://127.0.0.1:9/v1", dry_run="")
    assert answer.code == 0
    assert answer.out.startswith("about 15 calls in 3 rounds, ")  # without the tokenizer it is no bound
    assert not command.out.exists()  # type: ignore[attr-defined]


def test_the_cost_by_hand() -> None:
    """T = 12, L = 4: C = 3 chunks. Prompts of 10 and 20 tokens, W = 2, K = 3."""
    cost = cost_of(SearchSettings(width=2, successors=3, chunk=4, max_new_tokens=12), [10, 20])
    assert cost.rounds == 3
    assert cost.calls == 2 * (1 + 2 * 2)
    assert cost.input_tokens == (10 + 2 * (14 + 18)) + (20 + 2 * (24 + 28))
    assert cost.output_tokens == 2 * 2 * 3 * 12
    whole = cost_of(SearchSettings(width=1, successors=8, chunk=None, max_new_tokens=12), [10])
    assert (whole.calls, whole.input_tokens, whole.output_tokens) == (1, 10, 96)


@pytest.fixture(scope="module")
def ours(world: Path) -> Iterator[Running]:
    with serving(world / "finch", max_num_seqs=16) as running:
        yield running


@pytest.mark.parametrize("way", ["auto", "completions"])
def test_behind_our_own_server(command: Callable[..., Any], ours: Running, world: Path, way: str) -> None:
    tokenizer = world / "finch" if way == "completions" else None
    answer = command(f"{ours.url}/v1", tokenizer=tokenizer, json="")
    assert answer.code == 0, answer.err
    assert sum(answer.json["status"].get(status, 0) for status in ("stop", "length")) == 3
    assert answer.json["notes"] == []
    assert all(row["prompt_tokens"] > 10 and row["score"] is not None for row in rows(command))
    again = command(f"{ours.url}/v1", tokenizer=tokenizer, json="", out=command.out.with_name("again.jsonl"))  # type: ignore[attr-defined]
    assert again.json["mean_score"] == pytest.approx(answer.json["mean_score"], abs=1e-4)  # seeds are kept to
