"""Judgments: alpaca_eval's `annotations.json`, FastChat's MT-Bench ratings and pairs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from consilience.errors import DataError
from consilience.evaluate.logs.scores import Log, Metric, Score, Status, field_of, number_of, printable
from consilience.evaluate.logs.source import Row, Source

PERCENT = Metric((0, 100))
# MT-Bench's questions 81 to 160, ten to a category.
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")


def is_alpaca_eval(row: Mapping[str, Any]) -> bool:
    """A row of alpaca_eval's annotations."""
    return {"instruction", "generator_1", "generator_2", "preference"} <= row.keys()


def read_alpaca_eval(source: Source, cluster: str | None) -> Log:
    """The win rate of generator_2 against generator_1 in percent: 100 (preference - 1); 0 and 1.5 are ties."""
    scores: list[Score] = []
    judges: dict[str, None] = {}
    for where, row in source.rows:
        if not is_alpaca_eval(row):
            raise DataError(f"{where}: expected 'instruction', 'generator_1', 'generator_2' and 'preference'.")
        value, status = number_of(row["preference"])
        if value == 0:
            value = 1.5
        if status == Status.SCORED and not 1 <= value <= 2:
            value, status = math.nan, Status.OUT_OF_RANGE
        elif status == Status.UNSCORED:
            status = Status.UNPARSED  # the package's own mark for a verdict that it could not read
        judges[printable(str(row.get("annotator") or "an unnamed judge"))] = None
        scores.append(
            Score(
                model=printable(str(row["generator_2"])),
                metric=f"win rate against {printable(str(row['generator_1']))}, percent",
                item=printable(str(row["instruction"])),
                value=100 * (value - 1),
                status=status,
                cluster=field_of(row, cluster, where) if cluster else "",
                category=printable(str(row.get("dataset") or "")),
            )
        )
    return Log(
        kind="alpaca_eval annotations",
        scores=scores,
        metrics={score.metric: PERCENT for score in scores},
        item_kind="instructions",
        cluster_kind=cluster or "clusters",
        judged=", ".join(judges),
        notes=["one order of the two replies was judged; what the order does to the win rate is not in it."],
    )


def is_mt_bench(row: Mapping[str, Any]) -> bool:
    """A row of FastChat's single-answer judgments."""
    return {"question_id", "model", "judge", "score", "turn"} <= row.keys()


def read_mt_bench(source: Source, cluster: str | None) -> Log:
    """Ratings from 1 to 10 by question and turn; the turns of a question are one cluster. -1 is an unread verdict."""
    scores: list[Score] = []
    judges: dict[str, None] = {}
    for where, row in source.rows:
        if not is_mt_bench(row):
            raise DataError(f"{where}: expected 'question_id', 'turn', 'model', 'judge' and 'score'.")
        value, status = number_of(row["score"])
        if value == -1:
            value, status = math.nan, Status.UNPARSED
        elif status == Status.SCORED and not 1 <= value <= 10:
            value, status = math.nan, Status.OUT_OF_RANGE
        judge = _judge(row)
        judges[judge] = None
        scores.append(
            Score(
                model=printable(str(row["model"])),
                metric=f"rating by {judge}",
                item=f"{printable(str(row['question_id']))}, turn {row['turn']}",
                value=value,
                status=status,
                cluster=field_of(row, cluster or "question_id", where),
                category=_category(row),
            )
        )
    return Log(
        kind="MT-Bench ratings (FastChat)",
        scores=scores,
        metrics={f"rating by {judge}": Metric((1, 10)) for judge in judges},
        item_kind="ratings",
        cluster_kind=cluster or "questions",
        judged=", ".join(judges),
    )


def _judge(row: Mapping[str, Any]) -> str:
    judge = row["judge"]
    return printable(str(judge[0] if isinstance(judge, Sequence) and not isinstance(judge, str) and judge else judge))


def _category(row: Mapping[str, Any]) -> str:
    if row.get("category"):
        return printable(str(row["category"]))
    number = row["question_id"]
    return CATEGORIES[(number - 81) // 10] if isinstance(number, int) and 81 <= number <= 160 else ""


def is_mt_bench_pair(row: Mapping[str, Any]) -> bool:
    """A row of FastChat's pairwise judgments."""
    return {"question_id", "model_1", "model_2", "g1_winner", "g2_winner", "judge"} <= row.keys()


WON = {"model_1": 1.0, "tie": 0.5, "model_2": 0.0}


def read_mt_bench_pairs(source: Source, cluster: str | None) -> Log:
    """Win rates in percent against the model that all pairs have in common; of a single pair, both models'.

    A battle counts as the mean of its two orders. Where one of the orders could not be read, so could not the battle.
    """
    rows = [*source.rows]
    for where, row in rows:
        if not is_mt_bench_pair(row):
            raise DataError(f"{where}: expected 'question_id', 'model_1', 'model_2', 'g1_winner' and 'g2_winner'.")
    models = {model for _, row in rows for model in (row["model_1"], row["model_2"])}
    common = [name for name in sorted(models) if all(name in (r["model_1"], r["model_2"]) for _, r in rows)]
    if not common:
        raise DataError(
            f"{source.path}: battles among {len(models)} models, none of which is in all of them. Compare files of "
            "one baseline; ratings of all against all are `consilience.stats.bradley_terry`."
        )
    single = len(models) == 2
    against = "the other" if single else printable(str(common[0]))
    metric = f"win rate against {against}, percent"
    scores: list[Score] = []
    judges: dict[str, None] = {}
    for where, row in rows:
        judges[_judge(row)] = None
        wins = [WON.get(str(row[game]), math.nan) for game in ("g1_winner", "g2_winner")]
        first = sum(wins) / 2
        for model, won in ((row["model_1"], first), (row["model_2"], 1 - first)):
            if single or model != common[0]:
                scores.append(
                    Score(
                        model=printable(str(model)),
                        metric=metric,
                        item=f"{printable(str(row['question_id']))}, turn {row.get('turn', 1)}",
                        value=100 * won,
                        status=Status.UNPARSED if math.isnan(won) else Status.SCORED,
                        cluster=field_of(row, cluster or "question_id", where),
                        category=_category(row),
                    )
                )
    notes = [*_order_effect(rows)]
    if single:
        notes.append("the two win rates are of the same battles: one is 100 minus the other.")
    return Log(
        kind="MT-Bench pairs (FastChat)",
        scores=scores,
        metrics={metric: PERCENT},
        item_kind="battles",
        cluster_kind=cluster or "questions",
        judged=", ".join(judges),
        notes=notes,
    )


def _order_effect(rows: Sequence[Row]) -> list[str]:
    """What the judge did when the two replies changed places. In the first game model_1 is shown first."""
    both = [
        (row["g1_winner"], row["g2_winner"]) for _, row in rows if {row["g1_winner"], row["g2_winner"]} <= WON.keys()
    ]
    found = Counter(both)
    alike = sum(count for (one, other), count in found.items() if one == other)
    to_first, to_second = found["model_1", "model_2"], found["model_2", "model_1"]
    return [
        f"of {len(both)} battles judged in both orders the verdict was the same in {alike}; "
        f"it went to whichever was shown first in {to_first}, to whichever was shown second in {to_second}."
    ]
