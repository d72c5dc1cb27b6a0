"""How often the 95 % intervals of consilience.stats hold the truth, on samples drawn from known populations.

    python benchmarks/coverage.py [--samples 2000] [--seed 0] [--only NAME ...] [--json]

One row per population: the share of samples whose interval holds the true value, with the Wilson interval of that share
(the simulation's own error), and the mean width. Shares of 20 items are not simulated: their coverage is summed over
the 21 outcomes, at the point and on average over shares within 0.04 of it, because at a single point the coverage of
any such interval jumps with every outcome it takes in.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.special import expit
from scipy.stats import binom

from consilience.stats import Estimate, difference, mean, proportion
from consilience.stats.agreement import cohens_kappa, gwet_ac, krippendorff_alpha
from consilience.stats.bradley_terry import bradley_terry
from consilience.stats.correction import post_stratified, prediction_powered
from consilience.stats.length_control import GamedBaselines, length_controlled_win_rate
from consilience.stats.paired_shares import paired_difference
from consilience.stats.probabilities import simultaneous
from consilience.stats.proportions import PROPORTION_INTERVALS, wilson
from consilience.stats.resampling import bca, bootstrap_draws, percentile
from consilience.stats.unitizing import UNITIZING, Unit, unitizing_alpha
from consilience.stats.win_rate import win_rate

Rng = np.random.Generator
Draw = Callable[[Rng], tuple[Estimate, float] | bool]
GRADES = np.arange(1, 11)
GRADE_SHARES = np.array([2, 2, 3, 4, 5, 6, 9, 19, 30, 20]) / 100  # as a judge's: most of them 8 to 10
LATENT_SHARES = {2: [0.85, 0.15], 3: [0.5, 0.3, 0.2], 4: [0.4, 0.3, 0.2, 0.1]}


def graded_mean(rng: Rng, *, n: int) -> tuple[Estimate, float]:
    return mean(rng.choice(GRADES, n, p=GRADE_SHARES)), float(GRADES @ GRADE_SHARES)


def clusters(rng: Rng, count: int, *, unequal: bool) -> np.ndarray:
    """Every item's cluster: 5 items each, or 1 to 20."""
    sizes = rng.integers(1, 21, count) if unequal else np.full(count, 5)
    return np.repeat(np.arange(count), sizes)


def clustered_mean(rng: Rng, *, unequal: bool) -> tuple[Estimate, float]:
    cluster = clusters(rng, 20, unequal=unequal)
    scores = rng.normal(0, 1, 20)[cluster] + rng.normal(0, 1, len(cluster))
    return mean(scores, list(map(str, cluster))), 0.0


def clustered_share(rng: Rng, *, share: float) -> tuple[Estimate, float]:
    cluster = clusters(rng, 20, unequal=False)
    p = rng.beta(4 * share, 4 * (1 - share), 20)[cluster]  # correlation 0.2 within a cluster
    return proportion((rng.random(len(cluster)) < p).astype(float), list(map(str, cluster))), share


def paired_grades(rng: Rng, *, n: int) -> tuple[Estimate, float]:
    hard = rng.normal(0, 2, n)
    sides = [np.clip(np.round(7 + lift + hard + rng.normal(0, 1.5, n)), 1, 10) for lift in (0.0, 0.0)]
    return difference(mean(sides[0]), mean(sides[1])), 0.0


def paired_verdicts(rng: Rng, *, n: int, cells: list[float], interval: str) -> tuple[Estimate, float]:
    """`cells`: the shares of items that both, only we, only they and neither got right."""
    cell = rng.choice(4, n, p=cells)
    return paired_difference(cell <= 1, cell % 2 == 0, interval=interval), cells[1] - cells[2]


def weak_candidate(rng: Rng, *, n: int) -> tuple[Estimate, float]:
    """Win probabilities as a judge gives them, near 0 and 1; true win rate 10 %."""
    return win_rate(rng.beta(0.1, 0.9, n)), 10.0


def controlled(rng: Rng, *, n: int) -> tuple[Estimate, float]:
    quality, length, hard = -0.8, -0.7, 0.9
    difficulty, gaps = rng.normal(0, 1.5, n), rng.normal(-400, 900, n)
    names = [str(i) for i in range(n)]
    wins = rng.random(n) < expit(quality + length * np.tanh(gaps / 900) + hard * difficulty)
    gamed_gaps = np.concatenate([rng.normal(0.8, 0.5, n), rng.normal(-0.8, 0.5, n)])
    gamed_wins = rng.random(2 * n) < expit(length * np.tanh(gamed_gaps) + hard * np.tile(difficulty, 2))
    found = length_controlled_win_rate(
        wins,
        gaps,
        names,
        difficulty=dict(zip(names, difficulty)),
        gamed=GamedBaselines(gamed_wins, gamed_gaps, names * 2),
    )
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = 100 * float(weights @ expit(quality + hard * 1.5 * nodes) / weights.sum())
    return found.estimate, truth


def ratings(rng: Rng, *, prompts: int) -> tuple[Estimate, float]:
    """Five models meet pairwise on every prompt, twice; on a prompt, a model is better or worse than it is on average.

    The true difference is what endless prompts give, so it is not the difference of the strengths.
    """
    first, second = np.triu_indices(5, 1)
    first, second = np.tile(first, 2 * prompts), np.tile(second, 2 * prompts)
    prompt = np.repeat(np.arange(prompts), 20)
    strength = STRENGTHS + rng.normal(0, PROMPT_SPREAD, (prompts, 5))
    gap = strength[prompt, first] - strength[prompt, second]
    wins = np.where(rng.random(len(gap)) < 0.2, 0.5, rng.random(len(gap)) < expit(gap))
    found = bradley_terry(
        [f"m{i}" for i in first], [f"m{i}" for i in second], wins, [str(i) for i in prompt], reference="m0"
    )
    return difference(found["m4"], found["m1"]), TRUE_RATING_GAP


STRENGTHS, PROMPT_SPREAD = np.array([0.0, -0.3, 0.1, 0.5, 0.9]), 0.7


def _true_rating_gap() -> float:
    """The Bradley-Terry fit of the expected wins: E[sigmoid(gap + N(0, 2 spread^2))], a fifth of battles tied."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    gaps = np.subtract.outer(STRENGTHS, STRENGTHS)
    smeared = expit(gaps[..., None] + math.sqrt(2) * PROMPT_SPREAD * nodes) @ weights / weights.sum()
    i, j = np.triu_indices(5, 1)
    names = [f"m{k}" for k in range(5)]
    fit = bradley_terry([names[k] for k in i], [names[k] for k in j], 0.1 + 0.8 * smeared[i, j], reference="m1")
    return fit["m4"].value


TRUE_RATING_GAP = _true_rating_gap()


def coded(rng: Rng, n: int, raters: int, categories: int, right: float) -> np.ndarray:
    """Raters see an item's category with probability `right`, and guess otherwise."""
    truth = rng.choice(categories, n, p=LATENT_SHARES[categories])
    guesses = rng.integers(0, categories, (n, raters))
    return np.where(rng.random((n, raters)) < right, truth[:, None], guesses)


def agreement(rng: Rng, *, measure: str, n: int, raters: int, categories: int, right: float) -> tuple[Estimate, float]:
    found = AGREEMENT[measure](coded(rng, n, raters, categories, right), [*range(categories)])
    return found, _true_agreement(measure, raters, categories, right)


def marked_texts(rng: Rng, n: int) -> tuple[list[list[list[Unit]]], list[int]]:
    """Two coders find 80 % of the units of a text each, set their borders up to 3 characters off, and err in 15 % of
    the labels."""
    texts, lengths = [], []
    for _ in range(n):
        length, at = int(rng.integers(60, 300)), int(rng.integers(0, 60))
        units = []
        while at < length:
            end = min(length, at + int(rng.integers(5, 25)))
            units.append((at, end, int(rng.integers(2))))
            at = end + int(rng.integers(5, 60))
        row: list[list[Unit]] = []
        for _ in range(2):
            found: list[Unit] = []
            for start, end, label in units:
                begins = max(found[-1][1] if found else 0, start + int(rng.integers(-3, 4)))
                ends = min(length, max(begins + 1, end + int(rng.integers(-3, 4))))
                if rng.random() < 0.8 and begins < ends:
                    found.append((begins, ends, "ab"[label ^ int(rng.random() < 0.15)]))
            row.append(found)
        texts.append(row)
        lengths.append(length)
    return texts, lengths


def unitizing(rng: Rng, *, n: int, about: str) -> tuple[Estimate, float]:
    return unitizing_alpha(*marked_texts(rng, n), about=about), _true_unitizing(about)


@cache
def _true_unitizing(about: str) -> float:
    """Of 4,000 texts: known to 0.004."""
    return unitizing_alpha(*marked_texts(np.random.default_rng(0), 4000), about=about).value


AGREEMENT: dict[str, Callable[..., Estimate]] = {
    "kappa": lambda r, names, units=None: cohens_kappa(r[:, 0], r[:, 1], units, categories=names),
    "alpha": lambda r, names, units=None: krippendorff_alpha(r, units, categories=names),
    "ordinal alpha": lambda r, names, units=None: krippendorff_alpha(r, units, scale="ordinal", categories=names),
    "AC1": lambda r, names, units=None: gwet_ac(r, units, categories=names),
}


@cache
def _true_agreement(measure: str, raters: int, categories: int, right: float) -> float:
    """The measure of a table with every combination of ratings as often as it is expected."""
    rows = np.array([*product(range(categories), repeat=raters)])
    chances = [
        sum(
            share * np.prod([right * (rating == truth) + (1 - right) / categories for rating in row])
            for truth, share in enumerate(LATENT_SHARES[categories])
        )
        for row in rows
    ]
    often = np.round(100_000 * np.array(chances)).astype(int)
    labels = np.repeat([str(i) for i in range(len(rows))], often)  # equal rows as one unit: quick, the same value
    return AGREEMENT[measure](np.repeat(rows, often, axis=0), [*range(categories)], [*labels]).value


def skewed_mean(rng: Rng, *, method: str) -> tuple[Estimate, float]:
    x = rng.lognormal(0, 0.8, 40)
    plain = mean(x)
    if method == "t":
        return plain, math.exp(0.32)
    parts = np.column_stack([x, np.ones_like(x)])
    draws = bootstrap_draws(lambda sums: sums[..., 0] / sums[..., 1], parts, rng=rng, draws=2000)
    return (bca if method == "BCa" else percentile)(plain, draws), math.exp(0.32)


def corrected(rng: Rng, *, method: str, gold: int, share: float, sensitivity: float, specificity: float) -> Any:
    truth = rng.random(1000) < share
    called = np.where(truth, rng.random(1000) < sensitivity, rng.random(1000) >= specificity)
    known = np.where(np.arange(1000) < gold, truth.astype(float), np.nan)
    if method == "PPI++":
        return prediction_powered(called.astype(float), known), share
    if len({*called[:gold]}) < 2:
        return proportion(known[:gold]), share  # a stratum without gold: no post-stratification; gold alone
    return post_stratified([*called], known, rng=rng, draws=2000), share


def family(rng: Rng) -> bool:
    """Do the simultaneous intervals of all six differences of four models hold at once?"""
    hard = rng.normal(0, 1, 60)
    models = [mean(hard + rng.normal(0, 1, 60)) for _ in range(4)]
    gaps = [difference(a, b) for i, a in enumerate(models) for b in models[:i]]
    return all(found.low <= 0 <= found.high for found in simultaneous(gaps, rng=rng, draws=2000))


RARE = [0.05, 0.02, 0.05, 0.88]
ALIKE = [0.45, 0.15, 0.10, 0.30]
CASES: dict[str, Draw] = {
    "mean of grades, n = 30": partial(graded_mean, n=30),
    "mean of grades, n = 80": partial(graded_mean, n=80),
    "clustered mean, 20 alike": partial(clustered_mean, unequal=False),
    "clustered mean, 20 of 1 to 20": partial(clustered_mean, unequal=True),
    "clustered share 0.5, 20": partial(clustered_share, share=0.5),
    "clustered share 0.9, 20": partial(clustered_share, share=0.9),
    "paired difference of grades, n = 50": partial(paired_grades, n=50),
    "paired shares, Newcombe, n = 20": partial(paired_verdicts, n=20, cells=ALIKE, interval="newcombe"),
    "paired shares, Dirichlet, n = 20": partial(paired_verdicts, n=20, cells=ALIKE, interval="dirichlet"),
    "paired rare shares, Newcombe, n = 50": partial(paired_verdicts, n=50, cells=RARE, interval="newcombe"),
    "paired rare shares, Dirichlet, n = 50": partial(paired_verdicts, n=50, cells=RARE, interval="dirichlet"),
    "win rate 10 %, n = 50": partial(weak_candidate, n=50),
    "win rate 10 %, n = 200": partial(weak_candidate, n=200),
    "length-controlled win rate, n = 200": partial(controlled, n=200),
    "length-controlled win rate, n = 805": partial(controlled, n=805),
    "Bradley-Terry difference, 30 prompts": partial(ratings, prompts=30),
    "Bradley-Terry difference, 80 prompts": partial(ratings, prompts=80),
    "kappa, 2 categories, n = 50": partial(agreement, measure="kappa", n=50, raters=2, categories=2, right=0.8),
    "kappa, 3 categories, n = 50": partial(agreement, measure="kappa", n=50, raters=2, categories=3, right=0.8),
    "kappa, 3 categories, n = 200": partial(agreement, measure="kappa", n=200, raters=2, categories=3, right=0.8),
    "alpha, 3 raters, n = 50": partial(agreement, measure="alpha", n=50, raters=3, categories=3, right=0.8),
    "alpha, 3 raters, n = 200": partial(agreement, measure="alpha", n=200, raters=3, categories=3, right=0.8),
    "ordinal alpha, n = 50": partial(agreement, measure="ordinal alpha", n=50, raters=3, categories=4, right=0.8),
    "ordinal alpha of 0.90, n = 50": partial(
        agreement, measure="ordinal alpha", n=50, raters=3, categories=4, right=0.95
    ),
    "AC1, 3 raters, n = 50": partial(agreement, measure="AC1", n=50, raters=3, categories=3, right=0.8),
    "AC1, 2 skewed categories, n = 50": partial(agreement, measure="AC1", n=50, raters=2, categories=2, right=0.8),
    **{
        f"unitizing alpha of {about}, n = {n}": partial(unitizing, n=n, about=about)
        for about in UNITIZING
        for n in (20, 50)
    },
    "lognormal mean, t, n = 40": partial(skewed_mean, method="t"),
    "lognormal mean, percentile, n = 40": partial(skewed_mean, method="percentile"),
    "lognormal mean, BCa, n = 40": partial(skewed_mean, method="BCa"),
    **{
        f"{method}, {gold} gold, share {share:g}": partial(
            corrected, method=method, gold=gold, share=share, sensitivity=sensitivity, specificity=specificity
        )
        for gold, share, sensitivity, specificity in (
            (100, 0.3, 0.85, 0.85),
            (100, 0.05, 0.8, 0.95),
            (300, 0.05, 0.8, 0.95),
        )
        for method in ("PPI++", "post-stratified")
    },
    "six simultaneous differences": family,
}


def simulated(name: str, draw: Draw, samples: int, seed: int) -> dict[str, Any]:
    """Every case has its own stream, so that adding one does not move another."""
    rng = np.random.default_rng([seed, *name.encode()])
    began, held, widths = time.perf_counter(), 0, []
    for _ in range(samples):
        found = draw(rng)
        if isinstance(found, bool):
            held += found
        else:
            estimate, truth = found
            held += estimate.low <= truth <= estimate.high
            widths.append(estimate.high - estimate.low)
    low, high = wilson(held, samples)
    return {
        "case": name,
        "coverage": held / samples,
        "low": low,
        "high": high,
        "samples": samples,
        "width": float(np.mean(widths)) if widths else None,
        "seconds": time.perf_counter() - began,
    }


def of_twenty(n: int = 20) -> Iterator[dict[str, Any]]:
    """The coverage of every interval of a share, summed over the outcomes."""
    for name, of in PROPORTION_INTERVALS.items():
        ends = np.array([of(k, n, 0.95) for k in range(n + 1)])

        def coverage(share: float, ends: np.ndarray = ends) -> float:
            inside = (ends[:, 0] <= share) & (share <= ends[:, 1])
            return float(binom.pmf(np.arange(n + 1), n, share) @ inside)

        for share in (0.05, 0.5, 0.95):
            around = np.linspace(share - 0.04, share + 0.04, 401)
            yield {
                "case": f"share {share:g} of {n}, {name}",
                "coverage": coverage(share),
                "coverage_around": float(np.mean([coverage(p) for p in around])),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the cases to run")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()

    chosen = {k: v for k, v in CASES.items() if not args.only or any(part in k for part in args.only)}
    rows = [simulated(name, draw, args.samples, args.seed) for name, draw in chosen.items()]
    table = Table("population", "coverage", "95 % interval of it", "mean width", "s")
    for row in rows:
        width = "" if row["width"] is None else f"{row['width']:.3g}"
        between = f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(row["case"], f"{row['coverage']:.3f}", between, width, f"{row['seconds']:.1f}")
    exact = [*of_twenty()]
    shares = Table("share", "exact coverage", "on average within 0.04")
    for row in exact:
        shares.add_row(row["case"], f"{row['coverage']:.4f}", f"{row['coverage_around']:.3f}")
    Console(width=120).print(table, shares)
    if args.json:
        print(json.dumps({"samples": args.samples, "seed": args.seed, "simulated": rows, "exact": exact}))


if __name__ == "__main__":
    main()
