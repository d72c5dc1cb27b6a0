"""A real run with small models of our own: 12,284 tweets through the whole of `consilience annotate`, truth at hand.

Two small chat models are trained from scratch on the 2,000 tweets of tweeteval's sentiment validation split
(benchmarks/tweet_models.py). They code the 12,284 test tweets. 60 human labels choose between configurations, 300
others, drawn at random, are the gold. Every estimate is compared with what all 12,284 human labels say; then the gold
is drawn again many times from the same labels, to see how often the intervals hold the truth and what the models'
labels buy. Beside ours stand, as labels in a column, two controls: logistic regression on TF-IDF of the same 2,000
tweets, and a published RoBERTa's labels (tweeteval's `predictions`), which was trained on 45,615 others.

    python benchmarks/annotate_example.py DATA OUT [--draws 200] [--json]

DATA is the folder with sentiment_val.csv.gz and sentiment_test.csv.gz (cardiffnlp/tweeteval). What is in OUT already,
models or the finished workflow, is not made again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from consilience.annotate.codebook import Codebook
from consilience.annotate.estimates import GOLD, NAIVE, POST, PPI, prevalence
from consilience.annotate.freeze import read_frozen
from consilience.annotate.gold import GoldItem
from consilience.annotate.recipe import read_project
from consilience.annotate.regress import DSL, regression
from consilience.annotate.sample import Sample, read_sample
from consilience.annotate.strategies import Wording
from consilience.annotate.validate import Coded
from consilience.config import parse
from consilience.rng import stream
from consilience.stats import cohens_kappa
from consilience.stats.regression import weighted_regression
from tweet_models import MODELS, chats_of, train_tweet_model

LABELS = ("negative", "neutral", "positive")  # tweeteval's 0, 1, 2
CODEBOOK: dict[str, Any] = {
    "variable": "sentiment",
    "question": "How does the writer feel?",
    "unit": "tweet",
    "labels": [
        {"name": "negative", "definition": "sad, angry or against it"},
        {"name": "neutral", "definition": "neither"},
        {"name": "positive", "definition": "glad or in favour of it"},
    ],
}
# A model of some 2,000 tweets has learnt one prompt; a short one leaves more of it to the tweet.
WORDING = {"system": "{question}", "label": "{labels}?"}
STRATEGIES = {"zero_shot": {}, "affine": {"kind": "zero_shot", "correction": "affine"}}
CONTROLS = ("tfidf", "roberta")
FORMULA = "sentiment_negative ~ mention + words"
GOLD_TEXTS, DEV_TEXTS = 300, 60


class Tweet(NamedTuple):
    """A tweet with its human label; of a test tweet also a published model's."""

    text: str
    label: str
    roberta: str = ""


def read_tweets(path: Path) -> list[Tweet]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        return [
            Tweet(row["text"], LABELS[int(row["label"])], LABELS[int(row.get("pred_roberta_rt", 0))])
            for row in csv.DictReader(file)
        ]


def train(folder: Path, tweets: Sequence[Tweet]) -> dict[str, float]:
    """Both models, on chats as `zero_shot` writes them; CPU seconds by model."""
    book, wording = parse(CODEBOOK, Codebook, where="codebook"), parse(WORDING, Wording, where="wording")
    chats = chats_of([(tweet.text, tweet.label) for tweet in tweets], book, wording)
    took = {}
    for seed, (name, made_of) in enumerate(MODELS.items()):
        started = time.process_time()
        labels = [tweet.label for tweet in tweets]
        train_tweet_model(
            name, made_of, chats, labels, folder / name, seed=seed, on_step=partial(_shown, name)
        )  # fmt: skip
        took[name] = time.process_time() - started
    return took


def _shown(name: str, step: int, steps: int) -> None:
    if step % 100 == 0:
        print(f"{name}: {step} of {steps}", file=sys.stderr)


def tfidf_labels(train: Sequence[Tweet], texts: Sequence[str]) -> list[str]:
    """A control: logistic regression on TF-IDF of words and pairs of words, its ridge chosen by five folds."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    features = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, token_pattern=r"\w+|[^\w\s]+")
    pipeline = make_pipeline(features, LogisticRegression(class_weight="balanced", max_iter=1000))
    grid = {"logisticregression__C": [0.3, 1, 3, 10]}
    model = GridSearchCV(pipeline, grid, cv=5, scoring="balanced_accuracy").fit(
        [tweet.text for tweet in train], [tweet.label for tweet in train]
    )
    return [str(label) for label in model.predict(texts)]


def make_project(folder: Path, test: Sequence[Tweet], tfidf: Sequence[str]) -> None:
    """The table without human labels, and gold of texts drawn at random, as `gold.csv`."""
    with (folder / "tweets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "mention", "words", *CONTROLS])
        for i, (tweet, label) in enumerate(zip(test, tfidf, strict=True), start=1):
            about = (int("@user" in tweet.text), len(tweet.text.split()))
            writer.writerow([i, tweet.text, *about, label, tweet.roberta])
    drawn = stream(0, "gold").permutation(len(test))[: GOLD_TEXTS + DEV_TEXTS]
    with (folder / "gold.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label"])
        for place, i in enumerate(drawn.tolist()):
            writer.writerow([i + 1, "dev" if place < DEV_TEXTS else "test", test[i].label])
    (folder / "codebook.yaml").write_text(yaml.safe_dump(CODEBOOK, sort_keys=False))
    recipe = {
        "title": "Sentiment of 12,284 tweets, coded by small models trained on 2,000 others",
        "data": {"path": "tweets.csv", "id": "id"},
        "models": {name: {"path": f"models/{name}"} for name in MODELS} | {name: {"column": name} for name in CONTROLS},
        "strategies": STRATEGIES,
        "wording": WORDING,
        "corpus_is_sample": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def workflow(folder: Path) -> dict[str, float]:
    """dev, freeze, run, estimate, report as a user types them; seconds by step."""
    took = {}

    def annotate(step: str, verb: str, *options: str) -> None:
        started = time.monotonic()
        command = [sys.executable, "-m", "consilience.cli", "annotate", verb, str(folder), *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        (folder / f"{step}.txt").write_text(done.stdout)
        took[step] = time.monotonic() - started

    annotate("dev", "dev")
    chosen = [option for name in in_order(folder) for option in ("--choose", name)]
    annotate("freeze", "freeze", *chosen)
    annotate("run", "run")
    annotate("estimate", "estimate", "--formula", FORMULA)
    annotate("by", "estimate", "--by", "mention")
    annotate("report", "report")
    return took


def in_order(folder: Path) -> list[str]:
    """Our configurations, the one first that agrees best with the development gold by kappa; then the controls."""
    found = json.loads((folder / "dev" / "results.json").read_text())["configurations"]
    kappa = {name: result["validation"]["table"]["kappa"]["value"] for name, result in found.items()}
    ours = sorted((name for name in kappa if name.split(".")[0] in MODELS), key=lambda name: -kappa[name])
    return [*ours, *(f"{control}.given" for control in CONTROLS)]


def truth(test: Sequence[Tweet]) -> dict[str, dict[str, float]]:
    """Shares and coefficients by all human labels."""
    labels = np.array([tweet.label for tweet in test])
    x = np.array([[1.0, float("@user" in tweet.text), len(tweet.text.split())] for tweet in test])
    found = weighted_regression(
        (labels == "negative").astype(float), x, ("Intercept", "mention", "words"), family="logistic"
    )
    return {
        "shares": {label: float((labels == label).mean()) for label in LABELS},
        "coefficients": {name: estimate.value for name, estimate in found.items()},
    }


def worth(sample: Sample, test: Sequence[Tweet]) -> dict[str, Any]:
    """What a configuration's labels are worth by all human labels: agreement, kappa, how often it gives each label."""
    given = [sample.categories[place] for place in sample.category_N]
    gold = [tweet.label for tweet in test]
    return {
        "right": float(np.mean([ours == theirs for ours, theirs in zip(given, gold, strict=True)])),
        "kappa": cohens_kappa(gold, given).value,
        "says": {label: given.count(label) / len(given) for label in LABELS},
    }


class Draw(NamedTuple):
    """An interval from one draw of gold, and its value; of a posterior also the gold texts that it says it is worth."""

    low: float
    value: float
    high: float
    worth: float


def redraw(
    samples: dict[str, Sample], folder: Path, test: Sequence[Tweet], draws: int
) -> dict[str, dict[str, dict[str, list[Draw]]]]:
    """Gold drawn anew `draws` times, the same for all configurations: configuration -> way -> what -> its draws."""
    book = read_project(folder).codebook
    rng = stream(1, "redraws")
    found: Any = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for number in range(draws):
        drawn = rng.permutation(len(test))[:GOLD_TEXTS]
        for name, sample in samples.items():
            redrawn = _with_gold(sample, test, drawn.tolist())
            shares = prevalence(redrawn, book, seed=number, corpus_is_sample=False)
            of = regression(redrawn, book, FORMULA, family=None, seed=number)["coefficients"]
            for ways in ({f"share of {label}": shares[label] for label in LABELS}, of):
                for what, by_way in ways.items():
                    for way in (POST, DSL, PPI, GOLD, NAIVE):
                        if by_way.get(way):  # there is none where a model labels all tweets alike
                            one = by_way[way]
                            worth = by_way["bought"]["gold_texts_worth"] if way == POST else math.nan
                            found[name][way][what].append(Draw(one["low"], one["value"], one["high"], worth))
        if (number + 1) % 10 == 0:
            print(f"gold drawn {number + 1} times of {draws}", file=sys.stderr)
    return {name: {way: dict(of_all) for way, of_all in ways.items()} for name, ways in found.items()}


def _with_gold(sample: Sample, test: Sequence[Tweet], drawn: Sequence[int]) -> Sample:
    gold_N = np.full(len(test), -1, dtype=np.intp)
    gold_N[list(drawn)] = np.arange(len(drawn))
    category = [sample.categories[sample.category_N[i]] for i in drawn]
    coded = tuple(
        Coded(GoldItem(str(i + 1), test[i].label), given, "ok")
        if given in LABELS
        else Coded(GoldItem(str(i + 1), test[i].label), None, given.strip("()"))
        for i, given in zip(drawn, category, strict=True)
    )
    return Sample(
        configuration=sample.configuration, labels=len(LABELS), categories=sample.categories,
        category_N=sample.category_N, gold_N=gold_N, coded=coded, columns=sample.columns,
    )  # fmt: skip


def summary(ways: dict[str, dict[str, list[Draw]]], true: dict[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """By quantity and way: coverage, mean width, root of the mean squared error, and worth.

    `worth` is how many gold texts alone would give the mean width. A posterior is compared with the posterior without
    the model's labels, which is narrower than Wilson's interval already, as the report does.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for what, value in true.items():
        alone = np.mean([draw.high - draw.low for draw in ways[GOLD][what]])
        found[what] = {}
        for way, of_all in ways.items():
            if what in of_all:
                low, at, high, worth = np.array(of_all[what]).T
                width = (high - low).mean()
                own = worth.mean() if way == POST else GOLD_TEXTS * (alone / width) ** 2
                found[what][way] = {
                    "covers": float(((low <= value) & (value <= high)).mean()),
                    "draws": len(at),
                    "mean_width": float(width),
                    "rmse": float(np.sqrt(((at - value) ** 2).mean())),
                }
                if way != NAIVE:
                    found[what][way]["worth"] = float(own)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    out: Path = given.out
    out.mkdir(parents=True, exist_ok=True)
    val, test = read_tweets(given.data / "sentiment_val.csv.gz"), read_tweets(given.data / "sentiment_test.csv.gz")
    result: dict[str, Any] = {"tweets": len(test)}
    if not (out / "models").exists():
        result["training_cpu_s"] = train(out / "models", val)
    if not (out / "report").exists():
        make_project(out, test, tfidf_labels(val, [tweet.text for tweet in test]))
        result["seconds"] = workflow(out)
    estimates = json.loads((out / "estimates.json").read_text())
    result["truth"] = truth(test)
    result["configuration"] = estimates["configuration"]
    result["shares"] = _intervals(estimates["prevalence"], (POST, PPI, GOLD, NAIVE))
    result["coefficients"] = _intervals(estimates["formulas"][FORMULA]["coefficients"], (DSL, PPI, GOLD, NAIVE))
    result["on_gold"] = {
        name: [estimates["validation"]["table"][name][key] for key in ("value", "low", "high")]
        for name in ("accuracy", "kappa")
    }
    project = read_project(out)
    frozen = read_frozen(project)
    samples = {name: read_sample(project, frozen, name, ["mention", "words"]) for name in frozen.names}
    result["worth"] = {name: worth(sample, test) for name, sample in samples.items()}
    # Ours that is reported, with and without its correction, and the controls.
    shown = (frozen.primary.split(".")[0], *CONTROLS)
    drawn = {name: sample for name, sample in samples.items() if name.split(".")[0] in shown}
    true = {f"share of {label}": share for label, share in result["truth"]["shares"].items()}
    true |= result["truth"]["coefficients"]
    result["redraws"] = {name: summary(ways, true) for name, ways in redraw(drawn, out, test, given.draws).items()}
    show(result)
    if given.json:
        print(json.dumps(result))


def _intervals(found: dict[str, Any], ways: Sequence[str]) -> dict[str, dict[str, list[float] | None]]:
    return {
        what: {way: by_way[way] and [by_way[way][key] for key in ("value", "low", "high")] for way in ways}
        for what, by_way in found.items()
    }


def show(result: dict[str, Any]) -> None:
    for name, found in result["worth"].items():
        says = ", ".join(f"{label} {share:.3f}" for label, share in found["says"].items())
        print(f"{name}: right {found['right']:.3f}, kappa {found['kappa']:.3f}, says {says}")
    for part in ("shares", "coefficients"):
        for name, ways in result[part].items():
            print(f"{part}: {name}, truth {result['truth'][part][name]:+.4f}")
            for way, found in ways.items():
                if found:  # there is no PPI++ of labels that are all alike, and no regression of an outcome that is
                    print(f"    {way:16} {found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]")
    for name, of_all in result["redraws"].items():
        for part in ("share", "coefficient"):
            whats = [what for what in of_all if what.startswith("share") == (part == "share")]
            for way in (POST, DSL, PPI, GOLD, NAIVE):
                rows = [of_all[what][way] for what in whats if way in of_all[what]]
                if rows:
                    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
                    texts = f", worth {mean['worth']:.0f} texts" if "worth" in mean else ""
                    print(
                        f"{name:16} {part:12} {way:16} covers {mean['covers']:.3f} of {len(rows)} x {rows[0]['draws']},"
                        f" width {mean['mean_width']:.4f}, rmse {mean['rmse']:.4f}{texts}"
                    )


if __name__ == "__main__":
    main()
