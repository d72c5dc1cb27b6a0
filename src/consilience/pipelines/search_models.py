"""The models of a search, opened where each of them runs: here, under vLLM, behind an endpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from consilience.models import load_model, load_tokenizer, open_model
from consilience.models.endpoint import Endpoint, EndpointSettings
from consilience.pipelines.places import Places
from consilience.pipelines.search_cost import estimate
from consilience.pipelines.search_job import SearchJob
from consilience.search import METHODS, Guide, Models, Prompt, Search, Searches, SearchSettings, TreeModel
from consilience.search.blackbox import EndpointModel
from consilience.search.corners import CORNERS

OnNote = Callable[[str], None]


class Made(NamedTuple):
    """A search to add prompts to."""

    searches: Searches
    settings: SearchSettings
    counted: Callable[[], dict[str, Any]]  # what it has taken so far


def made(job: SearchJob, prompts: Sequence[Prompt], on_note: OnNote) -> contextlib.AbstractContextManager[Made]:
    """The search of a job, open as long as the context is. Raises `ConfigError` and `BackendError`.

    `on_note` is told what a search behind an endpoint may cost before it starts, and what the server does otherwise
    than asked.
    """
    if job.endpoint is not None:
        return _behind(job.endpoint, job, prompts, on_note)
    return contextlib.nullcontext(_under_vllm(job) if job.on_vllm else _here(job))


def answers_of(job: SearchJob) -> Path:
    """The file of a server's answers."""
    return job.out.with_name(job.out.name + ".answers.sqlite")


def _here(job: SearchJob) -> Made:
    pair = dict(zip(("tuned", "untuned"), _load_pair(job)))
    models = Models(_load(job, job.model), **pair, raw=job.raw)
    return Made(*METHODS[job.method](models, job.settings), lambda: _counts(models))


def _under_vllm(job: SearchJob) -> Made:
    from consilience.search.vllm import VllmLarge

    settings, pair = CORNERS[job.method](job.settings), _load_pair(job)
    folder = Places(Path(), Path()).model(job.model)
    opened: Any = open_model(folder, job.engine, name=job.model, dtype=job.dtype, code=job.trust_remote_code)
    return Made(Search(VllmLarge(opened, raw=job.raw), _guide(job, pair, settings, opened.tokenizer)), settings, dict)


@contextlib.contextmanager
def _behind(settings: EndpointSettings, job: SearchJob, prompts: Sequence[Prompt], on_note: OnNote) -> Iterator[Made]:
    shape = CORNERS[job.method](job.settings)
    guide = _guide(job, _load_pair(job), shape)
    tokenizer = load_tokenizer(job.tokenizer, code=job.trust_remote_code) if job.tokenizer else None
    on_note(estimate(settings, shape, prompts, tokenizer, raw=job.raw))
    with Endpoint(settings, cache=answers_of(job), on_note=on_note) as endpoint:
        large = EndpointModel(endpoint, tokenizer=tokenizer, raw=job.raw, way=job.continue_by)
        yield Made(Search(large, guide), shape, lambda: {"spent": str(endpoint.spent), "notes": endpoint.notes})


def _load_pair(job: SearchJob) -> list[TreeModel]:
    return [_load(job, path) for path in job.guide] if job.guide and job.method != "sample" else []


def _load(job: SearchJob, path: str) -> TreeModel:
    folder = Places(Path(), Path()).model(path)
    return TreeModel(load_model(folder, name=path, dtype=job.dtype, code=job.trust_remote_code))


def _guide(job: SearchJob, pair: Sequence[TreeModel], settings: SearchSettings, tokenizer: Any = None) -> Guide | None:
    """The pair, where there is one; `tokenizer` is the large model's, where its tokens are known."""
    if not pair:
        return None
    how: dict[str, Any] = {"temperature": settings.guide_temperature, "per_token": settings.per_token}
    return Guide(*pair, tokenizer=tokenizer, raw=job.raw, **how)


def _counts(models: Models) -> dict[str, Any]:
    each = {"large": models.large, "tuned": models.tuned, "untuned": models.untuned}
    return {
        "positions": {name: model.counts.positions for name, model in each.items() if model},
        "cached": {name: model.cached for name, model in each.items() if model},
    }
