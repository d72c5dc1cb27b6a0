"""`consilience search`: a thin door to `pipelines.search`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.errors import ConfigError


def search(
    out: Annotated[Path, typer.Option(help="The replies, JSONL. The same command goes on with what is there.")],
    model: Annotated[str, typer.Option(help="The large model: a folder or hub name. It is never trained.")],
    prompts: Annotated[Path, typer.Option(help="JSONL, JSON or Parquet with 'prompt' or 'messages'.")],
    guide: Annotated[
        str | None, typer.Option(metavar="TUNED:UNTUNED", help="The small pair: folders or hub names.")
    ] = None,
    method: Annotated[str, typer.Option(help="cbs | best-of-n | sample | eft")] = "cbs",
    mode: Annotated[str, typer.Option(help="default | published: the published algorithm with its quirks")] = "default",
    width: Annotated[int, typer.Option(help="W: hypotheses kept.")] = 4,
    successors: Annotated[int, typer.Option(help="K: continuations of each.")] = 4,
    chunk: Annotated[int, typer.Option(help="L: tokens to a continuation; 0 is the whole reply.")] = 5,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the reply at most.")] = 512,
    temperature: Annotated[float, typer.Option(help="Of the large model; 0 takes the likeliest token.")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Draw among so many likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens that hold this share.")] = 1.0,
    stop: Annotated[list[str], typer.Option(help="A text that ends a reply. May be repeated.")] = [],  # noqa: B006 (typer reads the default, nobody changes it)
    beta: Annotated[float, typer.Option(help="Of eft: the weight of the pair's logits.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of every draw.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Prompts under way at once; changes no reply.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Search only the first so many prompts.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 | bfloat16 | float16")] = "float32",
    raw: Annotated[bool, typer.Option("--raw", help="Prompts are plain text to go on with: no chat template.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the models' own code.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Make a frozen model better with two small ones: search its replies by what a small one gained in tuning."""
    from consilience.cli.progress import watching

    settings = {
        "width": width,
        "successors": successors,
        "chunk": chunk or None,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "stop": tuple(stop),
        "mode": mode,
        "beta": beta,
    }
    with watching() as on_progress:
        from consilience.config import parse
        from consilience.pipelines.search import SearchJob, search_file
        from consilience.search import SearchSettings

        job = SearchJob(
            model=model,
            guide=_pair(guide),
            prompts=prompts,
            out=out,
            method=method,
            settings=parse(settings, SearchSettings, where="search"),
            seed=seed,
            batch=batch,
            limit=limit,
            dtype=dtype,
            raw=raw,
            trust_remote_code=trust_remote_code,
        )
        result = search_file(job, on_progress=on_progress)
    print(json.dumps(result) if as_json else _lines(result))


def _pair(guide: str | None) -> tuple[str, str] | None:
    if guide is None:
        return None
    tuned, colon, untuned = guide.partition(":")
    if not (tuned and colon and untuned):
        raise ConfigError(f"--guide {guide!r}: expected TUNED:UNTUNED, two folders or hub names.")
    return tuned, untuned


def _lines(result: dict[str, Any]) -> str:
    status = ", ".join(f"{count} {name}" for name, count in sorted(result["status"].items()))
    score = "" if result["mean_score"] is None else f"\nscore    {result['mean_score']:.3f} nats on average"
    slow = [name for name, cached in result.get("cached", {}).items() if not cached]
    note = f"\nnote     no prefix cache for {', '.join(slow)}: its texts are read anew for every token" if slow else ""
    counted = f"prompts  {result['prompts']} ({result['searched']} searched now): {status}"
    return f"{counted}{score}{note}\nreplies  {result['out']}"
