"""What a judge's verdicts owe to the order of the replies and to their length: estimates, no verdict on the judge.

Length is no clean comparison: longer replies may be better ones. It is shown beside the length-controlled win rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from consilience.errors import DataError
from consilience.evaluate.comparison import without_spread
from consilience.evaluate.judged import Judged
from consilience.records import Judgment
from consilience.stats import Estimate, difference, mean, proportion


def bias_of(judged: Sequence[Judged], *, pairs: bool, unit_kind: str, level: float) -> dict[str, Any]:
    """One model's numbers for the panel on its judge; what cannot be estimated is left out.

    Of pairs, in percent: `order`, the win rate where the reply was shown first minus where it was shown second;
    `consistent`, the share of pairs with the same verdict in both orders; `to_first`, the share that went to whichever
    reply was shown first among those whose verdict the order decided; `longer`, the win rate of replies longer than the
    baseline's minus that of others. Of ratings: `longer`, the mean rating of the longer half minus that of the other.
    """
    known = [one for one in judged if one.judgment.value is not None]
    scale = 100.0 if pairs else 1.0

    def average(of: Sequence[tuple[str, float]]) -> Estimate:
        units = [unit for unit, _ in of]
        return mean([scale * value for _, value in of], units, unit_kind=unit_kind, level=level)

    def gap(of: Callable[[], Estimate]) -> dict[str, Any] | None:
        try:
            found = of()
        except DataError:
            return None  # one side of it has fewer than two units
        return without_spread(found).to_json() if found.n > 1 else None

    result: dict[str, Any] = {"judged": len(known), "order": None, "consistent": None, "to_first": None}
    middle = 0.0 if pairs else median([one.characters for one in known] or [0])
    extra = [(one, one.characters - one.baseline_characters if pairs else one.characters - middle) for one in known]
    longer = [(one.item, float(one.judgment.value or 0)) for one, more in extra if more > 0]
    others = [(one.item, float(one.judgment.value or 0)) for one, more in extra if more <= 0]
    result["longer_items"] = len(longer)
    result["longer"] = gap(lambda: difference(average(longer), average(others)))
    if not pairs:
        return result
    both = [(one.item, *_by_order(one.judgment)) for one in known if one.judgment.orders]
    if both:
        first = [(item, shown_first) for item, shown_first, _ in both]
        second = [(item, shown_second) for item, _, shown_second in both]
        result["order"] = gap(lambda: difference(average(first), average(second)))
        same = [float(_side(one) == _side(other)) for _, one, other in both]
        items = [item for item, _, _ in both]
        result["consistent"] = gap(lambda: _percent(proportion(same, items, unit_kind=unit_kind, level=level)))
        decided = [(item, float(one > other)) for item, one, other in both if _side(one) != _side(other)]
        result["to_first"] = gap(
            lambda: _percent(
                proportion(
                    [value for _, value in decided], [item for item, _ in decided], unit_kind=unit_kind, level=level
                )
            )
        )
        result["decided_by_order"] = len(decided)
    else:
        # The candidate is the second of (baseline, candidate): swapped means that it was shown first.
        shown = {
            swapped: [(one.item, float(one.judgment.value or 0)) for one in known if one.judgment.swapped == swapped]
            for swapped in (True, False)
        }
        result["order"] = gap(lambda: difference(average(shown[True]), average(shown[False])))
    return result


def _by_order(judgment: Judgment) -> tuple[float, float]:
    """The candidate's win where it was shown first, and where it was shown second."""
    shown = {one.swapped: float(one.value or 0) for one in judgment.orders}
    return shown[True], shown[False]


def _side(win: float) -> int:
    return (win > 0.5) - (win < 0.5)


def _percent(share: Estimate) -> Estimate:
    ends = (100 * share.low, 100 * share.high)
    return replace(share, value=100 * share.value, influence=100 * share.influence, interval=ends)
