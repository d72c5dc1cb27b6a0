"""What has no label, among the gold and from the model: how many of which, what is assumed of them, and its bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from consilience.annotate.agreement import NO_LABEL
from consilience.annotate.codebook import Codebook
from consilience.annotate.estimates import default_of
from consilience.annotate.gold import UNCODED
from consilience.annotate.sample import Sample
from consilience.stats import shown_decimals


def without_label(sample: Sample, codebook: Codebook, shares: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Counts by reason, the assumptions in words, and every share if none or all of the undecided texts were of it.

    `shares` are the estimates in all ways, of which the default one is bounded; of an interval variable its mean, by
    the ends of the range. Texts that nobody has reached yet are no part of the bounds: the coding order is random.
    """
    gold = Counter(text.why for text in sample.unlabelled)
    model = {category.strip("()"): n for category, n in sample.counts.items() if category in NO_LABEL and n}
    having = Counter(item.status for item in sample.coded if item.label is None)
    bounds = _bounds(sample, codebook, shares)
    return {
        "gold": dict(gold),
        "model": {status: {"rows": rows, "gold": having[status]} for status, rows in model.items()},
        "bounds": bounds,
        "sentences": [*_about_gold(gold, len(sample.coded), bounds), *_about_model(model, having, sample.rows)],
    }


def undecided_share(sample: Sample) -> float:
    """What share of the corpus the texts stand for that were looked at, and have no final label all the same."""
    left = sum(1 / (text.probability or 1.0) for text in sample.unlabelled if text.why != UNCODED)
    coded = sum(item.gold.coded_share / (item.gold.probability or item.gold.coded_share) for item in sample.coded)
    return left / (left + coded)


def _bounds(sample: Sample, codebook: Codebook, shares: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    share = undecided_share(sample)
    least, most = codebook.range or (0.0, 1.0)
    if not share:
        return {}
    found = {}
    for name, ways in shares.items():
        now = ways.get(default_of(ways))
        if now:
            value = (1 - share) * now["value"]
            decimals = shown_decimals(now["value"], now["low"], now["high"])
            found[name] = {"least": value + share * least, "most": value + share * most, "decimals": decimals}
    return found


def _about_gold(gold: Mapping[str, int], coded: int, bounds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    undecided = {why: count for why, count in gold.items() if why != UNCODED}
    found = []
    if undecided:
        drawn = coded + sum(gold.values())
        said = (
            f"{_sum(undecided)} of {drawn} drawn texts have no final label ({_listed(undecided)}). They are taken for "
            "texts like the coded ones of their stratum, which texts that people find hard may not be."
        )
        if bounds:
            each = ", ".join(
                f"{name} {of['least']:.{of['decimals']}f} to {of['most']:.{of['decimals']}f}"
                for name, of in bounds.items()
            )
            said += f" The estimates if none of them were of a label, or all (of a mean: at either end): {each}."
        found.append(said)
    if gold.get(UNCODED):
        found.append(
            f"{gold[UNCODED]} drawn texts are not coded yet. The coding order is random, so the sample counts as the "
            "smaller one that it is."
        )
    return found


def _about_model(model: Mapping[str, int], having: Mapping[str, int], rows: int) -> list[str]:
    if not model:
        return []
    known = {status: having[status] for status in model if having.get(status)}
    unknown = [status for status in model if not having.get(status)]
    said = f"The model gave no label to {_sum(model):,} of {rows:,} texts ({_listed(model)})."
    if known:
        said += f" What they are is taken from the gold texts among them ({_listed(known)})."
    if unknown:
        said += f" None of those that are {' or '.join(unknown)} is a gold text: what they are counts as unknown."
    if "error" in model:
        said += " Those that ended in an error can be coded again: consilience annotate run --retry."
    return [said]


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())
