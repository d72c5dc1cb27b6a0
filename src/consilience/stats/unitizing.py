"""Agreement on units that coders mark along texts: Krippendorff's u-alpha, |u-alpha and cu-alpha.

The family of Krippendorff, Mathet, Bouvry and Widloecher (2016, Quality & Quantity 50:2347,
doi:10.1007/s11135-015-0266-1), which replaced the alpha_U of 1995 and 2004. A coder divides a text into units with a
label each, and the gaps between them. Let l_ck be the characters that the one of two coders gave c and the other k, a
gap being a label too, over all ordered pairs of coders and divided by the coders less one (their equation 1), l_c its
margin and l its sum. Chance pairs any two characters but those of one and the same unit (equation 4):

    e_ck  =  l (l_c l_k - [c = k] sum over units of c (length^2)) / (l^2 - sum over all units (length^2))

where the characters of a gap count as units of length 1. Then (equations 5, 6 and 11), as the e_ck sum to l,

    alpha  =  1 - (l - sum l_cc) / (l - sum e_cc)  =  1 - (l - sum l_cc) (l^2 - S) / (l (l^2 - sum l_c^2))

with S the sum over all units in the denominator above. It is u-alpha over labels and gaps, |u-alpha over marked and
not, and cu-alpha over labels alone, where the units are what a coder's units have in common with another's. Where all
units are of length 1 it is the alpha of characters. Texts follow one another as one continuum, no unit across two: so
all are functions of sums over texts.

Shapes: N texts, K labels and the gap, R coders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise, permutations

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError, pick
from consilience.stats.agreement import measured_by_units, relative_weights
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import unit_labels

Unit = tuple[int, int, str]  # first character, the one behind the last, label
GAP = 0


def unitizing_alpha(
    marked: Sequence[Sequence[Sequence[Unit] | None]],
    lengths: Sequence[int],
    units: Sequence[str] | None = None,
    *,
    about: str = "units and labels",
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """1 - observed over expected disagreement along texts; `about` is a key of `UNITIZING`.

    `marked` has a row per text and a cell per coder: the units, none, or None where there is no coding; `lengths` are
    the texts' in characters, `units` what the texts were sampled in. Texts that one coder coded count for nothing.
    Raises `DataError` where a coder's units overlap or reach beyond their text, and where alpha is undefined: nobody
    marked anything, or all have one label.
    """
    over, kind = pick(UNITIZING, about, "unitizing alpha")
    if len(marked) != len(lengths):
        raise DataError(f"{len(lengths)} lengths for {len(marked)} texts; expected one each.")
    names = sorted({unit[2] for row in marked for cell in row if cell for unit in cell})
    place = {name: i for i, name in enumerate(names, start=GAP + 1)}
    size = len(names) + 1
    paired_N = np.array([sum(cell is not None for cell in row) > 1 for row in marked])
    if not paired_N.any():
        raise DataError(f"none of {len(marked)} items has two codings; agreement is between codings of one item.")
    weights_N = relative_weights(item_weights, len(marked))[paired_N]
    parts_ND = np.array([_text(row, n, place) for row, n, paired in zip(marked, lengths, paired_N) if paired])
    characters_N = parts_ND[:, : size * size].sum(1)
    if not characters_N.sum() > 0:
        raise DataError(f"{len(parts_ND)} texts of no characters: there is nothing to mark.")
    typical = float(np.average(weights_N, weights=characters_N))
    parts_ND *= (weights_N / typical)[:, None]

    def alpha(sums: Floats) -> Floats:
        return _alpha(*over(sums[..., : size * size].reshape(*sums.shape[:-1], size, size), sums[..., -2:]))

    def by_chance(_: Floats) -> Floats:
        sums = parts_ND.sum(0)
        pairs_KK, same = over(sums[: size * size].reshape(size, size), sums[-2:])
        total = pairs_KK.sum()
        return np.asarray(1 - (total**2 - (pairs_KK.sum(-1) ** 2).sum()) / (total**2 - same))

    labels = [label for label, paired in zip(unit_labels(units, len(marked)), paired_N) if paired]
    codes_N1 = np.zeros((len(parts_ND), 1), dtype=np.intp)
    return measured_by_units(alpha, parts_ND, codes_N1, labels, kind, unit_kind, level, chance=by_chance)


def _alpha(pairs_KK: Floats, same: Floats) -> Floats:
    """`same` is S: how many ordered pairs of characters, each with itself, are of one unit."""
    total = pairs_KK.sum((-2, -1))
    seen = total - np.trace(pairs_KK, axis1=-2, axis2=-1)
    apart = total**2 - (pairs_KK.sum(-1) ** 2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(apart > 1e-9 * total**2, 1 - seen * (total**2 - same) / (total * apart), np.nan)
    return found


def _all(pairs_KK: Floats, same_2: Floats) -> tuple[Floats, Floats]:
    return pairs_KK, same_2[..., 0]


def _marked_or_not(pairs_KK: Floats, same_2: Floats) -> tuple[Floats, Floats]:
    out, edge = pairs_KK[..., GAP, GAP], pairs_KK[..., GAP, GAP + 1 :].sum(-1)
    inside = pairs_KK[..., GAP + 1 :, GAP + 1 :].sum((-2, -1))
    rows = [np.stack([out, edge], -1), np.stack([edge, inside], -1)]
    return np.stack(rows, -2), same_2[..., 0]


def _labels_alone(pairs_KK: Floats, same_2: Floats) -> tuple[Floats, Floats]:
    return pairs_KK[..., GAP + 1 :, GAP + 1 :], same_2[..., 1]


Over = Callable[[Floats, Floats], tuple[Floats, Floats]]
UNITIZING: dict[str, tuple[Over, str]] = {
    "units and labels": (_all, "Krippendorff's u-alpha"),
    "units": (_marked_or_not, "Krippendorff's |u-alpha"),
    "labels": (_labels_alone, "Krippendorff's cu-alpha"),
}


def _text(row: Sequence[Sequence[Unit] | None], length: int, place: dict[str, int]) -> Floats:
    """A text's coincidences [K * K], and S of its units and of what units have in common, [2], as one vector."""
    coders = [sorted(cell) for cell in row if cell is not None]
    for spans in coders:
        _refuse_overlap(spans, length)
    size, others = len(place) + 1, len(coders) - 1
    pairs_KK = np.zeros((size, size))
    borders = sorted({0, length, *(edge for spans in coders for span in spans for edge in span[:2])})
    for start, end in pairwise(borders):
        given = [next((place[name] for a, b, name in spans if a <= start < b), GAP) for spans in coders]
        for first, second in permutations(given, 2):
            pairs_KK[first, second] += (end - start) / others
    gaps = sum(length - sum(end - start for start, end, _ in spans) for spans in coders)
    same = gaps + sum((end - start) ** 2 for spans in coders for start, end, _ in spans)
    common = sum(
        sum(max(0, min(end, b) - max(start, a)) for a, b, _ in theirs) ** 2
        for ours, theirs in permutations(coders, 2)
        for start, end, _ in ours
    )
    return np.array([*pairs_KK.ravel(), same, common / others])


def _refuse_overlap(spans: Sequence[Unit], length: int) -> None:
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise DataError(
                f"a coder's units overlap ({name} to {end}, {other} from {start}); this alpha is of units that exclude "
                "one another. Take that of each label."
            )
    if spans and (spans[0][0] < 0 or spans[-1][1] > length):
        raise DataError(f"a unit from {spans[0][0]} to {spans[-1][1]} in a text of {length} characters.")
