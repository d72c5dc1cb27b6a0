"""How far codings of the same texts agree, on every level: of people, of a model with gold, of both together.

Codings are rows of a text's codings as the codebook writes them, None where there is none, a status in brackets where a
coder gave no label. What is measured depends on the level:

    nominal, ordinal   observed agreement, Krippendorff's alpha of the level, Gwet's AC1, of an order AC2 too
    interval           observed agreement, alpha
    multi-label        those of a nominal variable, label by label: applies or not
    span               the share of texts with the very same spans; F1 and alpha over characters, marked or not, the
                       texts as units; of all labels together, and label by label
    free text          the share that is the same but for blanks and capitals: nothing here knows what a text means

Shapes: N texts, R coders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from consilience.annotate.answers import Status
from consilience.annotate.codebook import CLOSED, JOINT, Codebook, Level
from consilience.annotate.spans import Span, merged, read_spans, runs
from consilience.stats import Estimate, gwet_ac, krippendorff_alpha, mean, observed_agreement, share_interval
from consilience.stats.agreement import overlap_f1
from consilience.stats.unitizing import unitizing_alpha

Make = Callable[[float], Estimate]  # from the level of the interval
Rows = Sequence[Sequence[str | None]]
NO_LABEL = frozenset(f"({status})" for status in Status)  # what a model gives in place of a label
MEASURED = (*CLOSED, Level.INTERVAL, Level.MULTI_LABEL, Level.SPAN)  # levels on which coders are compared


@dataclass(frozen=True, slots=True)
class Design:
    """How texts were drawn: weights (None: all alike) and clusters (None: each text alone)."""

    weights: tuple[float, ...] | None
    clusters: tuple[str, ...] | None

    @property
    def unit_kind(self) -> str:
        return "texts" if self.clusters is None else "clusters"

    def part(self, places: Sequence[int]) -> Design:
        """The design of some of the texts."""
        return Design(
            None if self.weights is None else tuple(self.weights[i] for i in places),
            None if self.clusters is None else tuple(self.clusters[i] for i in places),
        )


@dataclass(frozen=True, slots=True)
class Codings:
    """The codings of one variable, or of one label out of several, on a scale: ratings [N, R], None for none.

    Of spans a rating is all that a coder marked in the text, which `marked` holds too (nothing, where a model gave no
    answer), with the texts' `lengths` in characters.
    """

    name: str
    scale: str
    ratings: list[list[Any]]
    categories: list[Any]
    marked: list[list[tuple[Span, ...] | None]] | None = None
    lengths: tuple[int, ...] = ()


def codings_of(rows: Rows, codebook: Codebook, lengths: Sequence[int] = ()) -> list[Codings]:
    """What is measured apart: one variable, or every label of several. `lengths` are of the texts, for spans.

    A status in brackets is a category of a nominal variable, and no coding on the other levels.
    """
    names, variable = codebook.names, codebook.variable

    def each(value_of: Callable[[str], Any]) -> list[list[Any]]:
        return [[None if value is None else value_of(value) for value in row] for row in rows]

    if codebook.level is Level.SPAN:
        return _spans(rows, codebook, lengths)
    if codebook.level is Level.MULTI_LABEL:
        answered = each(lambda value: None if _is_status(value) else value.split(JOINT))
        return [
            Codings(
                f"{variable}: {name}",
                "nominal",
                [[None if labels is None else str(name in labels) for labels in row] for row in answered],
                ["False", "True"],
            )
            for name in names
        ]
    if codebook.level is Level.INTERVAL:
        return [Codings(variable, "interval", each(_number), [])]
    if codebook.level is Level.ORDINAL:
        places = {name: i for i, name in enumerate(names)}
        return [Codings(variable, "ordinal", each(places.get), [*range(len(names))])]
    if codebook.level is Level.FREE_TEXT:
        return [Codings(variable, "text", each(lambda value: " ".join(value.split()).casefold()), [])]
    seen = {value for row in rows for value in row if value is not None}
    return [Codings(variable, "nominal", each(str), [*names, *sorted(seen - {*names})])]


def agreement(codings: Codings, design: Design) -> dict[str, Make]:
    """The measures that fit the scale, by name, each a function of its interval's level, raising `DataError`."""
    whole: dict[str, Any] = {"item_weights": design.weights, "unit_kind": design.unit_kind}
    ratings, categories = codings.ratings, codings.categories
    name = {"text": "same text, but for blanks and capitals", "spans": "same spans"}.get(codings.scale)
    found: dict[str, Make] = {name or "observed agreement": lambda level: observed(ratings, design, level)}
    if codings.scale == "text":
        return found
    if codings.scale == "spans":
        return found | _over_characters(codings, design) | _over_units(codings, design)
    found[f"Krippendorff's alpha ({codings.scale})"] = lambda level: krippendorff_alpha(
        ratings, design.clusters, scale=codings.scale, categories=categories or None, **whole, level=level
    )
    if codings.scale != "interval":
        found["Gwet's AC1"] = lambda level: gwet_ac(
            ratings, design.clusters, categories=categories, **whole, level=level
        )
    if codings.scale == "ordinal":
        found["Gwet's AC2 (linear)"] = lambda level: gwet_ac(
            ratings, design.clusters, weights="linear", categories=categories, **whole, level=level
        )
    return found


def measures_of(rows: Rows, codebook: Codebook, design: Design, lengths: Sequence[int] = ()) -> dict[str, Make]:
    """The measures of everything that is measured apart, in one table: `MEASURE` or `MEASURE, LABEL`."""
    parts = codings_of(rows, codebook, lengths)
    return {
        name + (f", {codings.name.removeprefix(f'{codebook.variable}: ')}" if len(parts) > 1 else ""): make
        for codings in parts
        for name, make in agreement(codings, design).items()
    }


def observed(ratings: Sequence[Sequence[Any]], design: Design, level: float) -> Estimate:
    """The share of pairs of codings of a text that are alike, averaged over the texts with at least two."""
    if all(len(row) == 2 and None not in row for row in ratings):
        first, second = [row[0] for row in ratings], [row[1] for row in ratings]
        weights, kind = design.weights, design.unit_kind
        return observed_agreement(first, second, design.clusters, item_weights=weights, unit_kind=kind, level=level)
    kept = [place for place, row in enumerate(ratings) if sum(cell is not None for cell in row) > 1]
    alike = []
    for place in kept:
        pairs = [a == b for a, b in combinations([cell for cell in ratings[place] if cell is not None], 2)]
        alike.append(sum(pairs) / len(pairs))
    return share_of(alike, design.part(kept), level)


def prevalence(ratings: Sequence[Sequence[Any]], category: Any, design: Design, level: float) -> Estimate:
    """The share of a category among a text's codings, averaged over the texts."""
    kept = [place for place, row in enumerate(ratings) if any(cell is not None for cell in row)]
    shares = []
    for place in kept:
        given = [cell for cell in ratings[place] if cell is not None]
        shares.append(sum(cell == category for cell in given) / len(given))
    return share_of(shares, design.part(kept), level)


def share_of(values: Sequence[float], design: Design, level: float) -> Estimate:
    """The mean of shares, with Wilson's interval at the effective sample size."""
    share = mean(values, design.clusters, weights=design.weights, unit_kind=design.unit_kind, level=level)
    method = f"{share.method}; Wilson score interval at the effective sample size"
    return replace(share, interval=share_interval(share), method=method)


def left_out(labels: Sequence[str | None], codebook: Codebook) -> str:
    """What becomes, in the measures, of texts that a model gave no label; empty where there are none."""
    without = sum(label is None for label in labels)
    if not without:
        return ""
    said = f"{without} of {len(labels)} texts have no label of the model. They count as disagreement in"
    of_level = {
        Level.ORDINAL: f"{said} observed agreement, kappa and AC1, and are left out of alpha and AC2.",
        Level.INTERVAL: f"{said} observed agreement, and are left out of alpha and of the differences.",
        Level.MULTI_LABEL: f"{said} observed agreement and overlap, and are left out of the labels' own measures.",
        Level.SPAN: f"{said} the share of the same spans and in F1, and are left out of alpha.",
    }
    return of_level.get(codebook.level, f"{said} all measures.")


def _spans(rows: Rows, codebook: Codebook, lengths: Sequence[int]) -> list[Codings]:
    def of(name: str, chosen: Callable[[Span], bool]) -> Codings:
        def read(value: str | None) -> Any:
            if value is None or _is_status(value):
                return value
            return tuple(span for span in read_spans(value, codebook.names) if chosen(span))

        ratings = [[read(value) for value in row] for row in rows]
        marked = [[() if isinstance(cell, str) else cell for cell in row] for row in ratings]
        return Codings(name, "spans", ratings, [], marked, tuple(lengths))

    variable = codebook.variable
    every = of(f"{variable}: any label", lambda span: True)
    if len(codebook.names) < 2:
        return [every]
    return [every, *(of(f"{variable}: {name}", lambda span, name=name: span.label == name) for name in codebook.names)]  # type: ignore[misc]


def _over_characters(codings: Codings, design: Design) -> dict[str, Make]:
    """F1 and alpha of characters that are marked or not."""
    marked = codings.marked or []
    cut = [runs(row, length) for row, length in zip(marked, codings.lengths, strict=True)]
    answered = [[not isinstance(cell, str) for cell in row] for row in codings.ratings]
    places = [place for place, text in enumerate(cut) for _ in text]
    counts = [count for text in cut for count, _ in text]
    ratings = [
        [cell if there else None for cell, there in zip(by, answered[place])]
        for place, text in enumerate(cut)
        for _, by in text
    ]
    units = [str(i) if design.clusters is None else design.clusters[i] for i in places]
    weights = None if design.weights is None else [design.weights[i] for i in places]
    overlaps, sizes = np.zeros(len(cut)), np.zeros(len(cut))
    for i, text in enumerate(cut):
        for count, by in text:
            for first, second in combinations([cell for cell in by if cell is not None], 2):
                overlaps[i] += count * (first and second)
                sizes[i] += count * (first + second)
    return {
        "F1 over characters": lambda level: overlap_f1(
            overlaps, sizes, design.clusters, item_weights=design.weights, unit_kind=design.unit_kind, level=level
        ),
        "Krippendorff's alpha (characters)": lambda level: krippendorff_alpha(
            ratings, units, repeats=counts, categories=[False, True], item_weights=weights, unit_kind=design.unit_kind,
            level=level,
        ),
    }  # fmt: skip


def _over_units(codings: Codings, design: Design) -> dict[str, Make]:
    """Unitizing alphas: of what is marked as whole units, and where there are several labels of the labels too."""
    marked = [[None if isinstance(cell, str) else cell for cell in row] for row in codings.ratings]

    def alpha(about: str, of: Callable[[Sequence[Span]], Sequence[Span]]) -> Make:
        units = [[None if cell is None else of(cell) for cell in row] for row in marked]
        return lambda level: unitizing_alpha(
            units, codings.lengths, design.clusters, about=about, item_weights=design.weights,
            unit_kind=design.unit_kind, level=level,
        )  # fmt: skip

    found = {"Krippendorff's |u-alpha (units)": alpha("units", partial(merged, labels=False))}
    if len({span.label for row in marked for cell in row for span in cell or ()}) > 1:
        found["Krippendorff's u-alpha (units and labels)"] = alpha("units and labels", merged)
        found["Krippendorff's cu-alpha (labels of what both marked)"] = alpha("labels", merged)
    return found


def _is_status(value: str) -> bool:
    return value in NO_LABEL


def _number(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
