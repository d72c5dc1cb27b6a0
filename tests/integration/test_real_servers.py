"""The client and the judges against two servers that are not ours: transformers serve, and llama.cpp's in Python.

Both run one tiny checkpoint of the test world, so that what they say can be compared with the model in this process.
"""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from consilience.chat import render_prompt
from consilience.judge import JudgeSettings, open_judge
from consilience.models import Prompt, ReplyStatus, Sampling, load_model
from consilience.models.endpoint import Endpoint, EndpointSettings, Request, Status, samples
from consilience.models.local import LocalAnswerer
from consilience.records import Message
from gguf_file import write_gguf

pytestmark = pytest.mark.servers
QUESTIONS = [f"Tell me line {i}: The river" for i in range(12)]


class Server(NamedTuple):
    """A server that answers as `model` at `url`, and its process."""

    url: str
    model: str
    process: subprocess.Popen[bytes]

    def endpoint(self, cache: Path | None = None, **more: Any) -> Endpoint:
        settings = EndpointSettings(url=self.url, model=self.model, concurrency=2, timeout_s=120, retries=1)
        return Endpoint(settings.model_copy(update=more), cache=cache)


@contextmanager
def running(words: list[str], model: str, log: Path) -> Iterator[Server]:
    """Starts a server on a free port and waits until it lists its models."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port)],
            stdout=output,
            stderr=output,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield Server(f"http://127.0.0.1:{port}/v1", model, process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def transformers_serve(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = str(world / "finch")
    log = tmp_path_factory.mktemp("serve") / "log"
    with running(["transformers.cli.transformers", "serve", model, "--device", "cpu"], model, log) as server:
        yield server


@pytest.fixture(scope="module")
def llama_cpp(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("llama")
    write_gguf(world / "finch", folder / "finch.gguf")
    words = ["llama_cpp.server", "--model", str(folder / "finch.gguf"), "--n_ctx", "1024", "--n_threads", "1"]
    words += ["--logits_all", "True", "--model_alias", "finch"]
    with running(words, "finch", folder / "log") as server:
        yield server


@pytest.fixture(params=["transformers_serve", "llama_cpp"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(request.param)
    return found


def greedy(question: str, **more: Any) -> Request:
    return Request(messages=(Message("user", question),), temperature=0.0, **({"max_tokens": 8} | more))


def test_greedy_replies_are_those_of_the_model_in_this_process(server: Server, world: Path) -> None:
    chat_model = load_model(world / "finch")
    requests = [greedy(question) for question in QUESTIONS]
    # llama.cpp's own default is 1.1; transformers serve refuses fields that it does not know.
    extra = {"repeat_penalty": 1.0} if server.model == "finch" else {}
    asked = [replace(request, extra=extra) for request in requests]
    with server.endpoint() as endpoint:
        answers = endpoint.ask(asked)
        spent = endpoint.spent
    assert {answer.status for answer in answers} <= {Status.OK, Status.TRUNCATED}
    ours = LocalAnswerer(chat_model).ask(requests)
    # transformers serve trims what Python takes for blanks.
    assert [answer.text.strip() for answer in answers] == [answer.text.strip() for answer in ours]
    assert len({answer.text for answer in ours}) > 1
    prompts = [render_prompt(chat_model.tokenizer, request.messages) for request in requests]
    assert (spent.calls, spent.lost, spent.prompt_tokens) == (len(QUESTIONS), 0, sum(map(len, prompts)))


def test_nothing_is_asked_twice_even_when_the_server_is_gone(server: Server, tmp_path: Path) -> None:
    requests = [greedy(question) for question in QUESTIONS]
    with server.endpoint(tmp_path / "a.sqlite") as endpoint:
        first = endpoint.ask(requests)
    with server.endpoint(tmp_path / "a.sqlite", timeout_s=0.001, retries=0) as endpoint:  # no server is as fast
        again = endpoint.ask([*requests, greedy("another")])
        assert endpoint.spent.calls == len(requests)
    assert [answer.text for answer in again[:-1]] == [answer.text for answer in first]
    assert all(answer.cached for answer in again[:-1])
    assert again[-1].status == Status.API_ERROR


def test_a_server_without_n_is_found_out(server: Server) -> None:
    with server.endpoint() as endpoint:
        answers = endpoint.ask(samples(greedy(QUESTIONS[0]), 3))
        assert len(answers) == 3
        assert endpoint.spent.calls == 3
        assert "the server ignores n: it is asked once for each sample" in endpoint.notes


def test_stop_and_max_tokens_and_plain_text(server: Server) -> None:
    with server.endpoint() as endpoint:
        whole, short, plain = endpoint.ask(
            [greedy(QUESTIONS[0]), greedy(QUESTIONS[0], max_tokens=2), Request(prompt="The river", max_tokens=3)]
        )
    assert whole.completion_tokens in (8, 9)
    assert (short.status, short.completion_tokens) in [(Status.TRUNCATED, 2), (Status.TRUNCATED, 3)]
    assert plain.status in (Status.OK, Status.TRUNCATED)


def test_an_endpoint_samples(server: Server) -> None:
    prompts = [Prompt(str(i), (Message("user", question),)) for i, question in enumerate(QUESTIONS[:4])]
    sampling = Sampling(temperature=1.0, samples=2, max_new_tokens=4, seed=1)
    with server.endpoint() as endpoint:
        replies = list(endpoint.sample(prompts, sampling))
    assert sorted((reply.id, reply.sample) for reply in replies) == [(str(i), k) for i in range(4) for k in range(2)]
    assert {reply.status for reply in replies} <= {ReplyStatus.OK, ReplyStatus.TRUNCATED, ReplyStatus.EMPTY}


def test_log_probabilities_of_llama_cpp_are_those_of_the_model(llama_cpp: Server, world: Path) -> None:
    requests = [greedy(question, max_tokens=1, top_logprobs=10) for question in QUESTIONS]
    local = LocalAnswerer(load_model(world / "finch"))
    with llama_cpp.endpoint() as endpoint:
        answers = endpoint.ask(requests)
    compared = 0
    for theirs, ours in zip(answers, local.ask(requests), strict=True):
        assert theirs.tokens is not None
        assert ours.tokens is not None
        known = dict(ours.tokens[0].top)
        for text, logprob in theirs.tokens[0].top:
            if text in known and text.isascii() and text:
                assert logprob == pytest.approx(known[text], abs=2e-3)
                compared += 1
    assert compared > 60


def test_a_judge_behind_llama_cpp_is_the_judge_in_this_process(llama_cpp: Server, world: Path) -> None:
    prompts, firsts, seconds = QUESTIONS, [f"a lamp {i}" for i in range(12)], [f"seven birds {i}" for i in range(12)]
    endpoint = {"url": llama_cpp.url, "model": llama_cpp.model, "concurrency": 1, "retries": 1}
    settings = JudgeSettings.model_validate({"kind": "weighted_pair", "endpoint": endpoint, "top_logprobs": 10})
    with open_judge(settings) as judge:
        theirs = judge.compares()(prompts, firsts, seconds)
    with open_judge(JudgeSettings(kind="weighted_pair", model=str(world / "finch"), top_logprobs=10)) as judge:
        ours = judge.compares()(prompts, firsts, seconds)
    assert [one.state for one in theirs] == [one.state for one in ours]
    for one, other in zip(theirs, ours, strict=True):
        assert (one.value or math.nan) == pytest.approx(other.value or math.nan, abs=1e-3, nan_ok=True)


def test_a_weighing_judge_behind_transformers_serve_says_what_is_missing(transformers_serve: Server) -> None:
    endpoint = {"url": transformers_serve.url, "model": transformers_serve.model, "retries": 1}
    with open_judge(JudgeSettings.model_validate({"kind": "weighted_pair", "endpoint": endpoint})) as judge:
        (judgment,) = judge.compares()(["q"], ["a"], ["b"])
    assert (judgment.state, judgment.reason) == ("unparsed", "the server gave no log-probabilities")


@pytest.mark.parametrize("kind", ["pair", "rating"])
def test_an_explaining_judge_ends_with_a_state(kind: str, server: Server) -> None:
    endpoint = {"url": server.url, "model": server.model, "retries": 1, "concurrency": 2}
    settings = JudgeSettings.model_validate({"kind": kind, "endpoint": endpoint, "max_tokens": 6})
    with open_judge(settings) as judge:
        found = judge.compares()(QUESTIONS[:3], ["a"] * 3, ["b"] * 3)
    # The tiny model writes no marks: that is a state, and no verdict.
    assert [(one.state, one.value) for one in found] == [("unparsed", None)] * 3


def test_a_wrong_model_is_said_by_the_server(transformers_serve: Server) -> None:
    with transformers_serve.endpoint(model="no/such-model", retries=0) as endpoint:
        (answer,) = endpoint.ask([greedy("q")])
    assert answer.status == Status.API_ERROR
    assert answer.reason
