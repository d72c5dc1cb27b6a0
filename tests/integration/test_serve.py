"""`consilience serve` as OpenAI's own client, curl and a browser meet it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from serving import NAME, Running, chat, command, post, serving, until

from consilience import __version__
from consilience.serve.jobs import Served
from consilience.serve.start import ServeSettings, prepare

ASKED: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "Tell me line 1"}], "max_tokens": 12}
ENDLESS = {"max_tokens": 20_000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[Running]:
    with serving(world / "finch", max_num_seqs=16, max_waiting=4) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ASKED, seed=1)
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 12
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + 12
    again = client.chat.completions.create(**ASKED, seed=1)
    other = client.chat.completions.create(**ASKED, seed=2)
    assert again.choices[0].message.content == reply.choices[0].message.content != other.choices[0].message.content


def test_a_stream_is_the_whole_reply_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, seed=1, n=2)
    chunks = list(
        client.chat.completions.create(**ASKED, seed=1, n=2, stream=True, stream_options={"include_usage": True})
    )
    for index in (0, 1):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["length"]
    assert len(chunks) > 8
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    bare = list(client.chat.completions.create(**ASKED, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in bare)


def test_completions(client: openai.OpenAI) -> None:
    one = client.completions.create(model=NAME, prompt="The river", max_tokens=6, seed=3)
    assert one.object == "text_completion"
    assert one.choices[0].text
    two = client.completions.create(model=NAME, prompt=["The river", "A lamp"], max_tokens=6, seed=3, n=2)
    assert [choice.index for choice in two.choices] == [0, 1, 2, 3]
    assert two.choices[0].text == one.choices[0].text
    pieces = list(client.completions.create(model=NAME, prompt="The river", max_tokens=6, seed=3, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == one.choices[0].text
    default = client.completions.create(model=NAME, prompt="The river", extra_body={"ignore_eos": True})
    assert default.usage is not None
    assert default.usage.completion_tokens == 16


def test_a_prompt_of_tokens(client: openai.OpenAI, server: Running) -> None:
    ids = server.ready.served.tokenizer("The river")["input_ids"]
    text = client.completions.create(model=NAME, prompt="The river", temperature=0).choices[0].text
    assert client.completions.create(model=NAME, prompt=ids, temperature=0).choices[0].text == text
    assert client.completions.create(model=NAME, prompt=[ids], temperature=0).choices[0].text == text


def test_a_stop_never_shows(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, seed=1).choices[0].message.content or ""
    for stop in (whole[3:6], whole[4:5]):
        reply = client.chat.completions.create(**ASKED, seed=1, stop=[stop, "never there"]).choices[0]
        assert reply.message.content == whole[: whole.index(stop)]
        assert reply.finish_reason == "stop"
        stream = client.chat.completions.create(**ASKED, seed=1, stop=stop, stream=True)
        choices = [chunk.choices[0] for chunk in stream]
        assert "".join(choice.delta.content or "" for choice in choices) == whole[: whole.index(stop)]
        assert choices[-1].finish_reason == "stop"


def test_logprobs(client: openai.OpenAI) -> None:
    logprobs = client.chat.completions.create(**ASKED, temperature=0, logprobs=True, top_logprobs=3).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 12
    for token in logprobs.content:
        assert token.logprob == token.top_logprobs[0].logprob  # greedy: the likeliest is the one
        assert len(token.top_logprobs) == 3
    old = client.completions.create(model=NAME, prompt="The", max_tokens=4, logprobs=2, temperature=0).choices[0]
    assert old.logprobs is not None
    assert old.logprobs.tokens is not None
    assert len(old.logprobs.tokens) == len(old.logprobs.token_logprobs or ()) == 4
    assert all(len(likeliest) == 2 for likeliest in old.logprobs.top_logprobs or ())


def test_a_reply_can_be_continued(client: openai.OpenAI, server: Running) -> None:
    """What vLLM calls `continue_final_message`: the prompt is the chat's text up to there, and no more."""
    messages = [*ASKED["messages"], {"role": "assistant", "content": "The river"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    tokenizer = server.ready.served.tokenizer
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert prompt.endswith("assistant\nThe river")
    expected = client.completions.create(
        model=NAME, prompt=prompt, temperature=0, max_tokens=6, extra_body={"add_special_tokens": False}
    )
    reply = client.chat.completions.create(model=NAME, messages=messages, temperature=0, max_tokens=6, extra_body=extra)
    assert reply.choices[0].message.content == expected.choices[0].text
    assert reply.usage == expected.usage


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "consilience"
    with pytest.raises(openai.NotFoundError) as none:
        client.models.retrieve("gpt-5")
    assert none.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="This server has 'tiny'"):
        client.chat.completions.create(**ASKED | {"model": "gpt-5"})


def test_many_at_once_with_the_async_client(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:

            async def one(seed: int) -> str:
                stream = await client.chat.completions.create(**ASKED, seed=seed, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, (1, 2, 3, 1)))

    texts = asyncio.run(ask())
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_hugging_face_s_own_client(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads streams by itself, without the openai package."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # which forbids loopback, too
    client = InferenceClient(base_url=f"{server.url}/v1", api_key="none")
    asked = {"messages": ASKED["messages"], "model": NAME, "max_tokens": 12, "seed": 1}
    whole = client.chat_completion(**asked)
    chunks = list(client.chat_completion(**asked, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12


def test_work_stops_when_the_client_goes_away(client: openai.OpenAI, server: Running) -> None:
    before = server.ready.metrics.outcomes["cancelled"]
    stream = client.chat.completions.create(**ASKED | ENDLESS, stream=True)
    next(iter(stream))
    until(lambda: server.load == (1, 0))
    stream.close()
    until(lambda: server.load == (0, 0))
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.3).chat.completions.create(**ASKED | ENDLESS)
    until(lambda: server.load == (0, 0))
    assert server.ready.metrics.outcomes["cancelled"] == before + 2
    assert client.chat.completions.create(**ASKED).choices


def test_more_than_may_wait_are_told_to_come_back(client: openai.OpenAI, server: Running) -> None:
    waiting = [client.chat.completions.create(**ASKED | ENDLESS, n=16, stream=True) for _ in range(5)]
    until(lambda: server.load == (1, 4))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(**ASKED)
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert refused.value.code == "queue_full"
    for stream in waiting:
        stream.close()
    until(lambda: server.load == (0, 0))


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "water " * 40_000}]
    with pytest.raises(openai.BadRequestError, match="maximum context length is 32768 tokens") as refused:
        client.chat.completions.create(**ASKED | {"messages": long})
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as too_much:
        client.chat.completions.create(**ASKED | {"max_tokens": 32_768})
    assert too_much.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": ["a", 1]}, "stop[1]"),
        ({"stop": ""}, "stop"),
        ({"seed": 2**70}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"presence_penalty": False}, "presence_penalty"),
        ({"temprature": 1}, "temprature"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"stream_options": {"usage": True}}, "stream_options.usage"),
        ({"width": 4}, "width"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"model": None}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_refused_by_name(server: Running, changes: dict[str, Any], param: str) -> None:
    body = json.dumps(chat(**changes))
    answer = httpx.post(
        f"{server.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}, timeout=30
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (error["param"] or "").startswith(param)
    assert "\n" not in error["message"]


def test_a_misspelt_parameter_is_told_its_name(server: Running) -> None:
    message = post(server.url, "chat/completions", chat(temprature=1)).json()["error"]["message"]
    assert "Did you mean 'temperature'?" in message


def test_what_asks_for_nothing_is_accepted(server: Running) -> None:
    """Clients send these by default."""
    nothing = {
        "tools": None, "tool_choice": "auto", "response_format": {"type": "text"}, "logit_bias": {}, "user": "me",
        "presence_penalty": 0, "frequency_penalty": 0.0, "store": False, "metadata": {"a": "b"}, "stop": None,
        "parallel_tool_calls": True, "service_tier": "auto", "stream": False, "n": None, "seed": None,
    }  # fmt: skip
    assert post(server.url, "chat/completions", chat(**nothing)).status_code == 200
    echoed = [
        *ASKED["messages"],
        {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "audio": None},
    ]
    parts = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "then?"}],
            "name": "Ann",
        }
    ]
    assert post(server.url, "chat/completions", chat(messages=echoed + parts)).status_code == 200
    assert (
        post(server.url, "completions", {"model": NAME, "prompt": "x", "best_of": 1, "echo": False}).status_code == 200
    )


def test_paths_and_methods_that_are_not_there(server: Running) -> None:
    for method, path, status in (("GET", "/v1/embeddings", 404), ("GET", "/", 404), ("GET", "/v1/completions", 405)):
        answer = httpx.request(method, server.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == ("unknown_url" if status == 404 else "method_not_supported")


def test_bodies_that_are_none(server: Running) -> None:
    url, kind = f"{server.url}/v1/chat/completions", {"content-type": "application/json"}
    for body, says in ((b"", "not JSON"), (b"{", "not JSON"), (b"[]", "an object"), (b"\xff{}", "not UTF-8"),
                       (b'{"n": NaN}', "NaN"), (b'{"n": 1' + b"0" * 5000 + b"}", "cannot be read"),
                       (b"[" * 200_000, "nested too deeply")):  # fmt: skip
        answer = httpx.post(url, content=body, headers=kind)
        assert answer.status_code == 400
        assert says in answer.json()["error"]["message"]
    assert httpx.post(url, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert httpx.post(url, content=b" " * (9 << 20), headers=kind).status_code == 413


def test_bodies_that_are_too_slow_or_too_large(world: Path) -> None:
    def strict(served: Served) -> Served:
        return replace(served, body_bytes=1000, body_timeout_s=0.3)

    with serving(world / "finch", served=strict) as running:
        kind = {"content-type": "application/json"}
        large = httpx.post(f"{running.url}/v1/completions", content=b" " * 1001, headers=kind)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")

        def drip() -> Iterator[bytes]:
            for _ in range(10):
                time.sleep(0.1)
                yield b" "

        slow = httpx.post(f"{running.url}/v1/completions", content=drip(), headers=kind)
        assert slow.status_code == 408
        assert post(running.url, "chat/completions", chat()).status_code == 200


def test_health_and_metrics(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200
    text = httpx.get(f"{server.url}/metrics").text
    assert 'consilience_requests_total{outcome="finished"}' in text
    counts = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert all(float(value) >= 0 for value in counts.values())
    bucket = 'consilience_request_seconds_bucket{le="+Inf"}'
    assert counts[bucket] == counts["consilience_request_seconds_count"]


def test_pages_of_other_origins_and_rebound_names(server: Running) -> None:
    url = f"{server.url}/v1/models"
    port = url.split(":")[2].split("/")[0]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert httpx.get(url, headers={"host": host}).status_code == 200
    rebound = httpx.get(url, headers={"host": f"evil.example:{port}"})
    assert (rebound.status_code, rebound.json()["error"]["code"]) == (403, "unknown_host")
    for origin in ("https://evil.example", "null", f"http://localhost:{int(port) + 1}"):
        foreign = httpx.get(url, headers={"origin": origin})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "unknown_origin")
        assert "access-control-allow-origin" not in foreign.headers
    assert httpx.get(url, headers={"origin": server.url}).status_code == 200


def test_a_key_and_pages_that_may_call(world: Path) -> None:
    guard = {"key": "secret", "origins": ["https://app.example"]}
    with serving(world / "finch", guard=guard) as running:
        with pytest.raises(openai.AuthenticationError) as refused:
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0).models.list()
        assert refused.value.code == "invalid_api_key"
        assert httpx.get(f"{running.url}/v1/models").status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
        assert openai.OpenAI(base_url=f"{running.url}/v1", api_key="secret").models.list().data
        page = {"origin": "https://app.example", "authorization": "Bearer secret"}
        allowed = httpx.get(f"{running.url}/v1/models", headers=page)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        asks = {"origin": "https://app.example", "access-control-request-method": "POST"}
        assert httpx.options(f"{running.url}/v1/chat/completions", headers=asks).status_code == 204
        assert httpx.get(f"{running.url}/v1/models", headers=page | {"host": "any.example"}).status_code == 200


def test_a_request_that_takes_too_long(world: Path) -> None:
    with serving(world / "finch", request_timeout_s=0.5) as running:
        late = post(running.url, "chat/completions", chat(max_tokens=20_000, ignore_eos=True))
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
            with pytest.raises(openai.APIError, match="longer than the server allows"):
                list(client.chat.completions.create(**ASKED | ENDLESS, stream=True))
        assert running.load == (0, 0)


def test_paths_that_vllm_s_server_has_beside_openai_s(world: Path) -> None:
    with serving(world / "finch", guard={"key": "secret"}) as running:
        assert httpx.get(f"{running.url}/ping").status_code == httpx.post(f"{running.url}/ping").status_code == 200
        assert httpx.get(f"{running.url}/version").json() == {"version": __version__}


@pytest.mark.parametrize(("asked", "got"), [("auto", "bfloat16"), ("half", "float16"), ("float", "float32")])
def test_names_of_number_formats_that_vllm_has(world: Path, tmp_path: Path, asked: str, got: str) -> None:
    shutil.copytree(world / "finch", tmp_path / "finch")
    config = json.loads((tmp_path / "finch" / "config.json").read_text())
    (tmp_path / "finch" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    ready = prepare(ServeSettings(model=str(tmp_path / "finch"), dtype=asked))
    assert str(ready.engine.generator.chat_model.model.dtype) == f"torch.{got}"  # type: ignore[attr-defined]


def test_a_model_without_chat_template(world: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(world / "finch", bare)
    (bare / "chat_template.jinja").unlink()
    with serving(bare) as running:
        refused = post(running.url, "chat/completions", chat())
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "no_chat_template")
        assert post(running.url, "completions", {"model": NAME, "prompt": "The river"}).status_code == 200


def test_a_step_that_fails_is_a_500_and_the_server_goes_on(world: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(world / "finch") as running:
        generator = running.ready.engine.generator
        step = generator.step
        generator.step = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        failed = post(running.url, "chat/completions", chat())
        assert (failed.status_code, failed.json()["error"]["type"]) == (500, "server_error")
        assert "ZeroDivisionError" in caplog.text
        generator.step = step  # type: ignore[method-assign]
        assert post(running.url, "chat/completions", chat()).status_code == 200


def test_the_command_with_curl_and_its_end(world: Path) -> None:
    env = os.environ | {"MY_KEY": "s3cret"}
    words = (world / "finch", "--served-model-name", NAME, "--api-key-env", "MY_KEY", "--no-access-log")
    with command(*words, env=env) as (process, url):
        curl = ["curl", "-sS", "-N", f"{url}/v1/chat/completions", "-H", "Authorization: Bearer s3cret"]
        curl += ["-H", "Content-Type: application/json", "-d", json.dumps(chat(stream=True))]
        lines = subprocess.run(curl, check=True, capture_output=True, text=True).stdout.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        events = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        assert events[0]["choices"][0]["delta"]["role"] == "assistant"
        assert events[-1]["choices"][0]["finish_reason"] in ("length", "stop")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0)
        stream = client.chat.completions.create(
            **ASKED | {"max_tokens": 300}, extra_body={"ignore_eos": True}, stream=True
        )
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        rest = list(stream)  # what is in progress may finish
        assert first.choices
        assert rest[-1].choices[0].finish_reason == "length"
        assert process.wait(15) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_the_line_to_try_works_as_it_stands(world: Path, tmp_path: Path) -> None:
    awkward = tmp_path / "the finch's model"
    shutil.copytree(world / "finch", awkward)
    with command(awkward, "--api-key-env", "MY_KEY", env=os.environ | {"MY_KEY": "s3cret"}) as (process, _):
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("try      curl ")
        shell = ["bash", "-c", line.removeprefix("try      ").replace("curl", "curl -sS", 1)]
        tried = subprocess.run(shell, check=True, capture_output=True, text=True, env=os.environ | {"MY_KEY": "s3cret"})
        reply = json.loads(tried.stdout)
        assert reply["model"] == str(awkward)
        assert 0 < reply["usage"]["completion_tokens"] <= 64


def test_whoever_cannot_wait_says_so_twice(world: Path) -> None:
    words = (world / "finch", "--served-model-name", NAME, "--grace", "600", "--no-access-log")
    with command(*words) as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = iter(client.chat.completions.create(**ASKED | ENDLESS, stream=True))
        next(stream)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "stopping: 1 request may finish within 600 s; Ctrl-C once more ends them" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert process.wait(15) == 0
        assert "Traceback" not in process.stderr.read()


def test_the_end_of_the_grace_time(world: Path) -> None:
    with command(world / "finch", "--served-model-name", NAME, "--grace", "1") as (process, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        stream = iter(client.chat.completions.create(**ASKED | ENDLESS, stream=True))
        next(stream)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert process.wait(15) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_without_the_extra_packages(
    consilience: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, world: Path
) -> None:
    monkeypatch.setattr("consilience.cli.serve.find_spec", lambda name: None)
    refused = consilience("serve", world / "finch")
    assert refused.code == 2
    assert "pip install 'consilience[serve]'" in refused.err


def test_what_stops_the_command_before_it_listens(consilience: Callable[..., Any], world: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = consilience("serve", world / "finch", "--port", other.getsockname()[1])
    assert (taken.code, taken.err.count("\n")) == (2, 1)
    assert "is taken by another program" in taken.err
    for words, says in (
        ((tmp_path / "nothing",), "cannot load the tokenizer"),
        ((world / "finch", "--api-key-env", "UNSET_KEY"), "UNSET_KEY"),
        ((world / "finch", "--host", "no.such.host.invalid"), "no host is called"),
        ((world / "finch", "--dtype", "float12"), "no dtype is called"),
        ((world / "finch", "--max-model-len", "1"), "--max-model-len"),
        ((world / "finch", "--max-num-seqs", "0"), "--max-num-seqs"),
        ((world / "finch", "--generation-config", "vllm"), "--generation-config"),
        ((world / "finch", "--request-timeout", "nan"), "--request-timeout is nan; it must be above 0"),
        ((world / "finch", "--max-waiting", "-1"), "--max-waiting is -1; it must be above 0"),
    ):
        refused = consilience("serve", *words, "--port", 0)
        assert refused.code == 2, refused.err
        assert says in refused.err
        assert "Traceback" not in refused.err
