"""What a search behind an endpoint may cost, said before anybody is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consilience.errors import ConfigError, DataError
from consilience.models import load_tokenizer
from consilience.models.endpoint import EndpointSettings
from consilience.pipelines.search_job import SearchJob
from consilience.pipelines.search_prompts import read_prompts
from consilience.search import Prompt, SearchSettings
from consilience.search.blackbox import cost_of
from consilience.search.corners import CORNERS
from consilience.search.texts import prompt_ids


def estimate_file(job: SearchJob) -> str:
    """What `search_file` of a job behind an endpoint may cost; nobody is asked anything. Raises `ConfigError`."""
    if job.endpoint is None:
        raise ConfigError("--dry-run tells what a server is asked for. Give --endpoint.")
    tokenizer = load_tokenizer(job.tokenizer, code=job.trust_remote_code) if job.tokenizer else None
    prompts = read_prompts(job.prompts, seed=job.seed, limit=job.limit)
    return estimate(job.endpoint, CORNERS[job.method](job.settings), prompts, tokenizer, raw=job.raw)


def estimate(
    endpoint: EndpointSettings, settings: SearchSettings, prompts: Sequence[Prompt], tokenizer: Any, *, raw: bool
) -> str:
    """A sentence. Without the large model's tokenizer a token of a prompt is taken for four bytes."""
    tokens = [_prompt_tokens(prompt, tokenizer, raw=raw) for prompt in prompts]
    cost = cost_of(settings, tokens)
    price = endpoint.price
    money = (
        f", {(price.input * cost.input_tokens + price.output * cost.output_tokens) / 1e6:.4g} in money" if price else ""
    )
    # Without the tokenizer it is no bound: chat templates add tokens, and so does other text than English.
    about = "" if tokenizer else " (by four bytes of a prompt to a token, without the chat template)"
    most = "at most" if tokenizer else "about"
    rounds = f"{cost.rounds} round{'s' * (cost.rounds != 1)}"
    return (
        f"{most} {cost.calls:,} calls in {rounds}, {cost.input_tokens:,} tokens in, "
        f"{cost.output_tokens:,} out{money}{about}; replies that end early cost less"
    )


def _prompt_tokens(prompt: Prompt, tokenizer: Any, *, raw: bool) -> int:
    if tokenizer is None:
        return sum(len(message.content.encode()) for message in prompt.messages) // 4 + 1
    try:
        return len(prompt_ids(tokenizer, prompt.messages, raw=raw))
    except DataError:  # the search refuses it by its name, and asks nothing
        return 0
