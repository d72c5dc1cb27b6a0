"""From a corpus to a gold sample in `gold.sqlite`: what may be drawn, how many, which; and its extension later.

The corpus is read twice, row by row: once for what decides the draw, once for the texts drawn.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.codebook import CLOSED, Codebook
from consilience.annotate.coding.sampling import (
    PARTS,
    DrawnText,
    Frame,
    Size,
    allocate,
    draw,
    kish_design_effect,
    label_strata,
    seeded_orders,
    units_for_width,
)
from consilience.annotate.coding.store import GOLD_TABLE, STORE, GoldStore, GoldText
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.errors import ConfigError, DataError
from consilience.records import read_rows
from consilience.rng import stream
from consilience.run import fingerprint

AT_LEAST = 25  # texts of every stratum, where there are so many to draw (references: 25 to 30 per predicted class)
# What an extension may change of a design: how many texts, and how many people code how many of them.
HOW_MANY = ("texts", "width", "share", "level", "correlation", "twice", "coders")
WHOLE_CORPUS = "all texts"


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Where the texts are: a table, its columns of text, identifier (else the row's number) and cluster."""

    path: Path
    text: str
    id: str | None = None
    cluster: str | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldDesign:
    """How gold is drawn; an extension may change only what says how many (HOW_MANY).

    One of `texts` (how many in all) and `width` (so many that a gold-only interval of a share near `share` is that
    -+ `width` on the test part) is given. Stratified by the model's label if `stratify` (a column) or `labels` (what
    `annotate run` wrote) is given, with `bins` of confidence; else, if the corpus has clusters and `per_cluster`
    texts of each are asked for, in two stages. `development` is the part for choosing prompts, `twice` the part that
    `coders` persons code.
    """

    texts: int | None = None
    width: float | None = None
    share: float = 0.5
    level: float = 0.95
    stratify: str | None = None
    labels: Path | None = None
    confidence: str | None = None
    bins: int = 1
    at_least: int | None = None
    equal: bool = False
    per_cluster: int | None = None
    correlation: float | None = None
    development: float = 0.25
    twice: float = 0.25
    coders: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.width is None):
            raise ConfigError("how many texts? Give --n (so many), or --width (the half width of an interval).")
        if self.texts is not None and self.texts < 2:
            raise ConfigError(f"--n is {self.texts}; expected at least 2 texts.")
        if self.stratify and self.labels:
            raise ConfigError("--stratify names a column and --labels a file of model labels; give one of them.")
        if self.per_cluster is not None and (self.stratify or self.labels):
            raise ConfigError("texts are drawn by stratum or by cluster: give --per-cluster or --stratify/--labels.")
        if self.per_cluster is not None and self.per_cluster < 1:
            raise ConfigError(f"--per-cluster is {self.per_cluster}; expected at least 1.")
        if self.confidence and not self.stratify:
            raise ConfigError("--confidence divides the strata of --stratify; name the column of model labels too.")
        if self.bins < 1 or (self.bins > 1) != bool(self.confidence or (self.labels and self.bins > 1)):
            raise ConfigError(f"--bins is {self.bins}; expected 2 or more with --confidence or --labels, else 1.")
        if self.width is not None and not 0 < self.width < 0.5:
            raise ConfigError(f"--width is {self.width:g}; expected half the width of an interval, such as 0.05.")
        if self.correlation is not None and not 0 <= self.correlation <= 1:
            raise ConfigError(f"--correlation is {self.correlation:g}; expected 0 to 1.")
        for name, value in {"--dev": self.development, "--double": self.twice}.items():
            if not 0 <= value <= 1 or (name == "--dev" and value > 0.5):
                raise ConfigError(f"{name} is {value:g}; expected a share of 0 to {'0.5' if name == '--dev' else '1'}.")
        if self.coders < 2:
            raise ConfigError(f"--coders is {self.coders}; a text that is coded twice takes at least 2.")
        if (
            self.per_cluster is not None
            and self.per_cluster > 1
            and self.width is not None
            and self.correlation is None
        ):
            raise ConfigError(
                "a width with several texts to a cluster takes --correlation: how alike texts of one cluster are, "
                "0 to 1 (0.1 to 0.3 for sentences of one speech; 0 if a cluster is a random heap)."
            )


@dataclass(slots=True)
class _Frame:
    """The corpus without its texts: what may be drawn, and what may not and why."""

    ids: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # among all rows: what is left out later moves no random order
    clusters: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=lambda: {"empty": 0, "shown to models as examples": 0})
    all_clusters: dict[str, int] = field(default_factory=dict)
    rows: int = 0

    def orders(self, seed: int, by_cluster: bool) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Random orders of the units and of the texts: those of all rows, with what may not be drawn passed over."""
        unit_order, text_order = seeded_orders(seed, len(self.all_clusters) if by_cluster else self.rows, self.rows)
        units = [self.all_clusters[name] for name in dict.fromkeys(self.clusters)] if by_cluster else self.places
        return np.argsort(np.argsort(unit_order)[units]), np.argsort(np.argsort(text_order)[self.places])


def plan_gold(
    project: Path, codebook: Codebook, corpus: Corpus, design: GoldDesign, never: Collection[str] = ()
) -> dict[str, Any]:
    """Draws the gold sample of `project`, or extends it, and says what was drawn.

    Empty texts and texts that are `never` to be gold, because models are shown them (`few_shot_texts`), are not drawn
    but counted. Raises `DataError` or `ConfigError` at what cannot be drawn from, and where an extension would not
    hold the sample as it is. Nothing is written then.
    """
    path = project / STORE
    frame = _read_frame(corpus, design, never)
    about = {
        "corpus": {"path": str(corpus.path), "fingerprint": fingerprint(corpus.path), "columns": _columns(corpus)},
        "design": {key: value for key, value in asdict(design).items() if key not in HOW_MANY}
        | {"labels": fingerprint(design.labels) if design.labels else None},
        "codebook": {"digest": codebook.digest, "variable": codebook.variable, "level": str(codebook.level)},
        "frame": {"rows": frame.rows, "texts": len(frame.ids), "left_out": frame.left_out},
    }
    if not path.exists():
        refuse_other_gold(project)
        sizes, drawn, in_corpus = _draw(frame, design, codebook, before={})
        texts = _texts(corpus, frame, drawn, design)
        with GoldStore.create(path, about | {"sizes": _sizes_json(sizes)}, texts) as store:
            return _summary(store, frame, drawn, in_corpus, added=len(texts))
    with GoldStore(path) as store:
        _refuse_changes(store, about)
        before = {name: Size(**size) for name, size in store.about["sizes"].items()}
        sizes, drawn, in_corpus = _draw(frame, design, codebook, before)
        texts = _texts(corpus, frame, drawn, design)
        added = store.extend({"sizes": _sizes_json(sizes)}, texts)
        return _summary(store, frame, drawn, in_corpus, added)


def refuse_other_gold(project: Path) -> None:
    """Raises `ConfigError` where a gold table is there that no sample of this project wrote; it would be lost."""
    table = project / GOLD_TABLE
    if table.exists():
        raise ConfigError(
            f"{table} is there already, and no {STORE} that it came from. Codings are written there: move it, then "
            f"draw, or take its texts over with --drawn and its labels with gold import."
        )


def corpus_rows(corpus: Corpus, *columns: str | None) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Identifier, text and cells of `columns` of every row; raises `DataError` at an unknown column or a doubled id."""
    table = read_table(corpus.path, corpus.encoding)
    places = [place_of(table.columns, name, corpus.path, "named for the gold sample") for name in columns if name]
    text_at = place_of(table.columns, corpus.text, corpus.path, "the texts")
    id_at = place_of(table.columns, corpus.id, corpus.path, "the identifiers") if corpus.id else None
    seen: set[str] = set()
    for number, row in enumerate(table.rows, start=1):
        item = str(number) if id_at is None else text_of(row[id_at])
        if not item or item in seen:
            what = f"{item!r} a second time" if item else "empty"
            raise DataError(
                f"{corpus.path}, row {number}: the identifier ({corpus.id}) is {what}; each row needs its own."
            )
        seen.add(item)
        yield item, text_of(row[text_at]), tuple(row[place] for place in places)


def _read_frame(corpus: Corpus, design: GoldDesign, never: Collection[str]) -> _Frame:
    model_labels = _model_labels(design.labels) if design.labels else None
    frame = _Frame()
    if design.per_cluster is not None and not corpus.cluster:
        raise ConfigError("--per-cluster takes --cluster, the column that says which texts belong together.")
    for item, text, cells in corpus_rows(corpus, corpus.cluster, design.stratify, design.confidence):
        frame.rows += 1
        where = f"{corpus.path}, row {frame.rows}"
        rest = list(cells)
        if corpus.cluster:
            cluster = sys.intern(_filled(rest.pop(0), f"{where}: no cluster ({corpus.cluster})"))
            frame.all_clusters.setdefault(cluster, len(frame.all_clusters))
        if not text.strip():
            frame.left_out["empty"] += 1
            continue
        if " ".join(text.split()) in never:
            frame.left_out["shown to models as examples"] += 1
            continue
        frame.ids.append(item)
        frame.places.append(frame.rows - 1)
        if corpus.cluster:
            frame.clusters.append(cluster)
        if design.stratify:
            frame.labels.append(sys.intern(text_of(rest.pop(0)).strip() or "(none)"))
        if design.confidence:
            frame.confidences.append(_number(rest.pop(0), f"{where}, column {design.confidence}"))
        if model_labels is not None:
            if item not in model_labels:
                raise DataError(f"{where}: {design.labels} has no label of {item!r}; annotate the whole corpus first.")
            label, confidence = model_labels[item]
            frame.labels.append(label)
            frame.confidences.append(confidence)
    return frame


def _model_labels(path: Path) -> dict[str, tuple[str, float]]:
    """Label and confidence by text from what `annotate run` wrote; a failed answer is a stratum of its own."""
    found = {}
    for where, row in read_rows(path):
        if not {"id", "label", "status"} <= row.keys():
            raise DataError(f"{where}: expected id, label and status, as `consilience annotate run` writes them.")
        label = str(row["label"]) if row["status"] == "ok" else f"({row['status']})"
        logprobs = row.get("logprobs") or {}
        total = sum(math.exp(value) for value in logprobs.values())
        confidence = math.exp(logprobs[label]) / total if label in logprobs and total > 0 else 0.0
        found[str(row["id"])] = (label, confidence)
    return found


def _draw(
    frame: _Frame, design: GoldDesign, codebook: Codebook, before: Mapping[str, Size]
) -> tuple[dict[str, Size], list[DrawnText], Mapping[str, int]]:
    """How many units of every stratum, the texts drawn, and how many texts the corpus has in every stratum."""
    if not frame.ids:
        raise DataError(f"of {frame.rows} rows none has a text that can be drawn: {_left_out(frame)}.")
    by_cluster = design.per_cluster is not None
    units = frame.clusters if by_cluster else frame.ids
    if frame.labels and not by_cluster:
        confidences = frame.confidences if design.bins > 1 else None
        strata = dict(zip(units, label_strata(frame.labels, confidences, bins=design.bins)))
    else:
        strata = dict.fromkeys(units, WHOLE_CORPUS)
    full = Frame(units_N=units, stratum_of=strata)
    counts = full.units_by_stratum
    total, at_least = _how_many(frame, design, counts, before)
    fewest = len(codebook.labels) if codebook.level in CLOSED else len(counts)
    texts_drawn = total if not by_cluster else total * (design.per_cluster or 1)
    if texts_drawn < max(fewest, len(counts) if not by_cluster else 0):
        what = f"{len(codebook.labels)} labels" if fewest > len(counts) else f"{len(counts)} strata"
        raise ConfigError(f"{texts_drawn} gold texts for {what}: fewer than one to each. Draw more, better 25 to each.")
    already = {name: size.drawn for name, size in before.items()}
    if total < sum(already.values()):
        what = "clusters" if by_cluster else "texts"
        raise ConfigError(
            f"{sum(already.values())} {what} are drawn already, and {total} would be fewer. --n counts all."
        )
    chosen = allocate(counts, total, at_least=at_least, equal=design.equal, already=already)
    if before:
        dev = {name: before[name].dev if name in before else 0 for name in chosen}
    else:
        room = {name: count // 2 for name, count in chosen.items()}  # every stratum keeps half for the estimates
        dev = allocate(room, min(round(design.development * total), sum(room.values())))
    sizes = {name: Size(drawn=chosen[name], dev=dev[name]) for name in counts}
    unit_order, text_order = frame.orders(design.seed, by_cluster)
    drawn = draw(
        full, sizes, unit_order=unit_order, text_order=text_order, per_unit=design.per_cluster, twice=design.twice
    )
    return sizes, drawn, Counter(strata[unit] for unit in units)


def _how_many(
    frame: _Frame, design: GoldDesign, counts: Mapping[str, int], before: Mapping[str, Size]
) -> tuple[int, int]:
    """Units to draw in all, and at least of every stratum."""
    available = sum(counts.values())
    per_unit = 1.0
    if design.per_cluster is not None:
        sizes = Counter(frame.clusters).values()
        per_unit = sum(min(size, design.per_cluster) for size in sizes) / len(sizes)
    if design.width is not None:
        at_least = AT_LEAST if design.at_least is None and len(counts) > 1 else design.at_least or 1
        for_test = units_for_width(
            counts,
            design.width,
            share=design.share,
            level=design.level,
            at_least=at_least,
            equal=design.equal,
            per_unit=per_unit,
            correlation=design.correlation or 0.0,
        )
        kept = (
            sum(size.dev for size in before.values())
            if before
            else for_test * design.development / (1 - design.development)
        )
        total = min(for_test + round(kept), available)
    else:
        total = math.ceil((design.texts or 0) / per_unit)
    if design.at_least is not None:
        return total, max(design.at_least, 1)
    return total, max(min(AT_LEAST, total // max(len(counts), 1)), 1) if len(counts) > 1 else 1


def _texts(corpus: Corpus, frame: _Frame, drawn: Sequence[DrawnText], design: GoldDesign) -> list[GoldText]:
    """The drawn texts in the order in which they are coded: at random, whatever their strata."""
    by_item = {frame.ids[text.place]: text for text in drawn}
    rank = stream(design.seed, "gold", "coding order").permutation(frame.rows)
    found = [
        (
            rank[frame.places[chosen.place]],
            GoldText(
                item=item,
                text=text,
                wanted=design.coders if chosen.twice else 1,
                stratum=chosen.stratum if chosen.stratum != WHOLE_CORPUS else "",
                cluster=frame.clusters[chosen.place] if frame.clusters else "",
                part=chosen.part,
                probability=chosen.probability,
                part_probability=chosen.part_probability,
            ),
        )
        for item, text, _ in corpus_rows(corpus)
        if (chosen := by_item.get(item)) is not None
    ]
    return [text for _, text in sorted(found, key=lambda pair: pair[0])]


def _refuse_changes(store: GoldStore, about: Mapping[str, Any]) -> None:
    was, now = store.about, about
    if "adopted" in was["design"]:
        raise ConfigError(
            f"{store.path} was taken over from {was['design']['adopted']}; it is not extended by drawing."
        )
    if was["corpus"]["fingerprint"] != now["corpus"]["fingerprint"]:
        raise ConfigError(
            f"the corpus {now['corpus']['path']} is not the one that {store.path} was drawn from; "
            "a sample is extended from the same texts."
        )
    for part in ("design", "corpus"):
        for key, value in now[part].items():
            if key != "path" and was[part].get(key) != value:
                raise ConfigError(
                    f"{store.path} was drawn with {key} {was[part].get(key)!r}, now {value!r}. An extension changes "
                    "only how many; for another design take another project folder."
                )


def _summary(
    store: GoldStore, frame: _Frame, drawn: Sequence[DrawnText], in_corpus: Mapping[str, int], added: int
) -> dict[str, Any]:
    """What the sample is, for print and for --json: never which text is in which stratum."""
    strata: dict[str, dict[str, int]] = {}
    for text in drawn:
        row = strata.setdefault(text.stratum, {"corpus": in_corpus[text.stratum], "dev": 0, "test": 0, "twice": 0})
        row[text.part] += 1
        row["twice"] += text.twice
    test = [text.part_probability for text in drawn if text.part == "test"]
    return {
        "store": str(store.path),
        "texts": len(drawn),
        "added": added,
        "corpus": len(frame.ids),
        "left_out": frame.left_out,
        **{part: sum(text.part == part for text in drawn) for part in PARTS},
        "twice": sum(text.twice for text in drawn),
        "strata": strata,
        "clusters": len({frame.clusters[text.place] for text in drawn}) if frame.clusters else 0,
        "design_effect": kish_design_effect(test),
    }


def _columns(corpus: Corpus) -> dict[str, str | None]:
    return {"text": corpus.text, "id": corpus.id, "cluster": corpus.cluster, "encoding": corpus.encoding}


def _sizes_json(sizes: Mapping[str, Size]) -> dict[str, dict[str, int]]:
    return {name: {"drawn": size.drawn, "dev": size.dev} for name, size in sizes.items()}


def _left_out(frame: _Frame) -> str:
    return ", ".join(f"{count} {why}" for why, count in frame.left_out.items() if count) or "there are none"


def _filled(cell: Any, otherwise: str) -> str:
    text = text_of(cell).strip()
    if not text:
        raise DataError(f"{otherwise}. Fill it in, or leave --cluster out.")
    return text


def _number(cell: Any, where: str) -> float:
    try:
        number = float(text_of(cell))
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise DataError(f"{where}: {text_of(cell)!r} is no number; a confidence is one.")
    return number
