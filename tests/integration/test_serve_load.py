"""Two hundred clients at once: everyone gets their own reply, and memory stays where it was."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import httpx
from serving import Running, chat, serving

CLIENTS = 200
SEEDS = 20
GROWTH_BYTES = 24 << 20  # allowed from one round of all clients to the next


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def ask(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> tuple[str, str]:
    """The reply and how it ended, as streamed."""
    text, finish = [], ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=chat(stream=True, **body)) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    for line in lines:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        text.append(choice["delta"].get("content", ""))
        finish = choice["finish_reason"] or finish
    return "".join(text), finish


def rounds_of(running: Running, clients: int, rounds: int, **body: Any) -> list[list[tuple[str, str]]]:
    """What every client got in each round; the memory held stays the same after the second."""

    async def all_of_them() -> list[tuple[str, str]]:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=120, limits=limits) as http:
            bodies = ({"seed": i % SEEDS, "max_tokens": 6 + i % SEEDS} | body for i in range(clients))
            return await asyncio.gather(*(ask(http, running.url, body) for body in bodies))

    found, sizes = [], []
    for _ in range(rounds):
        found.append(asyncio.run(all_of_them()))
        gc.collect()
        sizes.append(rss_bytes())
    assert running.load == (0, 0)
    assert running.ready.metrics.outcomes["finished"] == rounds * clients
    assert sizes[-1] - sizes[1] < GROWTH_BYTES
    for replies in found:
        assert len(replies) == clients
        # The same seed gives the same reply whoever else is in the batch; another seed another one.
        assert replies == replies[:SEEDS] * (clients // SEEDS) == found[0]
        assert len({text for text, _ in replies[:SEEDS]}) == SEEDS
    return found


def test_two_hundred_at_once(world: Path) -> None:
    with serving(world / "finch", max_num_seqs=32, max_waiting=CLIENTS) as running:
        found = rounds_of(running, CLIENTS, 3, ignore_eos=True)
    assert {finish for replies in found for _, finish in replies} == {"length"}


def test_many_searches_at_once(world: Path) -> None:
    pair = (str(world / "wren"), str(world / "wren"))
    settings = {"width": 2, "successors": 2, "max_num_seqs": 32, "max_waiting": CLIENTS}
    with serving(world / "finch", guide=pair, **settings) as running:
        rounds_of(running, 2 * SEEDS, 3)
