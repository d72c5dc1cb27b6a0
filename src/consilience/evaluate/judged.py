"""Tasks whose replies a judge rates or compares: MT-Bench, AlpacaEval-style pairs against a baseline, questions of
one's own. The judge is `consilience.judge`'s; what it is asked about, and what its judgments score, is here.

A judgment file (`judgments.jsonl`) has one line per judgment: which reply it is of, then the judgment itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from consilience.config import Settings
from consilience.errors import DataError
from consilience.evaluate.answers import Asked, OnProgress, Record
from consilience.evaluate.checked import WITHOUT_REPLY
from consilience.evaluate.logs import Metric, Score, Status
from consilience.evaluate.questions import Item, QuestionSettings, read_items
from consilience.judge import Judge
from consilience.judge.mt_bench import (
    MAX_NEW_TOKENS,
    TEMPERATURES,
    WITH_REFERENCE,
    Question,
    items,
    read_answers,
    read_questions,
    wrong_references,
)
from consilience.judge.mt_bench import Item as MtBenchItem
from consilience.models import Sampling
from consilience.records import Judgment, Message, VerdictState, judgment_of, read_rows, row_of_judgment

RATING = Metric((1, 10))
PERCENT = Metric((0, 100))
SAID = {
    VerdictState.OK: Status.SCORED,
    VerdictState.TIE: Status.SCORED,
    VerdictState.UNPARSED: Status.UNPARSED,
    VerdictState.OUT_OF_RANGE: Status.OUT_OF_RANGE,
    VerdictState.REFUSED: Status.JUDGE_REFUSED,
    VerdictState.API_ERROR: Status.ERROR,
    VerdictState.OVER_BUDGET: Status.OVER_BUDGET,
    VerdictState.MISSING: Status.NO_REPLY,
}


class LengthControl(Settings):
    """AlpacaEval 2's length control. Without `gamed` (its file of judged gamed baselines, which also holds the
    instructions' difficulties, by place) it is fitted on the judged replies alone."""

    gamed: str | None = None


class MtBenchSettings(QuestionSettings):
    """MT-Bench: FastChat's `question.jsonl` or a file like it; every turn rated from 1 to 10, or compared with that of
    a `baseline`, in both orders.

    `references` is a file of FastChat's shape; math, reasoning and coding are judged with them.
    """

    kind: Literal["mt_bench"] = "mt_bench"
    judge: str
    baseline: str | None = Field(None, description="a model of the recipe; without one replies are rated")
    references: str | None = None
    temperatures: dict[str, float] = Field(TEMPERATURES, description="by category; others are drawn at the sampling's")
    sampling: Sampling = Sampling(temperature=0.7, max_new_tokens=MAX_NEW_TOKENS)


class PairwiseSettings(QuestionSettings):
    """Every reply compared with a baseline's: a model of the recipe, or the `output` of the questions' own rows."""

    kind: Literal["pairwise"] = "pairwise"
    judge: str
    baseline: str | None = Field(None, description="a model of the recipe; default: the rows' own outputs")
    length_control: LengthControl | bool = True


class RatedSettings(QuestionSettings):
    """Every reply rated from 1 to 10; with the row's `reference` where it has one."""

    kind: Literal["rated"] = "rated"
    judge: str


class Judged(NamedTuple):
    """A judgment and the reply that it is of."""

    item: str
    turn: int
    sample: int
    model: str
    judgment: Judgment
    characters: int  # of the reply
    baseline_characters: int = 0

    def to_json(self, task: str) -> dict[str, Any]:
        """One line of a judgment file."""
        head = {"task": task, "item": self.item, "turn": self.turn, "sample": self.sample, "model": self.model}
        lengths = {"characters": self.characters, "baseline_characters": self.baseline_characters}
        return head | lengths | row_of_judgment(self.judgment)


def read_judged(path: Path) -> list[Judged]:
    """The judgments of a judgment file."""
    return [
        Judged(
            **{name: row[name] for name in ("item", "turn", "sample", "model", "characters", "baseline_characters")},
            judgment=judgment_of(row, where=where),
        )
        for where, row in read_rows(path)
    ]


def _text(record: Record | None) -> str | None:
    """The reply that a judge is shown: also an empty or a truncated one; None where there is none."""
    return None if record is None or record.status in WITHOUT_REPLY else record.reply


@dataclass(frozen=True, slots=True)
class MtBenchTask:
    """Questions of several turns, their references, and the items that stand for them in a comparison."""

    name: str
    settings: MtBenchSettings
    questions: Sequence[Question]
    references: Mapping[str, Sequence[str]]
    metrics: Mapping[str, Metric]
    item_kind: str = "ratings"
    unit_kind: str = "questions"

    @property
    def items(self) -> list[Item]:
        """One per question."""
        return [Item(one.id, one.category, one.id, (), {}, "") for one in self.questions]

    @property
    def notes(self) -> list[str]:
        """What a reader has to know of the references."""
        wrong = wrong_references(self.references)
        if not wrong:
            return []
        return [
            f"{self.name}: {len(wrong)} reference answers are known to be wrong (questions {', '.join(wrong)}); "
            "FastChat has corrected ones of 2024."
        ]

    def asked(self, turn: int, before: Sequence[Record]) -> list[Asked]:
        """The turn of every question that has one, after the model's own replies. Where a reply is missing, what
        would follow it is not asked."""
        said: dict[tuple[str, int], tuple[Message, ...]] = {}
        for record in sorted(before, key=lambda record: record.turn):
            text = _text(record)
            if record.turn == turn - 1 and text is not None:
                said[record.item, record.sample] = (*record.messages, Message("assistant", text))
        system = (Message("system", self.settings.system),) if self.settings.system else ()
        asked = []
        for question in self.questions:
            if len(question.turns) < turn:
                continue
            now = Message("user", question.turns[turn - 1])
            sampling = self._sampling(question)
            if turn == 1:
                asked.append(Asked(question.id, (*system, now), sampling))
                continue
            once = sampling.model_copy(update={"samples": 1})
            for sample in range(sampling.samples):
                if (question.id, sample) in said:
                    asked.append(Asked(question.id, (*said[question.id, sample], now), once, turn, sample))
        return asked

    def _sampling(self, question: Question) -> Sampling:
        own = self.settings.sampling
        temperature = self.settings.temperatures.get(question.category, own.temperature)
        return own.model_copy(update={"temperature": temperature, "samples": own.samples if temperature > 0 else 1})

    def judged(
        self, judge: Judge, records: Sequence[Record], baseline: Sequence[Record], *, on_progress: OnProgress
    ) -> list[Judged]:
        """A rating of every turn of every sample; or every turn compared with the baseline's of the same sample, or of
        its only one."""
        found = self._turns(records)
        prompts = [item.prompt for item in found.values()]
        replies = [item.reply for item in found.values()]
        references = [item.reference for item in found.values()]
        others: list[tuple[Message, ...] | None] = [None] * len(found)
        if self.settings.baseline is None:
            verdicts = judge.rates()(prompts, replies, references=references, on_progress=on_progress)
        else:
            drawn = self._turns(baseline)
            paired = (drawn.get((id_, turn, sample), drawn.get((id_, turn, 0))) for id_, turn, sample in found)
            others = [item and item.reply for item in paired]
            verdicts = judge.compares()(prompts, others, replies, references=references, on_progress=on_progress)
            verdicts = [_of_candidate(verdict) for verdict in verdicts]
        model = records[0].model if records else ""
        return [
            Judged(
                item=id_,
                turn=turn,
                sample=sample,
                model=model,
                judgment=verdict,
                characters=len(reply[-1].content) if reply else 0,
                baseline_characters=len(other[-1].content) if other else 0,
            )
            for (id_, turn, sample), verdict, reply, other in zip(found, verdicts, replies, others)
        ]

    def _turns(self, records: Sequence[Record]) -> dict[tuple[str, int, int], MtBenchItem]:
        """What a judge is asked, by question, turn and sample."""
        replies: dict[int, dict[str, list[str | None]]] = {}
        for record in records:
            turns = replies.setdefault(record.sample, {}).setdefault(record.item, [])
            turns += [None] * (record.turn - len(turns))
            turns[record.turn - 1] = _text(record)
        return {
            (item.question.id, item.turn, sample): item
            for sample, by_question in sorted(replies.items())
            for item in items(
                [question for question in self.questions if question.id in by_question], by_question, self.references
            )
        }

    def scores(self, judged: Sequence[Judged]) -> Iterator[Score]:
        """The rating of every turn, or its win in percent; a question's turns are one cluster."""
        category = {question.id: question.category for question in self.questions}
        [metric] = self.metrics
        scale = 1 if self.settings.baseline is None else 100
        for one in judged:
            yield Score(
                model=one.model,
                metric=metric,
                item=f"{one.item}, turn {one.turn}",
                value=scale * _value(one.judgment),
                status=SAID[one.judgment.state],
                sample=str(one.sample),
                cluster=one.item,
                category=category[one.item],
            )


@dataclass(frozen=True, slots=True)
class OneTurnTask:
    """Questions of one turn that a judge rates, or compares with a baseline's replies.

    `outputs` are the rows' own baseline outputs by item, where these are compared with.
    """

    name: str
    settings: PairwiseSettings | RatedSettings
    items: Sequence[Item]
    metrics: Mapping[str, Metric]
    outputs: Mapping[str, str]
    item_kind: str = "questions"
    unit_kind: str = "questions"
    notes: Sequence[str] = ()

    def asked(self, turn: int, before: Sequence[Record]) -> list[Asked]:
        """Every item, in its only turn."""
        return [Asked(item.id, item.messages, self.settings.sampling) for item in self.items] if turn == 1 else []

    def judged(
        self, judge: Judge, records: Sequence[Record], baseline: Sequence[Record], *, on_progress: OnProgress
    ) -> list[Judged]:
        """A rating of every reply; or every reply compared with the baseline's of the same number, or its only one."""
        asked = {item.id: item for item in self.items}
        prompts = [record.messages for record in records]
        replies = [_text(record) for record in records]
        references = [_reference(asked[record.item]) for record in records]
        others: list[str | None] = [None] * len(records)
        if isinstance(self.settings, RatedSettings):
            verdicts = judge.rates()(prompts, replies, references=references, on_progress=on_progress)
        else:
            drawn = {(record.item, record.sample): _text(record) for record in baseline}
            others = [
                self.outputs.get(record.item, drawn.get((record.item, record.sample), drawn.get((record.item, 0))))
                for record in records
            ]
            # The baseline is AlpacaEval's output_1: its rule for the order goes by that.
            verdicts = judge.compares()(prompts, others, replies, references=references, on_progress=on_progress)
            verdicts = [_of_candidate(verdict) for verdict in verdicts]
        return [
            Judged(
                item=record.item,
                turn=1,
                sample=record.sample,
                model=record.model,
                judgment=verdict,
                characters=len(reply or ""),
                baseline_characters=len(other or ""),
            )
            for record, verdict, reply, other in zip(records, verdicts, replies, others)
        ]

    def scores(self, judged: Sequence[Judged]) -> Iterator[Score]:
        """The rating of every reply, or its win over the baseline in percent."""
        asked = {item.id: item for item in self.items}
        [metric] = self.metrics
        scale = 1 if isinstance(self.settings, RatedSettings) else 100
        for one in judged:
            yield Score(
                model=one.model,
                metric=metric,
                item=one.item,
                value=scale * _value(one.judgment),
                status=SAID[one.judgment.state],
                sample=str(one.sample),
                cluster=asked[one.item].cluster,
                category=asked[one.item].group,
            )


JudgedTask = MtBenchTask | OneTurnTask


def _value(judgment: Judgment) -> float:
    return math.nan if judgment.value is None else judgment.value


def _of_candidate(judgment: Judgment) -> Judgment:
    """A judgment of (baseline, candidate) as one of the candidate: 1 where it is the better one."""
    value = None if judgment.value is None else 1 - judgment.value
    return replace(judgment, value=value, orders=tuple(map(_of_candidate, judgment.orders)))


def _reference(item: Item) -> tuple[str, ...] | None:
    reference = item.row.get("reference")
    return None if not reference else (str(reference),)


def mt_bench_task(name: str, settings: MtBenchSettings, file: Callable[[str], Path]) -> MtBenchTask:
    """The task called `name`. Raises `DataError` where a question that needs a reference has none."""
    questions = read_questions(file(settings.path))[: settings.limit]
    references = read_answers(file(settings.references)) if settings.references else {}
    without = [one.id for one in questions if one.category in WITH_REFERENCE and one.id not in references]
    if without:
        raise DataError(
            f"task {name}: {len(without)} questions of {', '.join(WITH_REFERENCE)} have no reference answer, such as "
            f"{without[0]}. Give `references`, a file of FastChat's model answers."
        )
    metrics = {"rating": RATING} if settings.baseline is None else {f"win rate against {settings.baseline}": PERCENT}
    return MtBenchTask(name, settings, questions, references, metrics)


def one_turn_task(name: str, settings: PairwiseSettings | RatedSettings, file: Callable[[str], Path]) -> OneTurnTask:
    """The task called `name`. Raises `DataError` where the rows are compared with, and one has no output."""
    found = read_items(file(settings.path), settings)
    if isinstance(settings, RatedSettings):
        return OneTurnTask(name, settings, found, {"rating": RATING}, {})
    if settings.baseline is not None:
        return OneTurnTask(name, settings, found, {f"win rate against {settings.baseline}": PERCENT}, {})
    outputs, baselines = {}, dict[str, None]()
    for item in found:
        if not isinstance(item.row.get("output"), str):
            raise DataError(
                f"{item.where}: no 'output' to compare with; there are {', '.join(item.row)}. Give `baseline`, a model "
                "of the recipe, or questions with the baseline's outputs."
            )
        outputs[item.id] = item.row["output"]
        baselines[str(item.row.get("generator") or "the baseline")] = None
    return OneTurnTask(name, settings, found, {f"win rate against {', '.join(baselines)}": PERCENT}, outputs)
