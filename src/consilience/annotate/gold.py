"""Gold: what people coded, with the design by which the texts were drawn for it.

A table with a row per text: `id`, `label` (or a column of the variable's name), and where there are any `split`,
`probability`, `stratum`, `cluster`, `gold_status` and one `coder:NAME` column per coder.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.corpus import corpus
from consilience.annotate.recipe import Project
from consilience.annotate.spans import read_spans, written
from consilience.annotate.strategies import NONE
from consilience.annotate.tables import records, text_of
from consilience.errors import ConfigError, DataError
from consilience.rng import stream

DEV, TEST = "dev", "test"
CODER = "coder:"
UNCODED = "uncoded"
GOLD_STATUS = "gold_status"  # why a drawn text has a final label or none; a coding's own `status` is another matter


@dataclass(frozen=True, slots=True)
class GoldItem:
    """A text that was drawn and coded. `probability` is that of being drawn; None: all texts had the same.

    `coders` holds each coder's own label; `label` is the one that counts. `probability` is already multiplied by
    `coded_share`, the share of the stratum's drawn texts that have a label: coded in part, it is a smaller sample.
    """

    id: str
    label: str
    split: str = TEST
    probability: float | None = None
    stratum: str = ""
    cluster: str = ""
    coders: Mapping[str, str] = field(default_factory=dict)
    coded_share: float = 1.0


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A drawn text without a final label; `why` is its `gold_status`, such as unclear or disagreement."""

    id: str
    why: str
    split: str = TEST
    probability: float | None = None
    stratum: str = ""


@dataclass(frozen=True, slots=True)
class Gold:
    """The gold of a project by split; `unlabelled` are the texts drawn for the test that have no final label."""

    dev: tuple[GoldItem, ...]
    test: tuple[GoldItem, ...]
    unlabelled: tuple[Unlabelled, ...] = ()

    @property
    def coders(self) -> tuple[str, ...]:
        """The names of everyone who coded."""
        return tuple(dict.fromkeys(name for item in (*self.dev, *self.test) for name in item.coders))


def read_gold(project: Project, chosen_by: Collection[str] = ()) -> Gold:
    """The project's gold. Without a `split`, `dev.items` texts drawn at random from it are the development sample.

    Once a configuration was chosen, `chosen_by` are the ids that it was chosen by: these stay aside, and no others.

    What is left is then a sample with accordingly smaller probabilities. Raises `DataError` at a label outside the
    codebook, an id that comes twice, a probability outside 0 to 1, and no gold at all.
    """
    recipe = project.recipe
    unlabelled: list[Unlabelled] = []
    if recipe.gold.column is not None:
        items, has_split = _from_column(project, recipe.gold.column), False
    else:
        path = project.file(recipe.gold.path or "")
        if not path.is_file():
            raise DataError(
                f"no gold {path}. Draw a sample and code it (consilience gold plan, then gold code), or give a table "
                "with the columns id and label (gold: in the recipe)."
            )
        items, unlabelled, has_split = _from_table(path, project.codebook, recipe.gold.encoding)
    if not items:
        raise DataError(
            f"the gold holds no coded text yet ({len(unlabelled)} drawn). Code some first: "
            f"consilience gold code {project.folder}"
        )
    items = _weighted_as_coded(items, unlabelled)
    if has_split:
        return _by_split(items, unlabelled)
    return _set_aside(items, chosen_by, recipe.dev.items, recipe.seed, unlabelled)


def refuse_examples(gold: Sequence[GoldItem], texts: Mapping[str, str], shown: Collection[str]) -> None:
    """Raises `DataError` where a gold text is among those that models or coders are shown with their label."""
    twice = [item.id for item in gold if texts[item.id].strip() in shown]
    if twice:
        raise DataError(
            f"{len(twice)} gold texts are also examples that the model is shown (id {', '.join(twice[:5])}): what is "
            "measured on them flatters it. Take them out of the codebook, of the examples, or of the gold."
        )


def refuse_too_few(gold: Sequence[GoldItem], codebook: Codebook, what: str) -> None:
    """Raises `DataError` where there are fewer gold texts than labels."""
    if len(gold) < max(2, len(codebook.labels)):
        raise DataError(
            f"{len(gold)} gold texts for {what}, fewer than the {len(codebook.labels)} labels of the codebook. "
            "Code more, at least some 25 to each label that the model gives."
        )


def _from_table(path: Path, codebook: Codebook, encoding: str) -> tuple[list[GoldItem], list[Unlabelled], bool]:
    items: dict[str, GoldItem] = {}
    unlabelled: dict[str, Unlabelled] = {}
    columns: Sequence[str] = ()
    for number, row in enumerate(records(path, encoding), start=1):
        where = f"{path}, row {number}"
        columns = [*row]
        column = next((name for name in ("label", codebook.variable) if name in row), None)
        if "id" not in row or column is None:
            raise DataError(f"{path} has the columns {', '.join(row)}; expected id and label.")
        id_ = text_of(row["id"])
        if id_ in items or id_ in unlabelled:
            raise DataError(f"{where}: the id {id_!r} comes twice.")
        label = _label(text_of(row[column]), codebook, where)
        drawn: dict[str, Any] = {
            "split": _split(row.get("split"), where),
            "probability": _probability(row.get("probability"), where),
            "stratum": text_of(row.get("stratum")),
        }
        if label is None:
            unlabelled[id_] = Unlabelled(id_, text_of(row.get(GOLD_STATUS)) or "no label", **drawn)
            continue
        items[id_] = GoldItem(
            id=id_,
            label=label,
            **drawn,
            cluster=text_of(row.get("cluster")),
            coders={
                name.removeprefix(CODER): code
                for name in row
                if name.startswith(CODER) and (code := _label(text_of(row[name]), codebook, where)) is not None
            },
        )
    probabilities = [item.probability for item in items.values()] + [text.probability for text in unlabelled.values()]
    if len({probability is None for probability in probabilities}) > 1:
        raise DataError(f"{path}: some rows have a probability of being drawn and some have none.")
    return [*items.values()], [*unlabelled.values()], "split" in columns


def _from_column(project: Project, column: str) -> list[GoldItem]:
    items = []
    for number, row in enumerate(corpus(project, [column]), start=1):
        label = _label(text_of(row.values[0]), project.codebook, f"{project.recipe.data.path}, row {number}")
        if label is not None:
            items.append(GoldItem(row.id, label))
    return items


def _weighted_as_coded(items: Sequence[GoldItem], unlabelled: Sequence[Unlabelled]) -> list[GoldItem]:
    """The items with the probabilities of a sample that is coded in part, by split and stratum."""
    coded = Counter((item.split, item.stratum) for item in items)
    left = Counter((text.split, text.stratum) for text in unlabelled)
    found = []
    for item in items:
        cell = item.split, item.stratum
        share = coded[cell] / (coded[cell] + left[cell])
        found.append(
            replace(item, coded_share=share, probability=None if item.probability is None else item.probability * share)
        )
    return found


def _set_aside(
    items: Sequence[GoldItem], chosen_by: Collection[str], count: int, seed: int, unlabelled: Sequence[Unlabelled]
) -> Gold:
    there = [item.id for item in items if item.id in chosen_by]
    count = len(there) or count
    if count and len(items) < 2 * count:
        raise ConfigError(
            f"dev.items is {count}, and there are {len(items)} gold texts in all: at least as many should be left to "
            f"estimate from. Set dev.items to {len(items) // 3} or fewer (0: no development sample), or code more."
        )
    drawn = set(there) or {items[i].id for i in stream(seed, "dev").permutation(len(items))[:count]}
    kept = (len(items) - count) / len(items)
    thinned = [
        replace(item, split=DEV if item.id in drawn else TEST, probability=item.probability and item.probability * kept)
        for item in items
    ]
    return _by_split(thinned, unlabelled)


def _by_split(items: Sequence[GoldItem], unlabelled: Sequence[Unlabelled]) -> Gold:
    return Gold(
        dev=tuple(item for item in items if item.split == DEV),
        test=tuple(item for item in items if item.split == TEST),
        unlabelled=tuple(text for text in unlabelled if text.split == TEST),
    )


def _label(text: str, codebook: Codebook, where: str) -> str | None:
    """The canonical label; None where nobody coded. `(none)` is a multi-label text to which no label applies."""
    if not text.strip():
        return None
    if codebook.level is Level.MULTI_LABEL and text.strip() == NONE:
        return ""
    if codebook.level is Level.MULTI_LABEL and not text.strip(f"{JOINT} "):
        return ""
    try:
        if codebook.level is Level.SPAN:
            return written(read_spans(text, codebook.names))
        return codebook.canonical(text)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _split(cell: Any, where: str) -> str:
    split = text_of(cell) or TEST
    if split not in (DEV, TEST):
        raise DataError(f"{where}: split is {split!r}; expected dev or test.")
    return split


def _probability(cell: Any, where: str) -> float | None:
    text = text_of(cell)
    if not text:
        return None
    try:
        probability = float(text)
    except ValueError:
        probability = math.nan
    if not 0 < probability <= 1:
        raise DataError(f"{where}: the probability of being drawn is {text!r}; expected more than 0, at most 1.")
    return probability
