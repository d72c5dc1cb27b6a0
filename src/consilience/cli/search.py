"""`consilience search`: a thin door to `pipelines.search`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.options import AsJson
from consilience.errors import ConfigError

OF_RECIPES = {"recipe", "out", "overrides", "as_json"}


def search(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="The replies, JSONL. The same command goes on with what is there.")],
    recipe: Annotated[
        Path | None,
        typer.Argument(help="An experiment that compares searches (recipes/tiny-search.yaml); OUT a folder."),
    ] = None,
    model: Annotated[str, typer.Option(help="The large model: a folder or hub name. It is never trained.")] = "",
    prompts: Annotated[Path | None, typer.Option(help="JSONL, JSON or Parquet with 'prompt' or 'messages'.")] = None,
    guide: Annotated[
        str | None, typer.Option(metavar="TUNED:UNTUNED", help="The small pair: folders or hub names.")
    ] = None,
    method: Annotated[str, typer.Option(help="cbs | best-of-n | sample | eft | beam | aligntree")] = "cbs",
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
    engine: Annotated[str, typer.Option(help="Of the large model: transformers | vllm.")] = "transformers",
    engine_option: Annotated[
        list[str], typer.Option(metavar="KEY=VALUE", help="Of vllm.LLM, such as max_model_len=4096. May be repeated.")
    ] = [],  # noqa: B006
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="MODEL is behind this OpenAI-compatible server (.../v1).")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="The environment variable that holds the server's API key.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="With --endpoint: MODEL's, to continue replies by /completions.")
    ] = None,
    continue_by: Annotated[
        str, typer.Option(help="With --endpoint: auto | completions | continue_final_message | prefix.")
    ] = "auto",
    concurrency: Annotated[int, typer.Option(min=1, help="With --endpoint: requests at once.")] = 8,
    price: Annotated[
        str | None, typer.Option(metavar="IN:OUT", help="With --endpoint: of a million tokens, for the estimate.")
    ] = None,
    budget: Annotated[float | None, typer.Option(help="With --price: spend no more money than this.")] = None,
    budget_tokens: Annotated[int | None, typer.Option(help="With --endpoint: use no more tokens than this.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --endpoint: print what it may cost, and stop.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Search only the first so many prompts.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 | bfloat16 | float16")] = "float32",
    raw: Annotated[bool, typer.Option("--raw", help="Prompts are plain text to go on with: no chat template.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run the models' own code.")] = False,
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="Set one thing more: of the search, or of the recipe."),
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Make a frozen model better with two small ones: search its replies by what a small one gained in tuning."""
    from consilience.cli.progress import watching

    if recipe is not None:
        _refuse_beside_recipe(context)
        _experiment(recipe, out, overrides, as_json)
        return
    if not model or prompts is None:
        raise ConfigError("expected --model and --prompts, or a recipe.")
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
    server = _server(endpoint, model, api_key_env, concurrency, price, budget, budget_tokens)
    with watching() as on_progress:
        from consilience.config import override, parse
        from consilience.models import EngineSettings
        from consilience.models.endpoint import EndpointSettings
        from consilience.pipelines.search import SearchJob, estimate_file, search_file
        from consilience.search import SearchSettings

        job = SearchJob(
            model=model,
            guide=pair_of(guide),
            prompts=prompts,
            out=out,
            method=method,
            settings=parse(override(settings, overrides), SearchSettings, where="search"),
            seed=seed,
            batch=batch,
            limit=limit,
            dtype=dtype,
            raw=raw,
            trust_remote_code=trust_remote_code,
            endpoint=parse(server, EndpointSettings, where="--endpoint") if server else None,
            tokenizer=tokenizer,
            continue_by=continue_by,
            engine=parse(
                {"engine": engine, "engine_options": override({}, engine_option)}, EngineSettings, where="--engine"
            ),
        )
        if dry_run:
            print(estimate_file(job))
            return
        result = search_file(job, on_progress=on_progress, on_note=_note)
    print(json.dumps(result) if as_json else _lines(result))


def _refuse_beside_recipe(context: typer.Context) -> None:
    """Raises `ConfigError` for an option that a recipe would not heed."""
    given = [name for name in context.params if name not in OF_RECIPES and _is_given(context, name)]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"a recipe has its own models and settings. Leave out {flags}, or use --set KEY=VALUE.")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _experiment(recipe: Path, out: Path, overrides: list[str], as_json: bool) -> None:
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.pipelines.weak_to_strong import search_recipe

        found = search_recipe(recipe, out, overrides, on_progress=on_progress)
    print(json.dumps({"run": str(found.run.resolve())} | dict(found.results)) if as_json else found.table)


def _server(
    endpoint: str | None,
    model: str,
    api_key_env: str | None,
    concurrency: int,
    price: str | None,
    budget: float | None,
    budget_tokens: int | None,
) -> dict[str, Any] | None:
    """The settings of the server, as a recipe has them."""
    if endpoint is None:
        if any(option is not None for option in (api_key_env, price, budget, budget_tokens)):
            raise ConfigError("--api-key-env, --price, --budget and --budget-tokens are for a model behind --endpoint.")
        return None
    settings: dict[str, Any] = {"url": endpoint, "model": model, "api_key_env": api_key_env, "concurrency": concurrency}
    if price is not None:
        prices = price.split(":")
        try:
            settings["price"] = dict(zip(("input", "output"), map(float, prices), strict=True))
        except ValueError:
            raise ConfigError(f"--price {price!r}: expected IN:OUT, such as 0.5:1.5, of a million tokens.") from None
    if budget is not None or budget_tokens is not None:
        settings["budget"] = {"money": budget, "tokens": budget_tokens}
    return settings


def _note(note: str) -> None:
    print(f"search: {note}", file=sys.stderr, flush=True)


def pair_of(guide: str | None) -> tuple[str, str] | None:
    """The two of TUNED:UNTUNED. Raises `ConfigError`."""
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
    note += "".join(f"\nwhy      {name}: {why}" for name, why in sorted(result["why"].items()))
    note += f"\nspent    {result['spent']}" if "spent" in result else ""
    counted = f"prompts  {result['prompts']} ({result['searched']} searched now): {status}"
    return f"{counted}{score}{note}\nreplies  {result['out']}"
