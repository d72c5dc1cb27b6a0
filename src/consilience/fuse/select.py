"""Select: the fusion functions, which make one training target per pivot position out of pivot, sources and gold.

Models with different tokenizers are compared on the same bytes: a model's loss on a stretch of text is the sum of
its nats over that stretch, and stretches are the chunks in which both tokenizations cover the same bytes.

Shapes: P positions of the pivot in a shard, S of a source, J candidates, M teachers (0 the pivot, then the sources).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors.numpy import load_file, save_file

from consilience.align import Alignment, SparseRows
from consilience.config import Settings, known
from consilience.errors import ConfigError, pick
from consilience.fuse.match import Match
from consilience.fuse.represent import Representation, Shard
from consilience.fuse.teach import TEACHINGS, TOKENS, UNTAUGHT, Lesson, first_of_chunk
from consilience.run import write_json

GOLD, PIVOT = -1, 0  # teachers that are no source
NO_CHUNK = -1


class SelectSettings(Settings):
    """How pivot's and sources' distributions become one target.

    The defaults are FuseChat's (arXiv 2408.07990) but for `teach`, whose published form is "tokens": docs/alignment.md.
    """

    function: Annotated[str, known(lambda: FUSION_FUNCTIONS, "fusion function")] = Field(
        "min_ce", description="min_ce | avg_ce"
    )
    per: Literal["sequence", "token", "dataset"] = Field("sequence", description="where min_ce decides anew")
    pivot_wins: Literal["pivot", "gold"] = Field("pivot", description="the teacher where no source beats the pivot")
    unmatched: Literal["mask", "gold"] = Field(
        "mask", description="a position without partner: gold at gold_weight (mask), or at full weight (gold)"
    )
    gold_weight: float = Field(0.9, ge=0, le=1, description="w of w·CLM + (1-w)·fusion")
    teach: Annotated[str, known(lambda: TEACHINGS, "way of teaching")] = Field(
        "hybrid", description=f"what a source teaches: one of {', '.join(TEACHINGS)}"
    )

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if self.function == "avg_ce" and self.teach != "tokens":
            raise ConfigError(
                f"select.function avg_ce averages distributions over pivot tokens, got select.teach {self.teach!r}. "
                "Give select.teach=tokens, or select.function=min_ce."
            )
        return self


@dataclass(frozen=True, slots=True)
class Targets:
    """What is learnt at every reply position of a shard: `gold_weight·CLM + fusion_weight·fusion`."""

    conversation_N: NDArray[np.int32]
    position_N: NDArray[np.int32]  # place of the token in the pivot's rendering
    ids_NJ: NDArray[np.int32]
    probs_NJ: NDArray[np.float32]
    gold_weight_N: NDArray[np.float32]
    fusion_weight_N: NDArray[np.float32]
    teacher_N: NDArray[np.int8]  # GOLD, PIVOT, or 1 + index of the source; avg_ce: the heaviest
    space_N: NDArray[np.int8]  # what the ids are: `teach`
    chunk_N: NDArray[np.int32]  # the chunk shared with the teacher, NO_CHUNK where there is none that is all its own
    chunk_logprob_N: NDArray[np.float32]  # nats, the teacher's of the whole chunk; NaN where that is not taught


def load_targets(folder: Path, index: int) -> Targets:
    """Targets of shard number `index` of a finished `select` folder."""
    return Targets(**load_file(folder / f"targets-{index:05d}.safetensors"))


def select(
    pivot: Representation,
    sources: Mapping[str, tuple[Representation, Match, str]],
    groups: Sequence[str],
    settings: SelectSettings,
    folder: Path,
) -> None:
    """Writes the targets of every shard, and who teaches what (`teachers.json`), to `folder`.

    `sources` gives representation, match and the name of the vocabulary mapping; `groups` the data set of every
    conversation. Without sources the target is the gold text alone: plain supervised fine-tuning.
    """
    fuse = pick(FUSION_FUNCTIONS, settings.function, "fusion function")
    teach = pick(TEACHINGS, settings.teach, "way of teaching")
    links = [found.link(mapping) for _, found, mapping in sources.values()]
    group_of = np.unique(np.array(groups), return_inverse=True)[1] if len(groups) else np.zeros(0, dtype=np.int64)
    evidence = [_Evidence(len(groups)) for _ in sources]
    for index, pivot_shard in enumerate(pivot):
        for source_evidence, (source, found, _) in zip(evidence, sources.values(), strict=True):
            source_evidence.add(pivot_shard, source.shard(index), found.alignment(index))
    tally: dict[str, dict[str, int]] = {}
    mass = {name: np.zeros((3, len(groups))) for name in sources}  # positions, kept by the source, mapped; summed
    for index, pivot_shard in enumerate(pivot):
        teachers = []
        for number, (name, (source, found, _)) in enumerate(sources.items()):
            shard, alignment = source.shard(index), found.alignment(index)
            lesson = teach(pivot_shard, shard, alignment, links[number])
            teachers.append(Teacher(shard, alignment, lesson, evidence[number]))
            mass[name] += _mass(shard, alignment, lesson.rows, pivot_shard.conversation_N, len(groups))
        targets = fuse(pivot_shard, teachers, group_of, settings)
        partial = folder / "targets.partial"
        save_file(
            {field.name: np.ascontiguousarray(getattr(targets, field.name)) for field in fields(targets)}, partial
        )
        partial.rename(folder / f"targets-{index:05d}.safetensors")
        _count_teachers(targets, [*sources], groups, tally)
    winners = winning_sources(evidence, [*sources], group_of, settings.per)
    by_conversation = {
        name: dict(zip(("positions", "kept", "mapped"), sums.tolist(), strict=True)) for name, sums in mass.items()
    }
    write_json(folder / "teachers.json", {"positions": tally, "mass": by_conversation, "conversations": winners})


class _Evidence:
    """Losses of pivot and source on the bytes that both cover: nats and bytes by conversation."""

    def __init__(self, conversations: int) -> None:
        self.pivot_nats = np.zeros(conversations)
        self.source_nats = np.zeros(conversations)
        self.bytes = np.zeros(conversations)
        self.positions = np.zeros(conversations)

    def add(self, pivot: Shard, source: Shard, alignment: Alignment) -> None:
        for shard, chunk, nats in (
            (pivot, alignment.chunk_P, self.pivot_nats),
            (source, alignment.chunk_S, self.source_nats),
        ):
            inside = chunk >= 0
            np.add.at(nats, shard.conversation_N[inside], -shard.gold_logprobs_N[inside].astype(np.float64))
        inside = alignment.chunk_P >= 0
        np.add.at(self.bytes, pivot.conversation_N[inside], (pivot.end_N - pivot.start_N)[inside])
        np.add.at(self.positions, pivot.conversation_N[inside], 1)

    def advantage(self, group_of: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Nats per byte that the source is better than the pivot, by conversation, or pooled over its group."""
        gain, size = self.pivot_nats - self.source_nats, self.bytes
        if group_of is not None:
            gain, size = _pooled(gain, group_of), _pooled(size, group_of)
        return np.where(size > 0, gain / np.maximum(size, 1), -np.inf)


def _pooled(values: NDArray[np.float64], group_of: NDArray[np.int64]) -> NDArray[np.float64]:
    """The sum of `values` over each one's group."""
    sums: NDArray[np.float64] = np.bincount(group_of, values).astype(np.float64)
    return sums[group_of]


@dataclass(frozen=True, slots=True)
class Teacher:
    """A source in one shard: its scores, its alignment, what it can teach, and its losses on all shards."""

    shard: Shard
    alignment: Alignment
    lesson: Lesson
    evidence: _Evidence


def min_ce(pivot: Shard, teachers: Sequence[Teacher], group_of: NDArray[np.int64], settings: SelectSettings) -> Targets:
    """MinCE: the distribution of the model with the lowest loss (FuseLLM, arXiv 2401.10491, sec. 3.2).

    Decided per sequence as published, per data set (`dataset`), or per chunk of equal text (`token`). The chunks of two
    sources may overlap: a source whose chunk is not all its own does not teach what it says of that chunk as a whole.
    """
    gain_MP = np.zeros((1 + len(teachers), len(pivot.conversation_N)))
    for number, teacher in enumerate(teachers, start=1):
        if settings.per == "token":
            gain_MP[number] = _chunk_gain(pivot, teacher)
        else:
            by_conversation = teacher.evidence.advantage(group_of if settings.per == "dataset" else None)
            gain_MP[number] = by_conversation[pivot.conversation_N]
    chosen_P = gain_MP.argmax(0)  # ties go to the pivot
    ids_PJ, probs_PJ = _rows_of_pivot(pivot)
    taught_P = np.full(len(chosen_P), settings.pivot_wins == "pivot" and bool(teachers))
    space_P, chunk_P = np.full(len(chosen_P), TOKENS, dtype=np.int8), np.full(len(chosen_P), NO_CHUNK, dtype=np.int32)
    chunk_logprob_P = np.full(len(chosen_P), UNTAUGHT)
    for number, teacher in enumerate(teachers, start=1):
        mine = chosen_P == number
        whole = _whole_chunks(teacher.alignment.chunk_P, mine)
        lesson = teacher.lesson.only_chunks(whole)
        ids_PJ[mine], probs_PJ[mine], space_P[mine] = (
            lesson.rows.ids_NJ[mine],
            lesson.rows.probs_NJ[mine],
            lesson.space_P[mine],
        )
        # Numbered by where they begin, so that those of several sources are apart and in the order of the text.
        chunk_P[whole] = first_of_chunk(teacher.alignment.chunk_P)[whole]
        chunk_logprob_P[mine] = lesson.chunk_logprob_P[mine]
        taught_P[mine] = lesson.taught_P[mine]
    if settings.pivot_wins == "gold" or not teachers:
        chosen_P = np.where(chosen_P == PIVOT, GOLD, chosen_P)
    found = _targets(pivot, SparseRows(ids_PJ, probs_PJ), chosen_P, taught_P, settings)
    return replace(found, space_N=space_P, chunk_N=chunk_P, chunk_logprob_N=chunk_logprob_P)


def _whole_chunks(chunk_P: NDArray[np.int32], mine_P: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Positions of the chunks that lie in `mine_P` with all of their tokens, shape [P]."""
    return (chunk_P >= 0) & ~np.isin(chunk_P, chunk_P[~mine_P])


def avg_ce(pivot: Shard, teachers: Sequence[Teacher], group_of: NDArray[np.int64], settings: SelectSettings) -> Targets:
    """AvgCE: the mean of all models' distributions, weighted by softmax(exp(-CE)) as published (FuseLLM's code).

    CE is a model's loss on the conversation in nats per *pivot* token, so that tokenizers do not enter; the pivot's is
    pooled over what it shares with each source. At a position where a source has no partner the weights are shared out
    among the others.
    """
    del group_of
    columns = len(pivot.conversation_N)
    loss_MP = np.zeros((1 + len(teachers), columns))
    present_MP = np.ones((1 + len(teachers), columns), dtype=bool)
    for number, teacher in enumerate(teachers, start=1):
        loss_MP[number] = _per_position([teacher.evidence.source_nats], [teacher.evidence])[pivot.conversation_N]
        present_MP[number] = teacher.lesson.has_rows_P
    evidence = [teacher.evidence for teacher in teachers]
    if teachers:
        loss_MP[PIVOT] = _per_position([one.pivot_nats for one in evidence], evidence)[pivot.conversation_N]
    weight_MP = np.exp(np.exp(-loss_MP)) * present_MP
    weight_MP /= weight_MP.sum(0)
    own_ids_PJ, own_probs_PJ = _rows_of_pivot(pivot)
    ids_PJ = np.concatenate([own_ids_PJ, *(teacher.lesson.rows.ids_NJ for teacher in teachers)], axis=1)
    probs_PJ = np.concatenate(
        [
            weight_MP[0][:, None] * own_probs_PJ,
            *(weight_MP[n][:, None] * t.lesson.rows.probs_NJ for n, t in enumerate(teachers, start=1)),
        ],
        axis=1,
    )
    merged = SparseRows(*_add_up(ids_PJ, probs_PJ))
    return _targets(pivot, merged, weight_MP.argmax(0), np.asarray(present_MP[1:].any(0)), settings)


def _per_position(nats: Sequence[NDArray[np.float64]], evidence: Sequence[_Evidence]) -> NDArray[np.float64]:
    """Nats per pivot position by conversation, pooled over the stretches of all `evidence`."""
    pooled: NDArray[np.float64] = sum(nats) / np.maximum(sum(one.positions for one in evidence), 1)
    return pooled


FUSION_FUNCTIONS = {"min_ce": min_ce, "avg_ce": avg_ce}


def winning_sources(
    evidence: Sequence[_Evidence], names: Sequence[str], group_of: NDArray[np.int64], per: str
) -> list[str | None]:
    """The source that beats the pivot most clearly on each conversation (or its data set), None where none does."""
    if not evidence:
        return [None] * len(group_of)
    gains = np.stack([one.advantage(group_of if per == "dataset" else None) for one in evidence])
    return [names[best] if gains[best, i] > 0 else None for i, best in enumerate(gains.argmax(0))]


def _chunk_gain(pivot: Shard, teacher: Teacher) -> NDArray[np.float64]:
    """Nats per byte that the source is better on the chunk of every pivot position; minus infinity outside.

    Per byte, because the chunks that two sources share with the pivot differ in length.
    """
    chunk_P, chunk_S = teacher.alignment.chunk_P, teacher.alignment.chunk_S
    inside_P, inside_S = chunk_P >= 0, chunk_S >= 0
    if not inside_P.any():
        return np.full(len(chunk_P), -np.inf)
    nats = np.bincount(chunk_P[inside_P], -pivot.gold_logprobs_N[inside_P])
    nats -= np.bincount(chunk_S[inside_S], -teacher.shard.gold_logprobs_N[inside_S])
    size = np.bincount(chunk_P[inside_P], (pivot.end_N - pivot.start_N)[inside_P])
    return np.where(inside_P, (nats / np.maximum(size, 1))[chunk_P], -np.inf)


def _rows_of_pivot(pivot: Shard) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    return pivot.ids_NK.copy(), np.exp(pivot.logprobs_NK.astype(np.float32))


def _mass(
    shard: Shard, alignment: Alignment, rows: SparseRows, conversation_P: NDArray[np.int32], conversations: int
) -> NDArray[np.float64]:
    """By conversation: matched positions, probability that the source kept there, and what found a pivot token."""
    at = alignment.matched_P
    partners, where = alignment.source_P[at], conversation_P[at]
    kept = np.exp(shard.logprobs_NK[partners].astype(np.float64)).sum(1)
    mapped = rows.probs_NJ[at].sum(1, dtype=np.float64)
    return np.stack([np.bincount(where, weights, conversations) for weights in (np.ones(len(where)), kept, mapped)])


def _add_up(ids_PJ: NDArray[np.int32], probs_PJ: NDArray[np.float64]) -> tuple[Any, Any]:
    """Rows with every id once: the mass of repeats is added to the first, and the repeats become padding."""
    order = np.argsort(ids_PJ, axis=1, kind="stable")
    ids, probs = np.take_along_axis(ids_PJ, order, 1), np.take_along_axis(probs_PJ, order, 1)
    first = np.ones_like(ids, dtype=bool)
    first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    start = np.maximum.accumulate(np.where(first, np.arange(ids.shape[1]), 0), axis=1)
    total = np.zeros_like(probs)
    np.add.at(total, (np.arange(len(ids))[:, None], start), probs)
    descending = np.argsort(-total, axis=1, kind="stable")
    return np.take_along_axis(ids, descending, 1), np.take_along_axis(total, descending, 1).astype(np.float32)


def _targets(
    pivot: Shard,
    rows: SparseRows,
    teacher_P: NDArray[np.int64],
    taught_P: NDArray[np.bool_],
    settings: SelectSettings,
) -> Targets:
    """Weights from the choice of teachers: gold alone at full weight, a distribution beside gold, or gold unmatched."""
    fused_P = (teacher_P != GOLD) & taught_P
    unmatched_weight = settings.gold_weight if settings.unmatched == "mask" else 1.0
    gold_weight_P = np.where(teacher_P == GOLD, 1.0, np.where(fused_P, settings.gold_weight, unmatched_weight))
    return Targets(
        conversation_N=pivot.conversation_N,
        position_N=pivot.position_N,
        ids_NJ=rows.ids_NJ,
        probs_NJ=np.where(fused_P[:, None], rows.probs_NJ, 0).astype(np.float32),
        gold_weight_N=gold_weight_P.astype(np.float32),
        fusion_weight_N=np.where(fused_P, 1 - settings.gold_weight, 0).astype(np.float32),
        teacher_N=teacher_P.astype(np.int8),
        space_N=np.full(len(teacher_P), TOKENS, dtype=np.int8),
        chunk_N=np.full(len(teacher_P), NO_CHUNK, dtype=np.int32),
        chunk_logprob_N=np.full(len(teacher_P), UNTAUGHT),
    )


def _count_teachers(
    targets: Targets, names: list[str], groups: Sequence[str], tally: dict[str, dict[str, int]]
) -> None:
    """Adds to `tally[group][teacher]` the positions that each teacher teaches; "unmatched" where it has no row."""
    called = np.array([*("pivot", *names), "gold"], dtype=object)  # GOLD is -1: the last
    teacher = called[targets.teacher_N.astype(np.int64)]
    taught = targets.probs_NJ.any(1) | np.isfinite(targets.chunk_logprob_N)
    teacher = np.where((targets.teacher_N != GOLD) & ~taught, "unmatched", teacher)
    for conversation, name in zip(targets.conversation_N.tolist(), teacher.tolist(), strict=True):
        counts = tally.setdefault(groups[conversation], {})
        counts[name] = counts.get(name, 0) + 1
