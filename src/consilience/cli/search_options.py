"""The options of `consilience search` in their groups, and what the groups amount to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consilience.errors import ConfigError

if TYPE_CHECKING:
    from consilience.models import EngineSettings
    from consilience.models.endpoint import EndpointSettings
    from consilience.search import SearchSettings

Options = Mapping[str, Any]  # by the names of the command's parameters

# -- what is searched, and with whom
Recipe = Annotated[
    Path | None,
    typer.Argument(help="An experiment that compares searches (recipes/tiny-search.yaml); OUT a folder."),
]
Out = Annotated[Path, typer.Option(help="The replies, JSONL. The same command goes on with what is there.")]
Model = Annotated[str, typer.Option(help="The large model: a folder or hub name. It is never trained.")]
Prompts = Annotated[Path | None, typer.Option(help="JSONL, JSON or Parquet with 'prompt' or 'messages'.")]
GuidePair = Annotated[str | None, typer.Option(metavar="TUNED:UNTUNED", help="The small pair: folders or hub names.")]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Batch = Annotated[int, typer.Option(min=1, help="Prompts under way at once; changes no reply.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Search only the first so many prompts.")]
Dtype = Annotated[str, typer.Option(help="float32 | bfloat16 | float16")]
Raw = Annotated[bool, typer.Option("--raw", help="Prompts are plain text to go on with: no chat template.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Run the models' own code.")]
Overrides = Annotated[
    list[str], typer.Option("--set", metavar="KEY=VALUE", help="Set one thing more: of the search, or of the recipe.")
]

# -- the search
SEARCH = "The search"
Method = Annotated[str, typer.Option(rich_help_panel=SEARCH, help="cbs | best-of-n | sample | eft | beam | aligntree")]
Mode = Annotated[
    str, typer.Option(rich_help_panel=SEARCH, help="default | published: the published algorithm with its quirks")
]
Width = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="W: hypotheses kept.")]
Successors = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="K: continuations of each.")]
Chunk = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="L: tokens to a continuation; 0 is the whole reply.")]
MaxNewTokens = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="Tokens of the reply at most.")]
Temperature = Annotated[
    float, typer.Option(rich_help_panel=SEARCH, help="Of the large model; 0 takes the likeliest token.")
]
TopK = Annotated[int, typer.Option(rich_help_panel=SEARCH, help="Draw among so many likeliest tokens; 0: all.")]
TopP = Annotated[
    float, typer.Option(rich_help_panel=SEARCH, help="Draw among the likeliest tokens that hold this share.")
]
Stop = Annotated[list[str], typer.Option(rich_help_panel=SEARCH, help="A text that ends a reply. May be repeated.")]
Beta = Annotated[float, typer.Option(rich_help_panel=SEARCH, help="Of eft: the weight of the pair's logits.")]

# -- an engine of the large model, on this machine
ENGINE = "A large model under vLLM"
Engine = Annotated[str, typer.Option(rich_help_panel=ENGINE, help="Of the large model: transformers | vllm.")]
EngineOption = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=ENGINE,
        metavar="KEY=VALUE",
        help="Of vllm.LLM, such as max_model_len=4096. May be repeated.",
    ),
]

# -- a large model behind a server
SERVER = "A large model behind a server"
Endpoint = Annotated[
    str | None,
    typer.Option(rich_help_panel=SERVER, metavar="URL", help="MODEL is behind this OpenAI-compatible server (.../v1)."),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=SERVER, metavar="NAME", help="The environment variable that holds the server's API key."
    ),
]
Tokenizer = Annotated[
    str | None, typer.Option(rich_help_panel=SERVER, help="MODEL's, to continue replies by /completions.")
]
ContinueBy = Annotated[
    str, typer.Option(rich_help_panel=SERVER, help="auto | completions | continue_final_message | prefix.")
]
Concurrency = Annotated[int, typer.Option(rich_help_panel=SERVER, min=1, help="Requests at once.")]
Price = Annotated[
    str | None,
    typer.Option(rich_help_panel=SERVER, metavar="IN:OUT", help="Of a million tokens, for the estimate."),
]
MoneyBudget = Annotated[
    float | None, typer.Option(rich_help_panel=SERVER, help="With --price: spend no more money than this.")
]
TokenBudget = Annotated[int | None, typer.Option(rich_help_panel=SERVER, help="Use no more tokens than this.")]
DryRun = Annotated[bool, typer.Option("--dry-run", rich_help_panel=SERVER, help="Print what it may cost, and stop.")]
OF_A_SERVER = (
    "api_key_env", "tokenizer", "continue_by", "concurrency", "price", "budget", "budget_tokens", "dry_run",
)  # fmt: skip


def search_settings(options: Options) -> SearchSettings:
    """How is searched, `--set` included. Raises `ConfigError`."""
    from consilience.config import override, parse
    from consilience.search import SearchSettings

    names = SearchSettings.model_fields.keys() & options.keys()
    tree = {name: options[name] for name in names}
    tree |= {"chunk": options["chunk"] or None, "stop": options["stop"] or ()}
    return parse(override(tree, options["overrides"] or ()), SearchSettings, where="search")


def engine_settings(options: Options) -> EngineSettings:
    """What runs the large model on this machine. Raises `ConfigError`."""
    from consilience.config import override, parse
    from consilience.models import EngineSettings

    tree = {"engine": options["engine"], "engine_options": override({}, options["engine_option"] or ())}
    return parse(tree, EngineSettings, where="--engine")


def endpoint_settings(options: Options) -> EndpointSettings | None:
    """The server of the large model, None where it has none. Raises `ConfigError`."""
    from consilience.config import parse
    from consilience.models.endpoint import EndpointSettings

    if options["endpoint"] is None:
        return None
    tree = {name: options[name] for name in ("model", "api_key_env", "concurrency")} | {"url": options["endpoint"]}
    if options["price"] is not None:
        tree["price"] = _price(options["price"])
    money, tokens = options["budget"], options["budget_tokens"]
    if money is not None and options["price"] is None:
        raise ConfigError("--budget is of money. Give --price IN:OUT as well, or --budget-tokens.")
    if money is not None or tokens is not None:
        tree["budget"] = {"money": money, "tokens": tokens}
    return parse(tree, EndpointSettings, where="--endpoint")


def _price(text: str) -> dict[str, float]:
    try:
        return dict(zip(("input", "output"), map(float, text.split(":")), strict=True))
    except ValueError:
        raise ConfigError(f"--price {text!r}: expected IN:OUT, such as 0.5:1.5, of a million tokens.") from None
