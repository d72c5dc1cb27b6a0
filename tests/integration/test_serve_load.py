"""Two hundred clients at once: everyone gets their own reply, and memory stays where it was."""

from __future__ import annotations

import asyncio
import gc
import json
from pathlib import Path

import httpx
from serving import Running, chat, serving

CLIENTS = 200
SEEDS = 20
GROWTH_BYTES = 24 << 20  # allowed from one round of all clients to the next


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


async def ask(client: httpx.AsyncClient, url: str, seed: int) -> tuple[str, str]:
    """The reply and how it ended, as streamed."""
    text, finish = [], ""
    body = chat(stream=True, seed=seed, max_tokens=6 + seed, ignore_eos=True)
    async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines.pop() == "data: [DONE]"
    for line in lines:
        choice = json.loads(line.removeprefix("data: "))["choices"][0]
        text.append(choice["delta"].get("content", ""))
        finish = choice["finish_reason"] or finish
    return "".join(text), finish


def round_of_clients(running: Running) -> list[tuple[str, str]]:
    async def all_of_them() -> list[tuple[str, str]]:
        limits = httpx.Limits(max_connections=CLIENTS)
        async with httpx.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, running.url, i % SEEDS) for i in range(CLIENTS)))

    return asyncio.run(all_of_them())


def test_two_hundred_at_once(world: Path) -> None:
    with serving(world / "finch", max_num_seqs=32, max_waiting=CLIENTS) as running:
        rounds = []
        sizes = []
        for _ in range(3):
            rounds.append(round_of_clients(running))
            gc.collect()
            sizes.append(rss_bytes())
        assert running.load == (0, 0)
        assert running.ready.metrics.outcomes["finished"] == 3 * CLIENTS
    for replies in rounds:
        assert len(replies) == CLIENTS
        assert {finish for _, finish in replies} == {"length"}
        # The same seed gives the same reply whoever else is in the batch; another seed another one.
        assert replies == replies[:SEEDS] * (CLIENTS // SEEDS) == rounds[0]
        assert len({text for text, _ in replies[:SEEDS]}) == SEEDS
    assert sizes[2] - sizes[1] < GROWTH_BYTES
