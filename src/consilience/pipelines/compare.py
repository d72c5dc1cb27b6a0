"""The whole of `consilience compare`: evaluation logs in, estimates and paired differences out. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError, pick
from consilience.evaluate.comparison import Bounds, Comparison, Measured, Pair, Scores, compare
from consilience.evaluate.logs import Log, Matched, match, printable, read_log
from consilience.evaluate.logs.matching import chosen_metric, common_metrics
from consilience.rng import stream

MIN_SHARED = 0.8
MOST_PAIRS = 15  # shown of more models: the differences to one of them
NOT_INCLUDED = (
    "items of another kind: these are taken for a sample of what the benchmark stands for",
    "another training run of either model, another prompt, another way to sample replies",
)
OF_A_JUDGE = "another judge, another prompt for it, or the same judge asked again"
OF_LENGTHS = "another spread of lengths, or other difficulties of the instructions: the fit takes both as known"
ONE_ANSWER = "another sample of answers to the same items: every item was answered once"


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareSettings:
    """What is compared, and how: everything that decides the numbers."""

    metric: str | None = None
    models: tuple[str, ...] = ()
    cluster: str | None = None
    margin: float | None = None
    level: float = 0.95
    min_shared: float = MIN_SHARED
    reference: str | None = None
    lower_is_better: bool = False

    def __post_init__(self) -> None:
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise ConfigError(f"the margin is {self.margin:g}; expected a positive difference that would matter.")
        if not 0 < self.level < 1:
            raise ConfigError(f"the level is {self.level:g}; expected a number between 0 and 1, such as 0.95.")
        if self.reference is not None and self.models and self.reference not in self.models:
            raise ConfigError(f"the reference {self.reference!r} is not among the models {', '.join(self.models)}.")


def compare_logs(
    paths: Sequence[str], settings: CompareSettings, *, html: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """The comparison of all models in `paths`, each a file, a folder, or `NAME=PATH`; and its page at `html`.

    Raises `DataError` and `ConfigError` as `read_log`, `match` and `compare` do, and `ConfigError` where `html` is
    there already and `force` is not given. A file of its name is only written when everything went well.
    """
    if html is not None and (html.is_dir() or (html.exists() and not force)):
        raise ConfigError(f"{html} exists. Give --force to overwrite it, or another name.")
    result = compared(_read(paths, settings.cluster), settings)
    if html is not None:
        from consilience.report.comparison import write_comparison_report

        write_comparison_report(result, html)
    return result


def compared(logs: Mapping[str, Log], settings: CompareSettings, *, fewest: int = 2) -> dict[str, Any]:
    """The comparison of all models in `logs`, as `compare_logs` returns it; of `fewest` models at least."""
    metric = chosen_metric(logs, settings.metric)
    matched = match(logs, metric=metric, models=settings.models, min_shared=settings.min_shared, fewest=fewest)
    matched = _reference_last(matched, settings.reference)
    lower = settings.lower_is_better or matched.of.lower_is_better
    found = compare(
        Scores(
            models=matched.models,
            values_MN=matched.values_MN,
            weights_MN=matched.weights_MN,
            clusters=matched.clusters,
            categories=matched.categories,
            unit_kind=_unit_kind(logs, matched),
            scale=matched.of.scale,
            lower_is_better=lower,
        ),
        rng=stream(0, "compare"),
        level=settings.level,
        margin=settings.margin,
    )
    return _as_json(logs, matched, found, settings, lower)


def _read(paths: Sequence[str], cluster: str | None) -> dict[str, Log]:
    """The logs by a short name: the one given, or the shortest end of the path that tells them apart."""
    named: dict[str, tuple[Path, bool]] = {}
    for given in paths:
        name, equals, rest = given.partition("=")
        is_named = bool(equals and name and rest) and not Path(given).exists()
        path = Path(rest if is_named else given)
        label = name if is_named else _short(path, [Path(other) for other in paths if other != given])
        if label in named:
            raise ConfigError(f"{label!r} is given twice. Give every file once, with names of their own as NAME=PATH.")
        named[label] = (path, is_named)
    logs = {}
    for label, (path, is_named) in named.items():
        log = read_log(path, cluster=cluster)
        models = {score.model for score in log.scores}
        if is_named and len(models) > 1:
            raise ConfigError(f"{path} holds {len(models)} models, so {label!r} cannot name one; leave the name out.")
        renamed = [score._replace(model=printable(label)) for score in log.scores] if is_named else log.scores
        logs[printable(label)] = replace(log, scores=renamed)
    return logs


def _short(path: Path, others: Sequence[Path]) -> str:
    parts = path.parts
    for count in range(1, len(parts) + 1):
        if all(other.parts[-count:] != parts[-count:] for other in others):
            return "/".join(parts[-count:])
    return str(path)


def _reference_last(matched: Matched, reference: str | None) -> Matched:
    """With the reference last, every difference to it is `model - reference`."""
    if reference is None:
        return matched
    pick({model: model for model in matched.models}, reference, "model")
    order = sorted(range(len(matched.models)), key=lambda m: matched.models[m] == reference)
    return replace(
        matched,
        models=tuple(matched.models[m] for m in order),
        values_MN=matched.values_MN[order],
        weights_MN=matched.weights_MN[order],
        samples_MN=matched.samples_MN[order],
        present_MN=matched.present_MN[order],
    )


def _unit_kind(logs: Mapping[str, Log], matched: Matched) -> str:
    first = next(iter(logs.values()))
    return first.cluster_kind if matched.clustered else first.item_kind


def _as_json(
    logs: Mapping[str, Log], matched: Matched, found: Comparison, settings: CompareSettings, lower_is_better: bool
) -> dict[str, Any]:
    first = next(iter(logs.values()))
    judges = [log.judged for log in logs.values() if log.judged]
    answered_once = int(matched.samples_MN.max()) <= 1
    reference = settings.reference or (matched.models[0] if len(found.pairs) > MOST_PAIRS else None)
    return {
        "metric": matched.metric,
        "other_metrics": [name for name in common_metrics(logs) if name != matched.metric],
        "scale": matched.of.scale,
        "lower_is_better": lower_is_better,
        "judged": [*dict.fromkeys(judges)],
        "sources": {source: log.kind for source, log in logs.items()},
        "items": len(matched.items),
        "items_of_all": found.items_of_all,
        "item_kind": first.item_kind,
        "unit_kind": _unit_kind(logs, matched),
        "units": len(set(matched.clusters)),
        "categories": dict(Counter(name for name in matched.categories if name)),
        "level": settings.level,
        "margin": settings.margin,
        "models": {
            name: _measured_json(measured)
            | {
                "statuses": {str(status): count for status, count in matched.statuses[name].items()},
                "no_score": _without_score(matched, name),
                "bounds": _bounds_json(found.bounds.get(name)),
            }
            for name, measured in found.models.items()
        },
        "pairs": [_pair_json(pair) | {"shown": reference in (None, pair.first, pair.second)} for pair in found.pairs],
        "ranks": _ranks_json(found),
        "notes": [*dict.fromkeys(note for log in logs.values() for note in log.notes)],
        "not_included": [
            *NOT_INCLUDED,
            *([ONE_ANSWER] if answered_once else []),
            *([OF_A_JUDGE] if judges else []),
        ],
    }


def estimates_json(
    found: Comparison, *, metric: str, unit_kind: str, judged: str, reference: str | None
) -> dict[str, Any]:
    """A comparison of estimates that are no means of scores, in percent, in the shape of `compared`."""
    units = max(measured.estimate.n for measured in found.models.values())
    return {
        "metric": metric,
        "other_metrics": [],
        "scale": (0.0, 100.0),
        "lower_is_better": False,
        "judged": [judged],
        "sources": {},
        "items": units,
        "items_of_all": found.items_of_all,
        "item_kind": unit_kind,
        "unit_kind": unit_kind,
        "units": units,
        "categories": {},
        "level": found.level,
        "margin": found.margin,
        "models": {
            name: _measured_json(measured) | {"statuses": {}, "no_score": units - measured.estimate.n, "bounds": None}
            for name, measured in found.models.items()
        },
        "pairs": [
            _pair_json(pair) | {"shown": reference not in found.models or reference in (pair.first, pair.second)}
            for pair in found.pairs
        ],
        "ranks": _ranks_json(found),
        "notes": [],
        "not_included": [*NOT_INCLUDED, OF_A_JUDGE, OF_LENGTHS],
    }


def _ranks_json(found: Comparison) -> dict[str, Any] | None:
    if found.ranks is None:
        return None
    return {
        "models": [*found.ranks.models],
        "probabilities": [[float(p) for p in row] for row in found.ranks.probabilities],
    }


def _without_score(matched: Matched, model: str) -> int:
    values_N = matched.values_MN[matched.models.index(model)]
    return int(sum(math.isnan(value) for value in values_N.tolist()))


def _measured_json(found: Measured) -> dict[str, Any]:
    return {
        "estimate": found.estimate.to_json(),
        "bands": [band and [*map(float, band)] for band in found.bands],
        "same_categories": found.same_categories and found.same_categories.to_json(),
        "by_category": {name: part.to_json() for name, part in found.by_category.items()},
        "pooled": {name: part._asdict() for name, part in found.pooled.items()},
    }


def _pair_json(pair: Pair) -> dict[str, Any]:
    better = None if math.isnan(pair.better) else pair.better
    measured = _measured_json(pair.difference)
    within = None if pair.within is None or math.isnan(pair.within) else pair.within
    return {
        "first": pair.first,
        "second": pair.second,
        "difference": measured.pop("estimate"),
        **measured,
        "better": better,
        "within": within,
        "items": pair.items,
        "unlike": pair.unlike,
        "together": pair.together and [*pair.together],
    }


def _bounds_json(bounds: Bounds | None) -> dict[str, Any] | None:
    return bounds and bounds._asdict()
