"""The same items under all models: one place per item, NaN where a model has no score, and a count of every reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.errors import ConfigError, DataError, pick
from consilience.evaluate.logs.scores import Log, Metric, Score, Status

Floats = NDArray[np.float64]
EXAMPLES, EXAMPLE_LENGTH = 3, 48


@dataclass(frozen=True, kw_only=True, slots=True)
class Matched:
    """Scores of M models on the N items that any of them has, NaN where there is none.

    `samples_MN` are the answers that a score is the mean of. `statuses` counts every row read, and the items that are
    missing, by model.
    """

    metric: str
    of: Metric
    models: tuple[str, ...]
    items: tuple[str, ...]
    clusters: tuple[str, ...]
    categories: tuple[str, ...]
    values_MN: Floats
    weights_MN: Floats
    samples_MN: NDArray[np.int64]
    present_MN: NDArray[np.bool_]  # the model's log has the item, whatever became of it
    statuses: Mapping[str, Mapping[Status, int]]
    clustered: bool  # some cluster holds several items


class _Item(NamedTuple):
    values: list[float]
    first: Score


def names_of(logs: Mapping[str, Log]) -> dict[tuple[str, str], str]:
    """`(source, model in it) -> the name to show`: the model's own where it is unique, else with its source."""
    pairs = [(source, model) for source, log in logs.items() for model in dict.fromkeys(s.model for s in log.scores)]
    several = Counter(model for _, model in pairs)
    return {(source, model): model if several[model] == 1 else f"{model} ({source})" for source, model in pairs}


def common_metrics(logs: Mapping[str, Log]) -> list[str]:
    """The metrics that all logs have, in the order of the first; raises `DataError` where there is none."""
    in_each = [dict.fromkeys(score.metric for score in log.scores) for log in logs.values()]
    common = [name for name in in_each[0] if all(name in names for names in in_each)]
    if not common:
        each = "; ".join(f"{source}: {', '.join(names)}" for source, names in zip(logs, in_each))
        raise DataError(f"the files have no metric in common. {each}.")
    return common


def chosen_metric(logs: Mapping[str, Log], asked: str | None) -> str:
    """The metric to compare by: the one asked for, by its name or by what stands before the comma; or the first."""
    common = common_metrics(logs)
    if asked is None:
        return common[0]
    under = [name for name in common if name.partition(",")[0] == asked]
    if asked not in common and len(under) > 1:
        raise ConfigError(f"the metric {asked!r} is there under several filters: {'; '.join(under)}. Give one whole.")
    return under[0] if asked not in common and under else pick({name: name for name in common}, asked, "metric")


def match(
    logs: Mapping[str, Log], *, metric: str, models: Sequence[str] = (), min_shared: float = 0.8, fewest: int = 2
) -> Matched:
    """The scores of all models (or of those named) under `metric`, item by item.

    Of several scores of one item and sample the first counts, the others are duplicates. Several samples of an item
    are averaged. Raises `ConfigError` at fewer models than `fewest`, and `DataError` where two of them share less than
    `min_shared` of the items of the smaller one, or nothing; where an item belongs to two clusters; where a model has
    no score at all.
    """
    names = names_of(logs)
    for name in models:
        pick({shown: shown for shown in names.values()}, name, "model")
    chosen = [key for key, name in names.items() if not models or name in models]
    chosen.sort(key=lambda key: models.index(names[key]) if models else 0)
    tables = {names[key]: {} for key in chosen}  # type: dict[str, dict[str, _Item]]
    statuses: dict[str, Counter[Status]] = {names[key]: Counter() for key in chosen}
    for source, log in logs.items():
        _fill(log, source, metric, names, tables, statuses)
    tables = {model: items for model, items in tables.items() if items}
    if len(tables) < fewest:
        there = f"only {next(iter(tables))!r}" if tables else "no model"
        raise ConfigError(f"a comparison takes two models; there is {there}. Give a second file, or one with several.")
    for model, items in tables.items():
        if not any(found.values for found in items.values()):
            why = ", ".join(f"{count} {status}" for status, count in statuses[model].items())
            raise DataError(f"{model} has no score on any of its {len(items)} items: {why}.")
    _refuse_unlike(tables, min_shared)
    return _laid_out(tables, statuses, metric, next(log for log in logs.values()).metrics.get(metric, Metric()))


def _fill(
    log: Log,
    source: str,
    metric: str,
    names: Mapping[tuple[str, str], str],
    tables: Mapping[str, dict[str, _Item]],
    statuses: Mapping[str, Counter[Status]],
) -> None:
    seen: dict[tuple[str, str, str], float] = {}
    for score in log.scores:
        name = names[source, score.model]
        if score.metric != metric or name not in tables:
            continue
        key = (name, score.item, score.sample)
        if key in seen:
            same = seen[key] == score.value or (math.isnan(seen[key]) and math.isnan(score.value))
            statuses[name][Status.DUPLICATE if same else Status.CONTRADICTION] += 1
            continue
        seen[key] = score.value
        statuses[name][score.status] += 1
        found = tables[name].get(score.item)
        if found is None:
            found = tables[name][score.item] = _Item([], score)
        if not math.isnan(score.value):
            found.values.append(score.value)


def _refuse_unlike(tables: Mapping[str, Mapping[str, _Item]], min_shared: float) -> None:
    """The items of the smaller of two models that the other has too, as a share; the least of all pairs decides."""
    if not 0 <= min_shared <= 1:
        raise ConfigError(f"--min-shared is {min_shared:g}; expected a share from 0 to 1.")

    def shared(pair: tuple[str, str]) -> float:
        one, other = (tables[name].keys() for name in pair)
        return len(one & other) / min(len(one), len(other))

    if len(tables) < 2:
        return
    one, other = min(combinations(tables, 2), key=shared)
    share = shared((one, other))
    if share >= min_shared and share > 0:
        return
    counts = f"{len(tables[one].keys() & tables[other].keys())} of {len(tables[one])} and {len(tables[other])} items"
    only = "; ".join(
        f"only in {mine}: {_examples([item for item in tables[mine] if item not in tables[theirs]])}"
        for mine, theirs in ((one, other), (other, one))
        if tables[mine].keys() - tables[theirs].keys()
    )
    raise DataError(
        f"{one} and {other} share {counts}, {100 * share:.0f} % of the smaller; expected {100 * min_shared:g} %. "
        f"{only}. " + (f"To compare what is shared, give --min-shared {_below(share):g}." if share else "")
    )


def _below(share: float) -> float:
    return math.floor(1000 * share) / 1000


def _examples(items: Sequence[str]) -> str:
    shown = (item if len(item) <= EXAMPLE_LENGTH else item[: EXAMPLE_LENGTH - 1] + "…" for item in items[:EXAMPLES])
    more = ", ..." if len(items) > EXAMPLES else ""
    return ", ".join(map(repr, shown)) + more


def _laid_out(
    tables: Mapping[str, Mapping[str, _Item]], statuses: Mapping[str, Counter[Status]], metric: str, of: Metric
) -> Matched:
    items = [*dict.fromkeys(item for table in tables.values() for item in table)]
    shape = (len(tables), len(items))
    values_MN, weights_MN = np.full(shape, np.nan), np.ones(shape)
    samples_MN, present_MN = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    clusters, categories = [""] * len(items), [""] * len(items)
    for row, (model, table) in enumerate(tables.items()):
        for at, item in enumerate(items):
            found = table.get(item)
            if found is None:
                statuses[model][Status.MISSING] += 1
                continue
            present_MN[row, at] = True
            samples_MN[row, at] = len(found.values)
            weights_MN[row, at] = found.first.weight
            if found.values:
                values_MN[row, at] = sum(found.values) / len(found.values)
            cluster = found.first.cluster or item
            if clusters[at] not in ("", cluster):
                raise DataError(f"item {item!r} is of cluster {clusters[at]!r}, but of {cluster!r} under {model}.")
            clusters[at] = cluster
            categories[at] = categories[at] or found.first.category
    return Matched(
        metric=metric,
        of=of,
        models=tuple(tables),
        items=tuple(items),
        clusters=tuple(clusters),
        categories=tuple(categories),
        values_MN=values_MN,
        weights_MN=weights_MN,
        samples_MN=samples_MN,
        present_MN=present_MN,
        statuses={model: dict(statuses[model]) for model in tables},
        clustered=len(set(clusters)) < len(items),
    )
