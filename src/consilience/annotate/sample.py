"""What estimates are made of: the model's label of every row, gold of some, weights, clusters, the user's columns.

Shapes: N rows, n gold texts, K categories of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.configuration import pool_of
from consilience.annotate.corpus import corpus
from consilience.annotate.freeze import Frozen
from consilience.annotate.gold import Gold, Unlabelled, read_gold, refuse_examples, refuse_too_few
from consilience.annotate.labels import read_labels
from consilience.annotate.recipe import Project
from consilience.annotate.run import FOLDER
from consilience.annotate.tables import text_of
from consilience.annotate.validate import Coded, category_of
from consilience.errors import DataError


@dataclass(frozen=True)
class Sample:
    """The corpus under one configuration, joined with the test gold.

    `category_N` are places in `categories`, the first `labels` of which are the codebook's, the others statuses.
    `gold_N` is the place of each row's gold text in `coded`, -1 where it has none: development texts have none.
    """

    configuration: str
    labels: int
    categories: tuple[str, ...]
    category_N: NDArray[np.intp]
    gold_N: NDArray[np.intp]
    coded: tuple[Coded, ...]
    ids: tuple[str, ...] = ()
    clusters_N: tuple[str, ...] | None = None
    columns: dict[str, list[Any]] = field(default_factory=dict)
    unlabelled: tuple[Unlabelled, ...] = ()  # drawn for the test, without a final label

    @property
    def rows(self) -> int:
        """How many rows the corpus has."""
        return len(self.category_N)

    @property
    def counts(self) -> dict[str, int]:
        """How often the model gives each category in the corpus."""
        return dict(zip(self.categories, np.bincount(self.category_N, minlength=len(self.categories)).tolist()))


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
    category_N: list[int] = []
    gold_N: list[int] = []
    ids: list[str] = []
    clusters_N: list[str] = []
    kept: list[list[Any]] = [[] for _ in columns]
    coded: list[Coded] = []
    texts: dict[str, str] = {}
    labels = read_labels(path)
    for row in corpus(project, asked):
        line = next(labels, None)
        if line is None or line["id"] != row.id:
            raise DataError(
                f"{path} has {'no line' if line is None else 'id ' + repr(line['id'])} for row {len(category_N) + 1} "
                f"of the data (id {row.id!r}). Run consilience annotate run again; it goes on where it stopped."
            )
        category = category_of(line["label"], line["status"])
        ids.append(row.id)
        category_N.append(place.setdefault(category, len(place)))
        if cluster:
            clusters_N.append(text_of(row.values[0]))
        for values, value in zip(kept, row.values[len(cluster) :]):
            values.append(value)
        item = by_id.pop(row.id, None)
        gold_N.append(-1 if item is None else len(coded))
        if item is not None:
            texts[row.id] = row.text
            own = clusters_N[-1] if cluster else ""
            coded.append(Coded(item, line["label"], line["status"], line.get("p"), own, len(row.text)))
    if by_id:
        raise DataError(f"{len(by_id)} gold ids are not in the data: {', '.join([*by_id][:5])}.")
    shown = project.codebook.example_texts | {shot.text.strip() for shot in pool_of(project)}
    refuse_examples([item.gold for item in coded], texts, shown)
    return Sample(
        configuration=name,
        labels=len(project.codebook.names),
        categories=tuple(place),
        category_N=np.array(category_N, dtype=np.intp),
        gold_N=np.array(gold_N, dtype=np.intp),
        coded=tuple(coded),
        ids=tuple(ids),
        clusters_N=tuple(clusters_N) if cluster else None,
        columns=dict(zip(columns, kept)),
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
