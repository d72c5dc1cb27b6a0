"""`consilience serve` under load on loopback, beside transformers' own `generate` and `transformers serve`.

    python benchmarks/bench_serve.py [--clients 1 8 32 200] [--tokens 64] [--width 256] [--layers 4] [--peer] [--json]

A random Llama; every client streams one chat completion of `--tokens` tokens (the peer's may end earlier), all at once,
`--rounds` rounds for each number of clients. The server is a process of its own, with one thread for its sums; its CPU
seconds and memory are the kernel's. `generate` writes as many replies in batches of at most 64, like the server, here:
the floor, without HTTP, queue or text. `--peer` asks `transformers serve` likewise.

`--json`: one object as the last line: per number of clients {"lost", "cpu_s", "generate_cpu_s", "cpu_ratio",
"tokens_per_cpu_s", "first_token_s", "between_tokens_s", "rss_growth_bytes", "peer_cpu_s", "peer_lost"}. Times to the
first token and between tokens are medians over clients, and include waiting for a place in the batch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import httpx
from rich.console import Console
from rich.table import Table

SIDE_BY_SIDE = 64
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
QUESTION = "Tell me of the river, the hills and the sea."
Json = dict[str, Any]


class Server(NamedTuple):
    url: str
    model: str
    pid: int
    more: Json  # fields of requests that this server knows

    @property
    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    @property
    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE


class Heard(NamedTuple):
    """What one client got: seconds from its request to each piece of text; how it ended."""

    at: list[float]
    finish: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32, 200])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_model(model, asked)
        floors = {clients: generate_cpu_s(model, clients, asked.tokens) for clients in asked.clients}
        with ours(model, Path(folder)) as server:
            found = {clients: measure(server, clients, asked) for clients in asked.clients}
        for clients, floor in floors.items():
            found[clients] |= {"generate_cpu_s": floor, "cpu_ratio": found[clients]["cpu_s"] / floor}
        if asked.peer:
            with peer(model, Path(folder)) as server:
                for clients in asked.clients:
                    theirs = measure(server, clients, asked)
                    found[clients] |= {"peer_cpu_s": theirs["cpu_s"], "peer_lost": theirs["lost"]}
    Console(width=150).print(table_of(found))
    if asked.json:
        print(json.dumps({str(clients): one for clients, one in found.items()}))


def make_model(folder: Path, asked: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

    from consilience.pipelines.tiny import tokenizers
    from consilience.pipelines.tiny.world import draw_chats
    from consilience.rng import stream

    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    chats = draw_chats("zorg", 500, stream(0, "bench"))
    tokenizer = tokenizers.byte_level(chats, 620, tokenizers.CHATML, special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=asked.width,
        intermediate_size=3 * asked.width,
        num_hidden_layers=asked.layers,
        num_attention_heads=max(1, asked.width // 64),
        num_key_value_heads=max(1, asked.width // 128),
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def generate_cpu_s(folder: Path, clients: int, tokens: int) -> float:
    """CPU seconds of transformers' `generate` for as many sampled replies, in batches like the server's."""
    import torch

    from consilience.chat import render_prompt
    from consilience.models import load_model
    from consilience.records import Message

    torch.set_num_threads(1)
    model = load_model(folder)
    ids = torch.from_numpy(render_prompt(model.tokenizer, [Message("user", QUESTION)])).long()[None]
    begun = time.process_time()
    for first in range(0, clients, SIDE_BY_SIDE):
        batch = ids.repeat(min(SIDE_BY_SIDE, clients - first), 1)
        mask = torch.ones_like(batch)
        model.model.generate(
            batch, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=True, top_k=0
        )
    return time.process_time() - begun


def measure(server: Server, clients: int, asked: argparse.Namespace) -> Json:
    asyncio.run(round_of(server, clients, asked.tokens))  # buffers grow to their size
    cpu_s, rss = server.cpu_s, server.rss_bytes
    heard = [one for _ in range(asked.rounds) for one in asyncio.run(round_of(server, clients, asked.tokens))]
    cpu_s = (server.cpu_s - cpu_s) / asked.rounds
    whole = [one for one in heard if one.at and one.finish in ("length", "stop")]
    gaps = [later - earlier for one in whole for earlier, later in zip(one.at, one.at[1:])]
    return {
        "lost": len(heard) - len(whole),
        "cpu_s": cpu_s,
        "tokens_per_cpu_s": clients * asked.tokens / cpu_s,
        "first_token_s": median(one.at[0] for one in whole) if whole else None,
        "between_tokens_s": median(gaps) if gaps else None,
        "rss_growth_bytes": server.rss_bytes - rss,
    }


async def round_of(server: Server, clients: int, tokens: int) -> list[Heard]:
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as http:
        return await asyncio.gather(*(ask(http, server, tokens, seed) for seed in range(clients)))


async def ask(http: httpx.AsyncClient, server: Server, tokens: int, seed: int) -> Heard:
    body: Json = {"model": server.model, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    body |= {"max_tokens": tokens, "seed": seed, "temperature": 1.0} | server.more
    begun, at, finish = time.monotonic(), [], ""
    try:
        async with http.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    choices = json.loads(line[6:]).get("choices")
                    if choices and choices[0].get("delta", {}).get("content"):
                        at.append(time.monotonic() - begun)
                    finish = (choices and choices[0].get("finish_reason")) or finish
    except httpx.HTTPError:
        finish = "lost"
    return Heard(at, finish)


@contextmanager
def ours(model: Path, folder: Path) -> Iterator[Server]:
    words = ["consilience.cli", "serve", str(model), "--served-model-name", "bench", "--no-access-log"]
    words += ["--max-num-seqs", str(SIDE_BY_SIDE)]
    with started(words, "bench", folder / "ours.log", {"ignore_eos": True}) as server:
        yield server


@contextmanager
def peer(model: Path, folder: Path) -> Iterator[Server]:
    words = ["transformers.cli.transformers", "serve", str(model), "--device", "cpu", "--log-level", "error"]
    with started(words, str(model), folder / "peer.log", {}) as server:
        yield server


@contextmanager
def started(words: list[str], model: str, log: Path, more: Json) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as output:
        line = [sys.executable, "-m", *words, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(line, stdout=output, stderr=output, env=env)
    try:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 120
        while not answers(url):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(log.read_text(errors="replace")[-2000:])
            time.sleep(0.2)
        yield Server(url, model, process.pid, more)
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def table_of(found: dict[int, Json]) -> Table:
    names = {
        "lost": "lost", "cpu_s": "CPU s", "cpu_ratio": "of generate's", "tokens_per_cpu_s": "tokens / CPU s",
        "first_token_s": "first token s", "between_tokens_s": "between tokens s", "rss_growth_bytes": "memory grew by",
        "peer_cpu_s": "transformers serve CPU s", "peer_lost": "its lost",
    }  # fmt: skip
    table = Table(title="consilience serve")
    table.add_column("clients", justify="right")
    shown = [name for name in names if any(name in one for one in found.values())]
    for name in shown:
        table.add_column(names[name], justify="right")
    for clients, one in found.items():
        table.add_row(str(clients), *(f"{one[name]:.4g}" if one.get(name) is not None else "-" for name in shown))
    return table


if __name__ == "__main__":
    main()
