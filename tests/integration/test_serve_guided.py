"""A guided server: what it sends is what the search finds, and only once it can no longer change."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import NAME, Running, chat, command, post, serving, until

from consilience.models import load_model
from consilience.records import Message
from consilience.rng import seed_of
from consilience.search import METHODS, Models, Prompt, SearchSettings, TreeModel

ASK = "Tell me line 1"
SHAPE = {"width": 3, "successors": 2, "chunk": 4}


@pytest.fixture(scope="module")
def pair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two models with one tokenizer, which is not that of `finch`; both write a little differently."""
    untuned = tmp_path_factory.mktemp("pair") / "untuned"
    shutil.copytree(world / "wren", untuned)
    weights = load_file(untuned / "model.safetensors")
    luck = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        weights[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=luck)
    save_file(weights, untuned / "model.safetensors", {"format": "pt"})
    return str(world / "wren"), str(untuned)


@pytest.fixture(scope="module")
def server(world: Path, pair: tuple[str, str]) -> Iterator[Running]:
    with serving(world / "finch", guide=pair, max_num_seqs=32, **SHAPE) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def searched(
    world: Path, pair: tuple[str, str], *, seed: int, raw: bool = False, text: str = ASK, **settings: Any
) -> str:
    """What the search itself finds."""
    large, tuned, untuned = (TreeModel(load_model(path)) for path in (world / "finch", *pair))
    wanted = SearchSettings(**SHAPE | {"max_new_tokens": 12, "temperature": 0.7, "top_k": 50} | settings)
    search, wanted = METHODS["cbs"](Models(large, tuned, untuned, raw=raw), wanted)
    search.add(Prompt("x", (Message("user", text),), seed_of(seed, "serve", "0"), stream="serve"), wanted)
    while search.under_way:
        result = search.advance()[0].result
    assert result is not None
    return result.replies[0].text


def test_a_reply_is_what_the_search_finds(client: openai.OpenAI, world: Path, pair: tuple[str, str]) -> None:
    asked: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": ASK}], "max_tokens": 12, "seed": 4}
    reply = client.chat.completions.create(**asked)
    assert reply.choices[0].message.content == searched(world, pair, seed=4)
    assert reply.usage is not None
    assert 0 < reply.usage.completion_tokens <= 12
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**asked, stream=True)]
    assert "".join(choice.delta.content or "" for choice in chunks) == reply.choices[0].message.content
    assert chunks[-1].finish_reason == reply.choices[0].finish_reason
    narrow = client.chat.completions.create(**asked, extra_body={"width": 1, "chunk": 6})
    assert narrow.choices[0].message.content == searched(world, pair, seed=4, width=1, chunk=6)
    assert narrow.choices[0].message.content != reply.choices[0].message.content


def test_width_one_streams_every_chunk(client: openai.OpenAI) -> None:
    extra = {"width": 1, "successors": 4, "chunk": 2}
    stream = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": ASK}], max_tokens=16, seed=1, stream=True, extra_body=extra
    )
    assert len([chunk for chunk in stream if chunk.choices[0].delta.content]) > 4


def test_texts_and_several_choices(client: openai.OpenAI, world: Path, pair: tuple[str, str]) -> None:
    two = client.completions.create(model=NAME, prompt=["The river", "A lamp"], max_tokens=12, seed=2, n=2)
    texts = [choice.text for choice in two.choices]
    assert len(set(texts)) == 4
    assert texts[0] == searched(world, pair, seed=2, raw=True, text="The river")


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"width": 0}, "width"),
        ({"successors": "many"}, "successors"),
        ({"width": 17, "successors": 2}, "width"),
        ({"n": 6}, "n"),
    ],
)
def test_what_a_search_cannot_do(server: Running, changes: dict[str, Any], param: str) -> None:
    refused = post(server.url, "chat/completions", chat(**changes))
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_a_prompt_of_tokens_and_one_too_long_for_the_guide(server: Running) -> None:
    tokens = post(server.url, "completions", {"model": NAME, "prompt": [5, 6]})
    assert (tokens.status_code, tokens.json()["error"]["param"]) == (400, "prompt")
    long = post(server.url, "completions", {"model": NAME, "prompt": "river " * 1000})  # wren has 1,024 positions
    assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "guide" in long.json()["error"]["message"]


def test_a_search_stops_when_the_client_goes_away(client: openai.OpenAI, server: Running) -> None:
    stream = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": ASK}], max_tokens=900, stream=True
    )
    next(iter(stream))
    until(lambda: server.load == (1, 0))
    stream.close()
    until(lambda: server.load == (0, 0))
    search = server.ready.engine.generator
    assert (search.under_way, search.hypotheses, search.chats.under_way) == ({}, {}, {})  # type: ignore[attr-defined]


def test_the_model_s_card_says_how_it_is_guided(server: Running, pair: tuple[str, str]) -> None:
    card = httpx.get(f"{server.url}/v1/models/{NAME}").json()
    assert card["guide"] == ":".join(pair)
    assert {name: card[name] for name in SHAPE} == SHAPE


def test_eft_and_best_of_n(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "finch", tmp_path / "other")
    pair = (str(world / "finch"), str(tmp_path / "other"))
    for method in ("eft", "best-of-n"):
        with serving(world / "finch", guide=pair, method=method, **SHAPE) as running:
            assert post(running.url, "chat/completions", chat()).status_code == 200
            refused = post(running.url, "chat/completions", chat(width=2))
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "width")


def test_what_stops_a_guided_server_before_it_listens(consilience: Callable[..., Any], world: Path) -> None:
    unlike = f"{world / 'wren'}:{world / 'finch'}"
    for words, says in (
        (("--guide", unlike), "have different tokenizers"),
        (("--guide", str(world / "wren")), "expected TUNED:UNTUNED"),
        (("--guide", unlike, "--width", "0"), "width"),
        (("--guide", unlike, "--method", "cbss"), "no search method is called 'cbss'. Did you mean 'cbs'?"),
        (
            ("--guide", unlike, "--method", "beam"),
            "There are: best-of-n, cbs, eft, sample.",
        ),  # beam and aligntree are not for a server
        (("--guide", f"{world / 'wren'}:{world / 'wren'}", "--width", "40"), "more than --max-num-seqs 64"),
        (("--method", "eft"), "--guide"),
    ):
        refused = consilience("serve", world / "finch", "--port", 0, *words)
        assert refused.code == 2, refused.err
        assert says in refused.err
        assert "Traceback" not in refused.err


def test_the_command(world: Path, pair: tuple[str, str]) -> None:
    words = (world / "finch", "--guide", ":".join(pair), "--served-model-name", NAME, "--chunk", "0", "--json")
    with command(*words) as (process, url):
        assert post(url, "chat/completions", chat()).json()["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert process.stderr is not None
        logged = [line for line in process.stderr.read().splitlines() if line.startswith("{")]
        assert "POST /v1/chat/completions" in json.loads(logged[-1])["message"]
