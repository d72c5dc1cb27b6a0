"""MT-Bench scores: the mean of the judge's ratings, by question, by turn and by category.

The two turns of a question go up and down together (correlations of 0.3 to 0.7), so the unit is the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, average
from consilience.stats.means import mean, ratio
from consilience.stats.units import finite


@dataclass(frozen=True, kw_only=True, slots=True)
class MtBenchScore:
    """`overall` speaks of new questions of new categories; `same_categories` of new questions in the same ones.

    The latter is the average of `by_category`: with the same number of ratings in each, the same value.
    """

    overall: Estimate
    same_categories: Estimate
    by_turn: dict[int, Estimate]
    by_category: dict[str, Estimate]


def mt_bench_score(
    scores: ArrayLike,
    questions: Sequence[str],
    turns: Sequence[int],
    categories: Sequence[str],
    *,
    level: float = 0.95,
) -> MtBenchScore:
    """The scores of one model; ratings (1 to 10) that could be read, one per question and turn.

    Raises `DataError` at a rating outside 1 to 10, and at a question and turn that is rated twice: FastChat's files
    are appended to, and a judge that was run again would count double.
    """
    x = finite(scores, "scores")
    if not len(x) == len(questions) == len(turns) == len(categories):
        lengths = f"{len(questions)} questions, {len(turns)} turns and {len(categories)} categories"
        raise DataError(f"{lengths} for {len(x)} scores; expected one each.")
    if outside := int(((x < 1) | (x > 10)).sum()):
        raise DataError(f"{outside} of {len(x)} scores are outside 1 to 10; count the unreadable ones apart first.")
    seen = [*zip(questions, turns)]
    if len(set(seen)) < len(seen):
        twice = next(pair for i, pair in enumerate(seen) if pair in seen[:i])
        raise DataError(f"question {twice[0]}, turn {twice[1]} is rated twice; keep one of the judge's runs.")

    def part(mask: np.ndarray) -> Estimate:
        mine = [question for question, kept in zip(questions, mask) if kept]
        # A category of a single question has a mean without an interval, and is no reason to refuse the others.
        found = ratio(x[mask], np.ones(len(mine)), mine, unit_kind="questions", level=level)
        return replace(found, method="mean, clustered by question, Student t")

    by_category = {name: part(np.array(categories) == name) for name in sorted(set(categories))}
    return MtBenchScore(
        overall=mean(x, questions, unit_kind="questions", level=level),
        same_categories=average([*by_category.values()]),
        by_turn={turn: part(np.array(turns) == turn) for turn in sorted(set(turns))},
        by_category=by_category,
    )
