"""What a judge's verdicts owe to the order of the replies and to their length: estimates, no verdict on the judge.

Length is no clean comparison: longer replies may be better ones. It is shown beside the length-controlled win rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from consilience.evaluate.comparison import without_spread
from consilience.evaluate.judged import Judged
from consilience.records import Judgment
from consilience.stats import Estimate, difference, mean, proportion

Json = dict[str, Any]
Valued = tuple[str, float]  # a unit, and the win or the rating there


def bias_of(judged: Sequence[Judged], *, pairs: bool, unit_kind: str, level: float) -> Json:
    """One model's numbers for the panel on its judge; what cannot be estimated is left out.

    Of pairs, in percent: `order`, the win rate where the reply was shown first minus where it was shown second;
    `consistent`, the share of pairs with the same verdict in both orders; `to_first`, the share that went to whichever
    reply was shown first among those whose verdict the order decided; `longer`, the win rate of replies longer than the
    baseline's minus that of others. Of ratings: `longer`, the mean rating of the longer half minus that of the other.
    """
    known = [(one, float(one.judgment.value)) for one in judged if one.judgment.value is not None]
    scale = 100.0 if pairs else 1.0

    def average(of: Sequence[Valued]) -> Estimate:
        units = [unit for unit, _ in of]
        return mean([scale * value for _, value in of], units, unit_kind=unit_kind, level=level)

    def gap(these: Sequence[Valued], those: Sequence[Valued]) -> Json | None:
        """The mean of these minus that of those, where both sides have two units."""
        if min(len({unit for unit, _ in side}) for side in (these, those)) < 2:
            return None
        return without_spread(difference(average(these), average(those))).to_json()

    def share(of: Sequence[Valued]) -> Json | None:
        """The share of ones in percent."""
        units = [unit for unit, _ in of]
        if len(set(units)) < 2:
            return None
        return _percent(proportion([value for _, value in of], units, unit_kind=unit_kind, level=level)).to_json()

    middle = 0.0 if pairs else median([one.characters for one, _ in known] or [0])
    more = [one.characters - (one.baseline_characters if pairs else middle) for one, _ in known]
    valued = [(one.item, value) for one, value in known]
    longer = [one for one, extra in zip(valued, more) if extra > 0]
    others = [one for one, extra in zip(valued, more) if extra <= 0]
    result: Json = {"judged": len(known), "longer": gap(longer, others), "longer_items": len(longer)}
    both = [(one.item, *_by_order(one.judgment)) for one, _ in known if one.judgment.orders]
    changed = [(item, float(first > second)) for item, first, second in both if _side(first) != _side(second)]
    if both:
        order = gap([(item, first) for item, first, _ in both], [(item, second) for item, _, second in both])
    else:  # the candidate is the second of (baseline, candidate): swapped means that it was shown first
        first_seen, second_seen = (
            [(one.item, value) for one, value in known if one.judgment.swapped == swapped] for swapped in (True, False)
        )
        order = gap(first_seen, second_seen)
    return result | {
        "order": order if pairs else None,
        "consistent": share([(item, float(_side(first) == _side(second))) for item, first, second in both]),
        "to_first": share(changed),
        "decided_by_order": len(changed),
    }


def _by_order(judgment: Judgment) -> tuple[float, float]:
    """The candidate's win where it was shown first, and where it was shown second."""
    shown = {one.swapped: float(one.value or 0) for one in judgment.orders}
    return shown[True], shown[False]


def _side(win: float) -> int:
    return (win > 0.5) - (win < 0.5)


def _percent(share: Estimate) -> Estimate:
    ends = (100 * share.low, 100 * share.high)
    return replace(share, value=100 * share.value, influence=100 * share.influence, interval=ends)
