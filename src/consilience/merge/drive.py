"""Runs methods' steps: answers their measurements, what several ask for once, and combines what they end with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from consilience.merge.blocks import REMEMBERED_BYTES, Job, NotFinite
from consilience.merge.methods import Combination, Kept, Measurement, Ranked, Steps


class Engine(NamedTuple):
    """Who goes over the numbers.

    `measure` takes measurements that are the same, or of one kind (`Ranked` scores, `Kept` deltas), and for each the
    tensors that it is of together; these have the same inputs. It returns what the methods' `yield`s give.

    `combine` computes tensors from the same inputs and hands them to their `job.write`, block by block. The inner
    products go to `job.products`.

    What is not finite is in `job.bad`; `combine` raises `NotFinite` after all of it.
    """

    measure: Callable[[Sequence[Measurement], Sequence[Sequence[Job]]], list[Any]]
    combine: Callable[[Sequence[tuple[Combination, Job]]], None]


def merge(steps: Sequence[Steps], jobs: Sequence[Job], engine: Engine) -> list[Mapping[str, Any]]:
    """Measures and combines tensors from the same inputs, each by its own method's steps.

    Returns what each method says of it. There is nothing to say of no entries. Raises `NotFinite`; `job.bad` says
    in which tensor.
    """
    if jobs[0].facts.size == 0:
        return [{} for _ in jobs]
    for job in jobs:
        job.remembered_bytes = REMEMBERED_BYTES // len(jobs)
    combinations = settle(steps, [[job] for job in jobs], engine)
    engine.combine(list(zip(combinations, jobs)))
    return [combination.record for combination in combinations]


def settle(steps: Sequence[Steps], jobs: Sequence[Sequence[Job]], engine: Engine) -> list[Combination]:
    """Runs methods' measurements over the same inputs, of one or more tensors; returns their combinations.

    `jobs` has a row for each method: the tensors that it measures together. What several ask for is measured once,
    in one going over the inputs. Raises `NotFinite` after the measurement that found it.
    """
    made: dict[int, Combination] = {}
    asked: dict[int, Measurement] = {}

    def go_on(place: int, result: Any) -> None:
        try:
            asked[place] = steps[place].send(result)
        except StopIteration as end:
            asked.pop(place, None)
            made[place] = end.value

    for place in range(len(steps)):
        go_on(place, None)
    while asked:
        results: dict[int, Any] = {}
        for places in _asked_together(asked):
            rows = [jobs[place] for place in places]
            results |= zip(places, engine.measure([asked[place] for place in places], rows))
            for row in rows[1:]:
                for job, measured in zip(row, rows[0]):
                    job.bad |= measured.bad
        if any(job.bad for row in jobs for job in row):
            raise NotFinite  # nothing that follows from it would mean anything
        for place, result in results.items():
            go_on(place, result)
    return [made[place] for place in range(len(steps))]


def _asked_together(asked: Mapping[int, Measurement]) -> list[list[int]]:
    """Which places' requests are the same, or can be answered in one going over the inputs."""
    groups: dict[Any, list[int]] = {}
    for place, request in asked.items():
        kind: Any = request
        if isinstance(request, Ranked):
            kind = request.kind, request.row_factors
        elif isinstance(request, Kept):
            kind = Kept, request.keep.how == "random by rank"
        groups.setdefault(kind, []).append(place)
    return list(groups.values())
