"""How good a policy is: replies to held-out prompts, their rewards, and how far they are from the start policy's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.models import ChatModel, LocalSampler, Prompt, ReplyStatus, Sampling
from consilience.prefer.data import Preference
from consilience.prefer.judging import Scorer
from consilience.prefer.likelihood import ReadReply, score_texts
from consilience.prefer.policy import Policy, Reader
from consilience.prefer.rounds import rows_of
from consilience.records import write_jsonl

REPLIES = "replies.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of a policy on P held-out prompts, means over each prompt's samples."""

    prompts: tuple[str, ...]
    reward_P: NDArray[np.float64]  # NaN where no reply was judged
    kl_P: NDArray[np.float64]  # log pi - log start of the policy's own replies, nats; NaN where none could be read
    tokens_P: NDArray[np.float64]
    rewards_PS: list[list[float | None]]  # by sample: to be compared with another policy's, reply by reply
    statuses: Mapping[str, int]
    states: Mapping[str, int]  # of the judgments; of an empty reply, which is not judged, its status
    cut: int  # replies that the judge read in part only


def measure(
    load: Callable[[Policy], ChatModel],
    policy: Policy,
    start: Policy,
    prompts: Sequence[Preference],
    sampling: Sampling,
    scorer: Scorer,
    reader: Reader,
    folder: Path,
    rivals: Path | None,
    *,
    batch_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes replies.jsonl: every reply with its status, length, reward, and log-probability under policy and start.

    `rivals` is the folder of the start policy's measurement, which a judge that only compares needs; None for its own.
    """
    by_id = {preference.id: preference for preference in prompts}
    chat_model = load(policy)
    asked = [Prompt(preference.id, preference.prompt) for preference in prompts]
    rows: list[dict[str, Any]] = []
    for reply in LocalSampler(chat_model).sample(asked, sampling):
        rows.append(
            {"id": reply.id, "sample": reply.sample, "text": reply.text.strip(), "status": reply.status, "state": ""}
        )
        rows[-1] |= {"tokens": reply.tokens, "reward": None, "logprob": None, "start_logprob": None}
        on_progress(len(rows), len(prompts) * sampling.samples)
    rows.sort(key=lambda row: (row["id"], row["sample"]))
    theirs = {(row["id"], row["sample"]): row["text"] for row in (rows_of(rivals / REPLIES) if rivals else rows)}
    said = [row for row in rows if row["text"]]
    judged = scorer.measure(
        [by_id[row["id"]] for row in said],
        [row["text"] for row in said],
        [theirs[row["id"], row["sample"]] for row in said],
        on_progress,
    )
    for row, scored in zip(said, judged, strict=True):
        row["reward"], row["state"] = scored.value, scored.state
        row |= {"cut": True} if scored.cut else {}
    reads = {index: read for index, row in enumerate(rows) if (read := _read(reader, row)) and read.tokens}
    _add_logprobs(rows, reads, "logprob", chat_model, batch_tokens)
    del chat_model
    if policy == start:
        for row in rows:
            row["start_logprob"] = row["logprob"]
    else:
        _add_logprobs(rows, reads, "start_logprob", load(start), batch_tokens)
    write_jsonl(folder / REPLIES, rows)


def _read(reader: Reader, row: Mapping[str, Any]) -> ReadReply | None:
    return reader(row["id"], row["text"], row["status"] != ReplyStatus.TRUNCATED)


def _add_logprobs(
    rows: Sequence[dict[str, Any]],
    reads: Mapping[int, ReadReply],
    name: str,
    chat_model: ChatModel,
    batch_tokens: int,
) -> None:
    places = [*reads]
    found = score_texts(
        chat_model.model, [[reads[place]] for place in places], batch_tokens=batch_tokens, name=chat_model.name
    )
    for index, (value,) in found:
        rows[places[index]][name] = value


def read_measured(folder: Path) -> Measured:
    """What `measure` wrote."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    statuses: Counter[str] = Counter()
    states: Counter[str] = Counter()
    cut = 0
    for row in rows_of(folder / REPLIES):
        by_prompt.setdefault(row["id"], []).append(row)
        statuses[row["status"]] += 1
        states[row["state"] or row["status"]] += 1
        cut += "cut" in row
    rows_P = list(by_prompt.values())
    kl_P = [[r["logprob"] - r["start_logprob"] for r in rows if r["logprob"] is not None] for rows in rows_P]
    return Measured(
        prompts=tuple(by_prompt),
        reward_P=np.array([_mean([r["reward"] for r in rows if r["reward"] is not None]) for rows in rows_P]),
        kl_P=np.array([_mean(values) for values in kl_P]),
        tokens_P=np.array([_mean([r["tokens"] for r in rows]) for rows in rows_P]),
        rewards_PS=[[r["reward"] for r in rows] for rows in rows_P],
        statuses=statuses,
        states=states,
        cut=cut,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
