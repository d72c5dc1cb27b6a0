"""How often the 95 % intervals of `consilience annotate estimate` hold the truth.

    python benchmarks/coverage_annotation.py [--samples 1000] [--regressions 300] [--seed 0]
                                             [--data ../shared/data/annotation] [--only NAME ...] [--json]

Prevalence: a corpus of 1,000 texts is drawn from a population with known shares, a model labels it with known error
rates, and gold is drawn by the sampler of `consilience gold`: evenly, stratified by the model's label, or by clusters.
Of several labels each has its own share, and the row shows the label that is covered worst and the mean over labels.

Regression: 6,722 sentences of British manifestos with an expert's and a crowd's economic position each (Benoit et al.
2016), experts taken for gold and the crowd for the model. The truth is the experts' coefficient over all sentences;
`n` of them are drawn as gold. Without that folder this part is left out, and said so.

A share of samples within one row has the simulation's own error, shown as its Wilson interval; the last column counts
the samples in which a method had no interval at all.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from consilience.annotate.codebook import Codebook
from consilience.annotate.coding.sampling import Frame, Size, allocate, draw
from consilience.annotate.columns import column_of
from consilience.annotate.estimates import GOLD, NAIVE, POST, PPI
from consilience.annotate.gold import GoldItem
from consilience.annotate.regress import DSL, regression
from consilience.annotate.sample import Sample
from consilience.annotate.validate import Coded
from consilience.errors import DataError
from consilience.stats.confusion import cluster_effect_of_shares, confusion
from consilience.stats.correction import prediction_powered
from consilience.stats.proportions import wilson

Rng = np.random.Generator
TEXTS = 1000
DRAWS = 2000
SHARES = {2: [0.7, 0.3], 3: [0.6, 0.3, 0.1], 4: [0.5, 0.3, 0.15, 0.05], 5: [0.4, 0.3, 0.15, 0.1, 0.05]}
Held = dict[str, list[tuple[bool, float]]]  # by method: for every label, whether the interval holds it, and its width


class Population(NamedTuple):
    """Shares of the J true labels, and the model's label given the true one, [J, J]."""

    shares_J: np.ndarray
    model_JJ: np.ndarray


def binary(share: float, sensitivity: float, specificity: float) -> Population:
    return Population(
        np.array([1 - share, share]), np.array([[specificity, 1 - specificity], [1 - sensitivity, sensitivity]])
    )


def several(labels: int, right: float) -> Population:
    """The model sees a label with probability `right`, else takes any other alike."""
    model_JJ = np.full((labels, labels), (1 - right) / (labels - 1))
    np.fill_diagonal(model_JJ, right)
    return Population(np.array(SHARES[labels]), model_JJ)


def one_prevalence(rng: Rng, *, population: Population, gold: int, design: str) -> Held:
    """One corpus, its labels, its gold sample, and the intervals of every label's share."""
    labels = len(population.shares_J)
    cluster_N = np.arange(TEXTS) // 10 if design == "clusters" else None
    if cluster_N is None:
        truth_N = rng.choice(labels, TEXTS, p=population.shares_J)
    else:  # shares differ between clusters: a correlation of 0.1 within them
        shares_GJ = rng.dirichlet(9 * population.shares_J, TEXTS // 10)
        truth_N = np.array([rng.choice(labels, p=shares_GJ[cluster]) for cluster in cluster_N])
    model_N = (rng.random(TEXTS)[:, None] > population.model_JJ[truth_N].cumsum(1)).sum(1)
    places, probabilities = gold_sample(rng, model_N, cluster_N, gold, design)
    weights = None if design == "evenly" else 1 / probabilities
    clusters = None if cluster_N is None else [str(cluster_N[place]) for place in places]
    table = confusion(
        model_N[places],
        truth_N[places],
        np.bincount(model_N, minlength=labels),
        labels,
        rng=rng,
        weights=weights,
        clusters=clusters,
        corpus_effect=1.0 if cluster_N is None else cluster_effect_of_shares(model_N, [*map(str, cluster_N)]),
        draws=DRAWS,
    )
    found: Held = {POST: [], NAIVE: []}
    for j, share in enumerate(population.shares_J):
        post = table.measure("prevalence", j)
        found[POST].append((post.low <= share <= post.high, post.high - post.low))
        found[NAIVE].append(_held(wilson(int((model_N == j).sum()), TEXTS), share))
        if design == "evenly":
            known = np.full(TEXTS, np.nan)
            known[places] = truth_N[places] == j
            found.setdefault(GOLD, []).append(_held(wilson(int(known[places].sum()), len(places)), share))
            if (model_N == j).any():
                powered = prediction_powered((model_N == j).astype(float), known)
                found.setdefault(PPI, []).append(_held((powered.low, powered.high), share))
    return found


def gold_sample(
    rng: Rng, model_N: np.ndarray, cluster_N: np.ndarray | None, gold: int, design: str
) -> tuple[np.ndarray, np.ndarray]:
    """Places and probabilities of the gold texts, by the sampler of `consilience gold plan`."""
    per_unit = None
    if cluster_N is not None:
        units, strata = [f"c{cluster}" for cluster in cluster_N], {f"c{cluster}": "" for cluster in cluster_N}
        sizes, per_unit = {"": Size(drawn=gold // 5)}, 5
    else:
        units = [str(i) for i in range(TEXTS)]
        of_label = [str(label) for label in model_N] if design == "stratified" else [""] * TEXTS
        strata = dict(zip(units, of_label))
        counts = Frame(units_N=units, stratum_of=strata).units_by_stratum
        at_least = min(25, gold // len(counts)) if design == "stratified" else 0
        sizes = {name: Size(drawn=count) for name, count in allocate(counts, gold, at_least=at_least).items()}
    drawn = draw(
        Frame(units_N=units, stratum_of=strata),
        sizes,
        unit_order=rng.permutation(len(strata)),
        text_order=rng.permutation(TEXTS),
        per_unit=per_unit,
    )
    return np.array([text.place for text in drawn]), np.array([text.probability for text in drawn])


def _held(interval: tuple[float, float], truth: float) -> tuple[bool, float]:
    return interval[0] <= truth <= interval[1], interval[1] - interval[0]


def prevalence_cases() -> dict[str, Callable[[Rng], Held]]:
    """The cells of references/annotation.md 4.7, and 3 to 5 labels under every design."""
    cells = ((20, 0.3, 0.85, 0.85), (100, 0.3, 0.85, 0.85), (50, 0.05, 0.8, 0.95), (100, 0.05, 0.8, 0.95))
    cases: dict[str, Callable[[Rng], Held]] = {
        f"yes or no, share {share:g}, {gold} gold, evenly": partial(
            one_prevalence, population=binary(share, sensitivity, specificity), gold=gold, design="evenly"
        )
        for gold, share, sensitivity, specificity in (*cells, (300, 0.05, 0.8, 0.95))
    }
    for labels in (3, 4, 5):
        for gold in (100, 300):
            for design in ("evenly", "stratified"):
                cases[f"{labels} labels, {gold} gold, {design}"] = partial(
                    one_prevalence, population=several(labels, 0.8), gold=gold, design=design
                )
    for labels in (2, 3):
        cases[f"{labels} labels, 200 gold of 40 clusters"] = partial(
            one_prevalence, population=several(labels, 0.8), gold=200, design="clusters"
        )
    return cases


class Sentences(NamedTuple):
    """The manifestos' sentences on the economy: positions by experts and by the crowd, -2 left to 2 right."""

    expert_N: np.ndarray
    crowd_N: np.ndarray
    party_N: list[str]


def read_sentences(folder: Path) -> Sentences | None:
    path = folder / "csta_benoit2016" / "coding_wide_sentence_crowd_vs_expert.csv.gz"
    if not path.is_file():
        return None
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [
            row
            for row in csv.DictReader(lines)
            if row["scale"] == "Economic"
            and row["party"] in ("Conservatives", "Labour")
            and row["codeExperts"]
            and row["codeCrowd"]
        ]
    numbers = [np.array([float(row[name]) for row in rows]) for name in ("codeExperts", "codeCrowd")]
    return Sentences(numbers[0], numbers[1], [row["party"] for row in rows])


POSITION = Codebook(variable="position", question="Left or right?", level="interval", range=(-2, 2))  # type: ignore[arg-type]
SIDE = Codebook(variable="side", question="Which side?", labels=("left", "other", "right"))  # type: ignore[arg-type]
# The coded variable as a number and as a label, and then as what explains.
REGRESSIONS = {
    "position ~ party": (POSITION, "linear"),
    "side_left ~ party": (SIDE, "logistic"),
    "labour ~ position": (POSITION, "linear"),
}


def sides(positions_N: np.ndarray) -> np.ndarray:
    return np.array(["left", "other", "right"])[1 + np.sign(np.round(positions_N)).astype(int)]


def as_sample(sentences: Sentences, codebook: Codebook, gold: Sequence[int]) -> Sample:
    """The corpus as `annotate estimate` reads it, with the sentences at `gold` coded by the experts."""
    if codebook is SIDE:
        expert, crowd = sides(sentences.expert_N), sides(sentences.crowd_N)
        categories: tuple[str, ...] = codebook.names
        known = len(categories)
    else:
        expert, crowd = (np.array([f"{x:g}" for x in x_N]) for x_N in (sentences.expert_N, sentences.crowd_N))
        categories, known = tuple(dict.fromkeys(crowd)), 0
    place = {name: i for i, name in enumerate(categories)}
    gold_N = np.full(len(expert), -1)
    gold_N[list(gold)] = np.arange(len(gold))
    chance = len(gold) / len(expert)
    coded = tuple(
        Coded(gold=GoldItem(id=str(i), label=str(expert[i]), probability=chance), label=str(crowd[i]), status="ok")
        for i in gold
    )
    return Sample(
        configuration="crowd",
        labels=known,
        categories=categories,
        category_N=np.array([place[name] for name in crowd]),
        gold_N=gold_N,
        coded=coded,
        columns={
            "party": column_of("party", [*sentences.party_N]),
            "labour": column_of("labour", [str(int(party == "Labour")) for party in sentences.party_N]),
        },
    )


def regression_cases(sentences: Sentences) -> Iterator[tuple[str, Callable[[Rng], Held]]]:
    whole = range(len(sentences.expert_N))
    for formula, (codebook, family) in REGRESSIONS.items():
        everything = regression(as_sample(sentences, codebook, whole), codebook, formula, family=family, seed=0)
        term = [*everything["coefficients"]][-1]
        truth = everything["coefficients"][term][GOLD]["value"]
        for gold in (100, 200, 400):
            yield (
                f"{formula}, {gold} gold",
                partial(one_regression, sentences=sentences, formula=formula, term=term, truth=truth, gold=gold),
            )
        of: dict[str, Any] = {"sentences": sentences, "formula": formula, "term": term, "truth": truth, "gold": 2000}
        for words, corpus_is_sample in (("of a population", True), ("of these sentences alone", False)):
            yield (
                f"{formula}, 2000 gold, {words}",
                partial(one_regression, corpus_is_sample=corpus_is_sample, **of),
            )


def one_regression(
    rng: Rng, *, sentences: Sentences, formula: str, term: str, truth: float, gold: int, corpus_is_sample: bool = True
) -> Held:
    codebook, family = REGRESSIONS[formula]
    drawn = rng.choice(len(sentences.expert_N), gold, replace=False)
    seed = int(rng.integers(1 << 31))
    try:
        of: dict[str, Any] = {"family": family, "seed": seed, "corpus_is_sample": corpus_is_sample}
        found = regression(as_sample(sentences, codebook, drawn), codebook, formula, **of)
    except DataError:  # no solution: counted as a sample without an interval
        return {}
    ways = found["coefficients"][term]
    return {
        method: [_held((ways[method]["low"], ways[method]["high"]), truth)]
        for method in (DSL, PPI, GOLD, NAIVE)
        if ways.get(method)
    }


def simulated(name: str, once: Callable[[Rng], Held], samples: int, seed: int) -> dict[str, Any]:
    """Every case has its own stream, so that adding one does not move another."""
    rng = np.random.default_rng([seed, *name.encode()])
    began = time.process_time()
    held: dict[str, list[list[tuple[bool, float]]]] = {}
    for _ in range(samples):
        for method, of_labels in once(rng).items():
            held.setdefault(method, []).append(of_labels)
    methods = {}
    for method, rows in held.items():
        shares = np.array([[inside for inside, _ in row] for row in rows if len(row) == len(rows[0])]).mean(0)
        low, high = wilson(round(shares.min() * len(rows)), len(rows))
        methods[method] = {
            "coverage": float(shares.mean()),
            "worst": float(shares.min()),
            "low": low,
            "high": high,
            "width": float(np.mean([width for row in rows for _, width in row])),
            "without": samples - len(rows),
        }
    return {"case": name, "samples": samples, "cpu_s": time.process_time() - began, "methods": methods}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--regressions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    shared = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--data", type=Path, default=shared / "data" / "annotation")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the cases to run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()

    cases = [(name, once, args.samples) for name, once in prevalence_cases().items()]
    sentences = read_sentences(args.data)
    if sentences is None:
        print(f"no manifesto sentences in {args.data}: the regressions are left out")
    else:
        cases += [(name, once, args.regressions) for name, once in regression_cases(sentences)]
    table = Table("case", "method", "coverage", "of the worst label", "95 % interval of that", "mean width", "none")
    rows = []
    for name, once, samples in cases:
        if args.only and not any(part in name for part in args.only):
            continue
        row = simulated(name, once, samples, args.seed)
        rows.append(row)
        for method, found in row["methods"].items():
            between = f"{found['low']:.3f} to {found['high']:.3f}"
            cells = (
                f"{found['coverage']:.3f}",
                f"{found['worst']:.3f}",
                between,
                f"{found['width']:.3g}",
                str(found["without"]),
            )
            table.add_row(name, method, *cells)
            name = ""
    Console(width=140).print(table)
    if args.json:
        print(json.dumps({"seed": args.seed, "cases": rows}))


if __name__ == "__main__":
    main()
