"""What estimates are made of: the model's label of every row, gold of some, weights, clusters, the user's columns.

Everything of a row is a number: a million rows have to fit beside one another.

Shapes: N rows, n gold texts, K categories of the model.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.columns import Column, ColumnReader
from consilience.annotate.configuration import pool_of
from consilience.annotate.corpus import TextsDigest, corpus
from consilience.annotate.freeze import Frozen
from consilience.annotate.gold import Gold, Unlabelled, read_gold, refuse_examples, refuse_too_few
from consilience.annotate.labels import read_labels
from consilience.annotate.recipe import Project
from consilience.annotate.run import FOLDER
from consilience.annotate.tables import text_of
from consilience.annotate.validate import Coded, category_of, design_of
from consilience.errors import DataError


@dataclass(frozen=True)
class Sample:
    """The corpus under one configuration, joined with the test gold.

    `category_N` are places in `categories`, the first `labels` of which are the codebook's, the others statuses.
    `gold_N` is the place of each row's gold text in `coded`, -1 where it has none: development texts have none.
    `row_N` is where a row stands in the corpus, if these are not all of it; `cluster_N` its place in `clusters`.
    """

    configuration: str
    labels: int
    categories: tuple[str, ...]
    category_N: NDArray[np.int_]
    gold_N: NDArray[np.int_]
    coded: tuple[Coded, ...]
    row_N: NDArray[np.int_] | None = None
    cluster_N: NDArray[np.int_] | None = None
    clusters: tuple[str, ...] = ()  # of the data, else those that the gold was drawn in
    columns: dict[str, Column] = field(default_factory=dict)
    unlabelled: tuple[Unlabelled, ...] = ()  # drawn for the test, without a final label

    @property
    def rows(self) -> int:
        """How many rows the corpus has."""
        return len(self.category_N)

    @property
    def counts(self) -> dict[str, int]:
        """How often the model gives each category in the corpus."""
        return dict(zip(self.categories, np.bincount(self.category_N, minlength=len(self.categories)).tolist()))

    @property
    def gold_rows(self) -> NDArray[np.intp]:
        """The rows that have gold."""
        return np.flatnonzero(self.gold_N >= 0)

    @property
    def unit_N(self) -> NDArray[np.intp]:
        """The independent units, by number: clusters of the data, else each row alone.

        Numbers are those of the whole corpus: estimates of two groups are paired by the clusters that are in both, and
        by nothing else.
        """
        if self.cluster_N is not None:
            return self.cluster_N.astype(np.intp)
        return np.arange(self.rows) if self.row_N is None else self.row_N.astype(np.intp)

    @property
    def unit_with_gold_N(self) -> NDArray[np.intp]:
        """As `unit_N`; without clusters of the data, gold texts are in the clusters that they were drawn in."""
        unit_N, clusters = self.unit_N, design_of(self.coded).clusters
        if clusters is not None and self.cluster_N is None:
            place = {name: -1 - i for i, name in enumerate(self.clusters or dict.fromkeys(clusters))}
            rows = self.gold_rows
            unit_N[rows] = [place[clusters[i]] for i in self.gold_N[rows]]
        return unit_N

    def part(self, chosen_N: NDArray[np.bool_]) -> Sample:
        """The rows that are chosen, with their gold, without the columns."""
        old_N = self.gold_N[chosen_N]
        kept = old_N[old_N >= 0]
        new = np.full(len(self.coded) + 1, -1)  # the last: of rows without gold
        new[kept] = np.arange(len(kept))
        clusters = design_of(self.coded).clusters or ()
        return replace(
            self,
            category_N=self.category_N[chosen_N],
            gold_N=new[old_N],
            coded=tuple(self.coded[place] for place in kept),
            row_N=np.flatnonzero(chosen_N) if self.row_N is None else self.row_N[chosen_N],
            cluster_N=None if self.cluster_N is None else self.cluster_N[chosen_N],
            clusters=self.clusters or tuple(dict.fromkeys(clusters)),
            columns={},
            unlabelled=(),
        )


def _texts_coded(project: Project) -> str | None:
    """The `TextsDigest` of what `annotate run` coded; none where an earlier version did."""
    record = project.folder / FOLDER / "run.json"
    found: dict[str, Any] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    return found.get("texts")


def _other_texts(project: Project, what: str) -> DataError:
    return DataError(
        f"the texts of {project.recipe.data.path} are not those that were coded: {what}. Put them back, or remove "
        f"{project.folder / FOLDER} and give consilience annotate run again. Columns may be added freely."
    )


def read_sample(project: Project, frozen: Frozen, name: str, columns: Sequence[str] = ()) -> Sample:
    """Reads labels, data and gold together, in one pass.

    Raises `DataError` where labels are missing or do not belong to the data, gold is not in the corpus, is among the
    texts that the model was shown or that the configuration was chosen by, or is too little.
    """
    gold = read_gold(project, frozen.record["dev_gold"])
    _refuse_dev(gold, frozen)
    refuse_too_few(gold.test, project.codebook, "the estimates")
    by_id = {item.id: item for item in gold.test}
    cluster = [project.recipe.data.cluster] if project.recipe.data.cluster else []
    asked = [*cluster, *columns]
    path = project.folder / FOLDER / f"{name}.jsonl"
    categories: list[str] = [*project.codebook.names]
    place = {category: i for i, category in enumerate(categories)}
    category_N, gold_N, cluster_N = array("i"), array("i"), array("i")
    clusters: dict[str, int] = {}
    kept = [ColumnReader(name) for name in columns]
    coded: list[Coded] = []
    texts: dict[str, str] = {}
    labels, read = read_labels(path), TextsDigest()
    for row in corpus(project, asked):
        read.add(row)
        line = next(labels, None)
        if line is None:
            raise DataError(
                f"{path} has no line for row {len(category_N) + 1} of the data (id {row.id!r}). Run consilience "
                "annotate run again; it goes on where it stopped."
            )
        if line["id"] != row.id:
            raise _other_texts(project, f"row {len(category_N) + 1} has id {row.id!r}, then {line['id']!r}")
        category = category_of(line["label"], line["status"])
        category_N.append(place.setdefault(category, len(place)))
        own = text_of(row.values[0]) if cluster else ""
        cluster_N.append(clusters.setdefault(own, len(clusters)))
        for column, value in zip(kept, row.values[len(cluster) :]):
            column.add(text_of(value))
        item = by_id.pop(row.id, None)
        gold_N.append(-1 if item is None else len(coded))
        if item is not None:
            texts[row.id] = row.text
            coded.append(Coded(item, line["label"], line["status"], line.get("p"), own, len(row.text)))
    if _texts_coded(project) not in (None, str(read)):
        raise _other_texts(project, "another text or another order of rows")
    if by_id:
        raise DataError(f"{len(by_id)} gold ids are not in the data: {', '.join([*by_id][:5])}.")
    shown = project.codebook.example_texts | {shot.text.strip() for shot in pool_of(project)}
    refuse_examples([item.gold for item in coded], texts, shown)
    return Sample(
        configuration=name,
        labels=len(project.codebook.names),
        categories=tuple(place),
        category_N=np.frombuffer(category_N, dtype=np.int32),
        gold_N=np.frombuffer(gold_N, dtype=np.int32),
        coded=tuple(coded),
        cluster_N=np.frombuffer(cluster_N, dtype=np.int32) if cluster else None,
        clusters=tuple(clusters) if cluster else (),
        columns={column.name: column.column() for column in kept},
        unlabelled=gold.unlabelled,
    )


def _refuse_dev(gold: Gold, frozen: Frozen) -> None:
    """The texts that the configuration was chosen by are no test gold, whatever the gold file says by now."""
    chosen_by = set(frozen.record["dev_gold"])
    twice = [item.id for item in gold.test if item.id in chosen_by]
    if twice:
        raise DataError(
            f"{len(twice)} of the test gold texts are those that the configuration was chosen by (id {twice[0]} among "
            "them): the gold or dev.items changed since freeze. Give them split: dev, or freeze again."
        )
