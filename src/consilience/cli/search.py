"""`consilience search`: a thin door to `pipelines.search`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import typer

from consilience.cli import search_options as of
from consilience.cli.given import given, refuse
from consilience.cli.options import AsJson, pair_of
from consilience.errors import BackendError, ConfigError
from consilience.search.shape import CHUNK, SUCCESSORS, WIDTH

OF_RECIPES = ("recipe", "out", "overrides", "as_json")


def search(
    context: typer.Context,
    out: of.Out,
    recipe: of.Recipe = None,
    model: of.Model = "",
    prompts: of.Prompts = None,
    guide: of.GuidePair = None,
    seed: of.Seed = 0,
    batch: of.Batch = 8,
    limit: of.Limit = None,
    dtype: of.Dtype = "float32",
    raw: of.Raw = False,
    trust_remote_code: of.TrustRemoteCode = False,
    overrides: of.Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    as_json: AsJson = False,
    method: of.Method = "cbs",
    mode: of.Mode = "default",
    width: of.Width = WIDTH,
    successors: of.Successors = SUCCESSORS,
    chunk: of.Chunk = CHUNK,
    max_new_tokens: of.MaxNewTokens = 512,
    temperature: of.Temperature = 0.7,
    top_k: of.TopK = 50,
    top_p: of.TopP = 1.0,
    stop: of.Stop = [],  # noqa: B006
    beta: of.Beta = 1.0,
    engine: of.Engine = "transformers",
    engine_option: of.EngineOption = [],  # noqa: B006
    endpoint: of.Endpoint = None,
    api_key_env: of.ApiKeyEnv = None,
    tokenizer: of.Tokenizer = None,
    continue_by: of.ContinueBy = "auto",
    concurrency: of.Concurrency = 8,
    price: of.Price = None,
    budget: of.MoneyBudget = None,
    budget_tokens: of.TokenBudget = None,
    dry_run: of.DryRun = False,
) -> None:
    """Make a frozen model better with two small ones: search its replies by what a small one gained in tuning."""
    from consilience.cli.progress import watching

    if recipe is not None:
        _refuse_beside_recipe(context)
        _experiment(recipe, out, overrides, as_json)
        return
    if not model or prompts is None:
        raise ConfigError("expected --model and --prompts, or a recipe.")
    if endpoint is None:
        refuse(given(context, of.OF_A_SERVER), "for a model behind --endpoint. Give its URL.")
    with watching() as on_progress:
        from consilience.pipelines.search import SearchJob, estimate_file, search_file

        job = SearchJob(
            model=model,
            guide=pair_of(guide),
            prompts=prompts,
            out=out,
            method=method,
            settings=of.search_settings(context.params),
            seed=seed,
            batch=batch,
            limit=limit,
            dtype=dtype,
            raw=raw,
            trust_remote_code=trust_remote_code,
            endpoint=of.endpoint_settings(context.params),
            tokenizer=tokenizer,
            continue_by=continue_by,
            engine=of.engine_settings(context.params),
        )
        if dry_run:
            print(estimate_file(job))
            return
        result = search_file(job, on_progress=on_progress, on_note=_note)
    print(json.dumps(result) if as_json else _lines(result), flush=True)
    if result["gave_up"]:
        raise BackendError(result["gave_up"])


def _refuse_beside_recipe(context: typer.Context) -> None:
    """Raises `ConfigError` for an option that a recipe would not heed."""
    flags = given(context, [name for name in context.params if name not in OF_RECIPES])
    if flags:
        raise ConfigError(
            f"a recipe has its own models and settings. Leave out {', '.join(flags)}, or use --set KEY=VALUE."
        )


def _experiment(recipe: Path, out: Path, overrides: list[str], as_json: bool) -> None:
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.pipelines.weak_to_strong import search_recipe

        found = search_recipe(recipe, out, overrides, on_progress=on_progress)
    print(json.dumps({"run": str(found.run.resolve())} | dict(found.results)) if as_json else found.table)


def _note(note: str) -> None:
    print(f"search: {note}", file=sys.stderr, flush=True)


def _lines(result: dict[str, Any]) -> str:
    status = ", ".join(f"{count} {name}" for name, count in sorted(result["status"].items()))
    score = "" if result["mean_score"] is None else f"\nscore    {result['mean_score']:.3f} nats on average"
    slow = [name for name, cached in result.get("cached", {}).items() if not cached]
    note = f"\nnote     no prefix cache for {', '.join(slow)}: its texts are read anew for every token" if slow else ""
    note += "".join(f"\nwhy      {name}: {why}" for name, why in sorted(result["why"].items()))
    note += f"\nspent    {result['spent']}" if "spent" in result else ""
    counted = f"prompts  {result['prompts']} ({result['searched']} searched now): {status}"
    return f"{counted}{score}{note}\nreplies  {result['out']}"
