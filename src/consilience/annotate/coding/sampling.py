"""Probability samples of texts: simple, stratified and clustered, each text with the probability that it had.

Shapes: N texts of the frame, U units (clusters, or the texts themselves), n texts drawn.

One design covers the three. Units are put into a random order once and for all; a sample is the first so many units of
each stratum, and within a drawn cluster the first so many texts of a random order of its own. So every unit of a
stratum of `units` of which `drawn` are drawn has the probability drawn / units, a text of a cluster that times
per_unit / texts of the cluster.

A sample is extended by taking more from the same order: the longer sample is again the first so many of a random order,
its probabilities are those of a sample drawn at that size at once, and nothing already coded is lost. The first `dev`
units of a stratum are the development part and stay it; those after them are the test part, a probability sample of the
same texts with probabilities of its own. How much to extend must not depend on what the codings say, only on how many
there are: a sample that grows until it pleases is not a random one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import ConfigError, DataError
from consilience.rng import stream
from consilience.stats.planning import design_effect, items_for_share

Places = NDArray[np.intp]
PARTS = ("dev", "test")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frame:
    """What can be drawn. `units_N` names each text's unit, `stratum_of` every unit's stratum.

    For texts drawn one by one the units are the texts; for a two-stage sample they are clusters of texts.
    """

    units_N: Sequence[str]
    stratum_of: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.units_N:
            raise DataError("there is no text to draw from.")

    @property
    def units_by_stratum(self) -> dict[str, int]:
        """How many units every stratum has, strata in the order of their first text."""
        counts: dict[str, int] = {}
        for unit in dict.fromkeys(self.units_N):
            stratum = self.stratum_of[unit]
            counts[stratum] = counts.get(stratum, 0) + 1
        return counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Units of one stratum to draw: `drawn` in all, of which the first `dev` are the development part."""

    drawn: int
    dev: int = 0


@dataclass(frozen=True, slots=True)
class DrawnText:
    """A text of the sample: its place in the frame and what the design says of it.

    `probability` is that of being in the sample, `part_probability` that of being in its part of it; `twice` marks the
    random share of every part that two coders code.
    """

    place: int
    stratum: str
    part: str
    probability: float
    part_probability: float
    twice: bool


def draw(
    frame: Frame,
    sizes: Mapping[str, Size],
    *,
    unit_order: ArrayLike,
    text_order: ArrayLike,
    per_unit: int | None = None,
    twice: float = 0.0,
) -> list[DrawnText]:
    """The texts that lie first in a random order: `sizes` units of every stratum, `per_unit` texts of each (or all).

    `unit_order` is a permutation of the units in the order of their first text, `text_order` one of the texts. Of
    every part the first `twice` (a share) of a stratum's units is coded twice. Raises `DataError` where a stratum has
    fewer units than are to be drawn.
    """
    rank_N = _ranks(text_order, len(frame.units_N), "texts")
    texts_of: dict[str, list[int]] = {}
    for place, unit in enumerate(frame.units_N):
        texts_of.setdefault(unit, []).append(place)
    names = list(texts_of)
    rank_U = _ranks(unit_order, len(names), "units")
    units_in: dict[str, list[str]] = {}
    for index in np.argsort(rank_U):
        units_in.setdefault(frame.stratum_of[names[index]], []).append(names[index])
    drawn = []
    for stratum, size in sizes.items():
        units = units_in.get(stratum, [])
        if not 0 <= size.dev <= size.drawn <= len(units):
            raise DataError(
                f"{size.drawn} of stratum {stratum!r} ({size.dev} for development), which has {len(units)}."
            )
        in_part = {"dev": size.dev, "test": size.drawn - size.dev}
        for rank, unit in enumerate(units[: size.drawn]):
            part = "dev" if rank < size.dev else "test"
            rank_in_part = rank - (size.dev if part == "test" else 0)
            texts = sorted(texts_of[unit], key=rank_N.__getitem__)[:per_unit]
            within = len(texts) / len(texts_of[unit])
            drawn += [
                DrawnText(
                    place=place,
                    stratum=stratum,
                    part=part,
                    probability=size.drawn / len(units) * within,
                    part_probability=in_part[part] / len(units) * within,
                    twice=rank_in_part < math.ceil(twice * in_part[part] - 1e-9),
                )
                for place in texts
            ]
    return drawn


def seeded_orders(seed: int, units: int, texts: int) -> tuple[Places, Places]:
    """The random orders of units and texts under `seed`, for `draw`."""
    return stream(seed, "gold", "units").permutation(units), stream(seed, "gold", "texts").permutation(texts)


def allocate(
    units: Mapping[str, int],
    total: int,
    *,
    at_least: int = 0,
    equal: bool = False,
    already: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """`total` units divided over the strata: in proportion to their sizes, or in `equal` numbers.

    Every stratum gets `at_least` so many, and what was `already` drawn of it, as far as it has them. Raises
    `ConfigError` where `total` is too few for that or more than there are.
    """
    already = already or {}
    lower = np.array([min(count, max(at_least, already.get(name, 0))) for name, count in units.items()], dtype=float)
    upper = np.array(list(units.values()), dtype=float)
    if total > upper.sum():
        raise ConfigError(f"{total} are to be drawn of {upper.sum():.0f}; draw no more than there are.")
    if total < lower.sum():
        raise ConfigError(
            f"{total} are too few for at least {at_least} of each of {len(units)} strata and those already drawn; "
            f"that takes {lower.sum():.0f}."
        )
    shape = np.ones_like(upper) if equal else upper
    low, high = 0.0, float((upper / shape).max())
    for _ in range(100):  # the level at which the strata, filled in proportion between their bounds, hold `total`
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(middle * shape, lower, upper).sum() < total else (low, middle)
    exact = np.clip(high * shape, lower, upper)
    rounded = np.floor(exact + 1e-6)
    largest_remainders = np.argsort(-(exact - rounded), kind="stable")
    rounded[largest_remainders[: total - int(rounded.sum())]] += 1
    return {name: int(count) for name, count in zip(units, rounded)}


def kish_design_effect(probabilities: ArrayLike) -> float:
    """n sum(w^2) / sum(w)^2 with w = 1 / probability: what unequal probabilities cost at most (Kish 1965, 11.2)."""
    weights = 1 / np.asarray(probabilities, dtype=np.float64)
    return float(len(weights) * (weights**2).sum() / weights.sum() ** 2)


def units_for_width(
    units: Mapping[str, int],
    half_width: float,
    *,
    share: float = 0.5,
    level: float = 0.95,
    at_least: int = 0,
    equal: bool = False,
    per_unit: float = 1.0,
    correlation: float = 0.0,
) -> int:
    """The units to draw for a gold-only interval of a share no wider than `share` -+ `half_width`; at most all.

    Texts are counted by Wilson's interval, times what the allocation's unequal probabilities cost (Kish), times the
    design effect of `per_unit` texts to a cluster with that `correlation`. No finite-corpus correction: the estimates
    take the corpus as a sample of texts like it. What the model's labels add makes the interval narrower than this.
    """
    texts = items_for_share(half_width, share=share, level=level) * design_effect(per_unit, correlation)
    available = sum(units.values())
    fewest = sum(min(count, at_least) for count in units.values())
    total = min(max(math.ceil(texts / per_unit), fewest, 1), available)
    while total < available:
        drawn = allocate(units, total, at_least=at_least, equal=equal)
        probabilities = [drawn[name] / units[name] for name in units for _ in range(drawn[name])]
        needed = math.ceil(texts * kish_design_effect(probabilities) / per_unit)
        if needed <= total:
            return total
        total = min(max(needed, total + 1), available)
    return total


def label_strata(labels: Sequence[str], confidences: Sequence[float] | None = None, *, bins: int = 2) -> list[str]:
    """The stratum of every text: its model label, divided at quantiles of the model's confidence if that is given.

    Bins hold about equally many texts of the label; where many confidences are alike there are fewer of them.
    """
    if confidences is None:
        return list(labels)
    values = np.asarray(confidences, dtype=np.float64)
    strata = list(labels)
    places_of: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        places_of.setdefault(label, []).append(place)
    for label, places in places_of.items():
        edges = np.unique(np.quantile(values[places], np.linspace(0, 1, bins + 1)))
        last = max(len(edges) - 2, 0)
        for place, bin_ in zip(places, np.searchsorted(edges[1:-1], values[places], side="right")):
            low, high = edges[min(bin_, last)], edges[min(bin_ + 1, len(edges) - 1)]
            strata[place] = f"{label}, confidence {low:.3g} to {high:.3g}"
    return strata


def _ranks(order: ArrayLike, count: int, what: str) -> Places:
    """The place of everything in a permutation of `count` things."""
    places = np.asarray(order, dtype=np.intp)
    if not np.array_equal(np.sort(places), np.arange(count)):
        raise ValueError(f"the order of {count} {what} is not a permutation of them")
    ranks: Places = np.empty(count, dtype=np.intp)
    ranks[places] = np.arange(count)
    return ranks
