"""Scores for replies from whatever judges: one that rates, one that compares, or a function that knows the row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.judge import Judge, JudgeSettings, open_judge, refuse_when_gone
from consilience.judge.functions import load_function, rate_by_function
from consilience.prefer.data import Preference
from consilience.records import Judgment, VerdictState
from consilience.rng import stream

OnProgress = Callable[[int, int], None]
SEEN = (VerdictState.OK, VerdictState.TIE)


class Scored(NamedTuple):
    """A reply's score, higher is better, and what became of the judgment; None unless that is ok.

    `cut` says that the judge read no more than a beginning of the prompt, of this reply or of one beside it.
    """

    value: float | None
    state: str
    cut: bool = False


class Scorer:
    """The judge of a recipe, opened when it is first asked; to be closed (use `with`).

    Raises `BackendError` where its server is gone or its budget spent: see `judge.refuse_when_gone`.

    A judge that only compares gives a reply the mean of how far it is preferred to the others (0 to 1), both orders of
    each two; PairRM's ranking in SELM's code is of that kind. A function of three parameters is given the data's row.
    """

    def __init__(self, settings: JudgeSettings, folder: Path, cache: Path) -> None:
        self.settings, self.folder, self.cache = settings, folder, cache
        self._open = ExitStack()
        self._judge: Judge | None = None
        self._function: Callable[..., Any] | None = None
        if settings.kind == "function" and not settings.compares:  # a function that is not there is refused at once
            self._function = load_function(str(settings.function), folder)

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
        self._judge = None

    @property
    def rates(self) -> bool:
        """Whether scores are the judge's own scale; otherwise they are shares of comparisons."""
        return self._function is not None or self._opened().scores is not None

    def rank(
        self, prompts: Sequence[Preference], replies_of: Sequence[Sequence[str]], on_progress: OnProgress
    ) -> list[list[Scored]]:
        """A score for every reply to every prompt, comparable among the replies to one prompt."""
        if self.rates:
            flat = [(prompt, reply) for prompt, replies in zip(prompts, replies_of) for reply in replies]
            scored = iter(self._rate([prompt for prompt, _ in flat], [reply for _, reply in flat], on_progress))
            return [[next(scored) for _ in replies] for replies in replies_of]
        met = [
            (i, one, other)
            for i, replies in enumerate(replies_of)
            for one in range(len(replies))
            for other in range(one + 1, len(replies))
        ]
        judgments = self._opened().compares()(
            [prompts[i].prompt for i, _, _ in met],
            [replies_of[i][one] for i, one, _ in met],
            [replies_of[i][other] for i, _, other in met],
            on_progress=on_progress,
        )
        refuse_when_gone(judgments)
        shares: dict[tuple[int, int], list[float]] = {}
        states: dict[tuple[int, int], str] = {}
        cut: set[tuple[int, int]] = set()
        for (i, one, other), judgment in zip(met, judgments, strict=True):
            cut |= {(i, one), (i, other)} if judgment.cut else set()
            for place, value in ((one, judgment.value), (other, _turned(judgment))):
                if value is None:
                    states[i, place] = judgment.state
                else:
                    shares.setdefault((i, place), []).append(value)

        def share(place: tuple[int, int]) -> Scored:
            if place in states or place not in shares:  # a mean over fewer rivals is not comparable
                return Scored(None, states.get(place, VerdictState.MISSING), place in cut)
            return Scored(sum(shares[place]) / len(shares[place]), VerdictState.OK, place in cut)

        return [[share((i, place)) for place in range(len(replies))] for i, replies in enumerate(replies_of)]

    def measure(
        self, prompts: Sequence[Preference], replies: Sequence[str], rivals: Sequence[str], on_progress: OnProgress
    ) -> list[Scored]:
        """The rating of every reply; of a judge that only compares, how far it is preferred to its rival."""
        if self.rates:
            return self._rate(prompts, replies, on_progress)
        judgments = self._opened().compares()(
            [preference.prompt for preference in prompts], replies, rivals, on_progress=on_progress
        )
        refuse_when_gone(judgments)
        return [_scored(judgment) for judgment in judgments]

    def _rate(self, prompts: Sequence[Preference], replies: Sequence[str], on_progress: OnProgress) -> list[Scored]:
        asked = [preference.prompt for preference in prompts]
        if self._function is None:
            judgments = self._opened().rates()(asked, replies, on_progress=on_progress)
        else:
            rows = [preference.row for preference in prompts]
            place = str(self.settings.function)
            judgments = rate_by_function(place, self._function, asked, replies, rows, on_progress)
        refuse_when_gone(judgments)
        return [_scored(judgment) for judgment in judgments]

    def _opened(self) -> Judge:
        if self._judge is None:
            self._judge = self._open.enter_context(open_judge(self.settings, folder=self.folder, cache=self.cache))
        return self._judge


def _scored(judgment: Judgment) -> Scored:
    value = judgment.value if judgment.value is not None and math.isfinite(judgment.value) else None
    return Scored(value if judgment.state in SEEN else None, judgment.state, judgment.cut)


def _turned(judgment: Judgment) -> float | None:
    return None if judgment.value is None else 1 - judgment.value


def noisy(scores: Sequence[float | None], scale: float, *, seed: int, names: Sequence[str]) -> list[float | None]:
    """Scores whose order follows Bradley and Terry: P(i over j) = sigmoid(scale * (score_i - score_j)).

    Each is given Gumbel noise of its own, named by `seed` and its name: the same reply to the same prompt in two arms
    meets the same annotator.
    """
    return [
        None if score is None else scale * score + float(stream(seed, "annotator", name).gumbel())
        for score, name in zip(scores, names, strict=True)
    ]


def refuse_useless(scores: Sequence[Scored], where: str) -> None:
    """Raises `DataError` when a round's replies are all scored alike, or none is: nothing can be learnt from that."""
    found = [scored.value for scored in scores if scored.value is not None]
    values = set(found)
    if len(values) == 1 and len(scores) > 2:
        raise DataError(
            f"{where}: the judge gives {found[0]:g} to all {len(found)} replies that it scored, of {len(scores)}, so "
            "none is better. Look at the judge, and at the replies in the run folder."
        )
    if not values:
        states = ", ".join(sorted({str(scored.state) for scored in scores}))
        raise DataError(f"{where}: no score for any of {len(scores)} replies (NaN, or {states}). Look at the judge.")
