"""`consilience serve` as LangChain meets it: requests with fields of its own, and messages made of answers."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import NAME, Running, post, serving

pytestmark = pytest.mark.servers
langchain_openai = pytest.importorskip("langchain_openai", reason="make test-servers installs it")

ASK = "Tell me line 1"
ASKED: dict[str, Any] = {"model": NAME, "max_tokens": 12, "seed": 1, "temperature": 0.7}  # LangChain's own


@pytest.fixture(scope="module", params=["plain", "guided"])
def server(request: pytest.FixtureRequest, world: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    guide = {}
    if request.param == "guided":
        untuned = tmp_path_factory.mktemp("pair") / "untuned"
        shutil.copytree(world / "wren", untuned)
        guide = {"guide": (str(world / "wren"), str(untuned)), "width": 1, "successors": 2, "chunk": 3}
    with serving(world / "finch", **guide) as running:
        yield running


def client(kind: str, server: Running) -> Any:
    return getattr(langchain_openai, kind)(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False), **ASKED
    )


def test_a_chat_whole_and_streamed(server: Running) -> None:
    body = ASKED | {"messages": [{"role": "user", "content": ASK}]}
    expected = post(server.url, "chat/completions", body).json()
    chat = client("ChatOpenAI", server)
    whole = chat.invoke(ASK)
    assert whole.content == expected["choices"][0]["message"]["content"]
    assert whole.usage_metadata["output_tokens"] == expected["usage"]["completion_tokens"]
    assert whole.response_metadata["finish_reason"] == expected["choices"][0]["finish_reason"]
    chunks = list(chat.stream([("system", "Be brief."), ("human", ASK)]))
    assert len([chunk for chunk in chunks if chunk.content]) > 1
    assert "".join(chunk.content for chunk in chunks) == chat.invoke([("system", "Be brief."), ("human", ASK)]).content


def test_a_stream_that_counts(server: Running) -> None:
    chunks = list(client("ChatOpenAI", server).stream(ASK, stream_usage=True))
    total = sum(chunks[1:], chunks[0])
    assert total.usage_metadata["output_tokens"] > 0
    assert total.usage_metadata["total_tokens"] > total.usage_metadata["output_tokens"]


def test_a_text_whole_and_streamed(server: Running) -> None:
    expected = post(server.url, "completions", ASKED | {"prompt": "The river"}).json()["choices"][0]["text"]
    texts = client("OpenAI", server)
    assert texts.invoke("The river") == expected
    pieces = list(texts.stream("The river"))
    assert len([piece for piece in pieces if piece]) > 1
    assert "".join(pieces) == expected


def test_an_error_is_one_of_theirs(server: Running) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="This server has 'tiny'"):
        client("ChatOpenAI", server).bind(model="gpt-5").invoke(ASK)
