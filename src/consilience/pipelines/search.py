"""The whole of `consilience search` for a file of prompts: read, search what is not there yet, a line per prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from consilience.errors import BackendError, pick
from consilience.models import refuse_engine
from consilience.models.endpoint import Status, notes_kept
from consilience.models.endpoint.gone import Unanswered, refuse_gone_server
from consilience.pipelines.search_cost import estimate_file
from consilience.pipelines.search_job import SearchJob
from consilience.pipelines.search_models import OnNote, answers_of, made
from consilience.pipelines.search_prompts import read_prompts
from consilience.pipelines.search_replies import ASKED_AGAIN, Row, open_replies, row_of, row_without_reply
from consilience.search import METHODS, Result, search
from consilience.search.tree import rare_collections

__all__ = ["SearchJob", "estimate_file", "search_file"]

OnProgress = Callable[[str, int, int], None]


def search_file(
    job: SearchJob,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
    on_note: OnNote = lambda note: None,
) -> dict[str, Any]:
    """Searches a reply for every prompt of a file, and returns how many ended in which way.

    `on_note` is told what a search behind an endpoint may cost before it starts, and what the server does otherwise
    than asked. What `job.out` holds is not searched again. Raises `ConfigError` when it was made with other settings or
    models, and nothing is overwritten.

    `gave_up` of what is returned says in a sentence why there is less than was asked for: no prompt has a reply, or the
    server went away (its budget was spent), and prompts were not even asked. A few without a reply are no such case.
    """
    pick(METHODS, job.method, "search method")
    refuse_engine(job.engine)
    prompts = read_prompts(job.prompts, seed=job.seed, limit=job.limit, numbered=job.settings.mode == "published")
    with open_replies(job.out, job.outcome()) as replies:
        replies.refuse_other(prompts)
        missing = [prompt for prompt in prompts if prompt.id not in replies.found]
        # Prompts of like length go together, for each has as much room in the cache as the longest under way.
        missing.sort(key=lambda prompt: -sum(len(message.content) for message in prompt.messages))
        counts: dict[str, Any] = {}
        if missing:
            on_progress("search", len(prompts) - len(missing), len(prompts))
            by_id = {prompt.id: prompt for prompt in missing}
            with rare_collections(), made(job, missing, on_note) as (searches, settings, counted):
                for result in search(searches, missing, settings, batch=job.batch):
                    if isinstance(result, Result):
                        replies.add(row_of(by_id[result.id], result))
                    else:
                        replies.add(row_without_reply(*result))
                    on_progress("search", sum(prompt.id in replies.found for prompt in prompts), len(prompts))
                counts = counted()
        elif job.endpoint:
            counts = {"notes": notes_kept(answers_of(job), job.endpoint)}
        replies.put_in_order(prompts)
    rows = [replies.found[prompt.id] for prompt in prompts]
    return _summary(job, rows, len(missing)) | counts | {"gave_up": _gave_up(job, rows)}


def _summary(job: SearchJob, rows: Sequence[Row], searched: int) -> dict[str, Any]:
    scores = [row["score"] for row in rows if row.get("score") is not None]
    tokens = [row.get("tokens", 0) for row in rows]  # None: the server states none
    return {
        "out": str(job.out.resolve()),
        "method": job.method,
        "prompts": len(rows),
        "searched": searched,
        "status": dict(Counter(row["status"] for row in rows)),
        "mean_score": sum(scores) / len(scores) if scores else None,
        "tokens": None if None in tokens else sum(tokens),
        "why": dict(reversed([(row["status"], row["why"]) for row in rows if "why" in row])),  # the first of each
    }


def _gave_up(job: SearchJob, rows: Sequence[Row]) -> str | None:
    without = [row for row in rows if "why" in row]
    if job.endpoint:
        asked = [Unanswered(row["why"], row["status"] == Status.OVER_BUDGET) for row in without]
        try:
            refuse_gone_server(job.endpoint.name, asked, is_gone=lambda: False)
        except BackendError as gone:
            return str(gone)
    if len(without) < len(rows):
        return None
    again = " The same command asks again." if any(row["status"] in ASKED_AGAIN for row in rows) else ""
    why = without[0]["why"].rstrip(".")
    return f"no prompt has a reply ({len(rows)} in all). The first: {why}.{again}"
