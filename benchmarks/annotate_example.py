"""A real run with small models of our own: 12,284 tweets through the whole of `consilience annotate`, truth at hand.

Two tiny chat models are trained from scratch on the 2,000 tweets of tweeteval's sentiment validation split, under the
prompt that they will be asked with. They code the 12,284 test tweets. 60 human labels choose between configurations,
300 others, drawn at random, are the gold. Every estimate is compared with what all 12,284 human labels say; then the
gold is drawn again many times from the same labels, to see how often the intervals hold the truth.

    python benchmarks/annotate_example.py DATA OUT [--steps 300] [--draws 200] [--json]

DATA is the folder with sentiment_val.csv.gz and sentiment_test.csv.gz (cardiffnlp/tweeteval).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from consilience.annotate.codebook import Codebook
from consilience.annotate.estimates import GOLD, NAIVE, POST, PPI, prevalence
from consilience.annotate.freeze import read_frozen
from consilience.annotate.gold import GoldItem
from consilience.annotate.recipe import read_project
from consilience.annotate.regress import DSL, regression
from consilience.annotate.sample import Sample, read_sample
from consilience.annotate.strategies import Ask, Wording, answer_of, zero_shot
from consilience.annotate.validate import Coded
from consilience.config import parse
from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.models import TinyModel, train_tiny
from consilience.records import Conversation, Message
from consilience.rng import stream
from consilience.stats.regression import weighted_regression

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
FORMULA = "sentiment_negative ~ mention + words"
GOLD_TEXTS, DEV_TEXTS = 300, 60
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def llama(**settings: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.05, **settings,
    )  # fmt: skip


def gpt2(**settings: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        n_embd=96, n_layer=2, n_head=3, n_positions=512, initializer_range=0.05, resid_pdrop=0.1, embd_pdrop=0.1,
        attn_pdrop=0.1, **settings,
    )  # fmt: skip


MODELS = {"llama": llama, "gpt2": gpt2}


def tweets(path: Path) -> list[tuple[str, str]]:
    with gzip.open(path, "rt", newline="", encoding="utf-8") as file:
        return [(row["text"], LABELS[int(row["label"])]) for row in csv.DictReader(file)]


def train(folder: Path, labelled: list[tuple[str, str]], steps: int) -> dict[str, float]:
    """Both models, each with its tokenizer, on chats as `zero_shot` writes them; seconds by model."""
    book = parse(CODEBOOK, Codebook, where="codebook")
    chats = []
    for i, (text, label) in enumerate(labelled):
        ask = Ask(codebook=book, text=text, wording=Wording(), order=(0, 1, 2))
        turns = (*zero_shot(ask).messages, Message("assistant", answer_of(ask, label)))
        chats.append(Conversation(str(i), turns))
    took = {}
    for seed, (name, architecture) in enumerate(MODELS.items()):
        started = time.process_time()
        recipe = TinyModel(
            architecture=architecture, tokenizer=tokenizers.byte_level, vocabulary=2000, special=SPECIAL,
            template=tokenizers.CHATML, spelling={}, chats={}, steps=steps,
        )  # fmt: skip
        train_tiny(
            name, recipe, chats, folder / name, spelling=chats, seed=seed, steps=steps,
            on_step=partial(_shown, name),
        )  # fmt: skip
        took[name] = time.process_time() - started
    return took


def _shown(name: str, step: int, steps: int) -> None:
    if step % 50 == 0:
        print(f"{name}: {step} of {steps}", file=sys.stderr)


def make_project(folder: Path, test: list[tuple[str, str]]) -> None:
    """The table without labels, and gold of texts drawn at random, as `gold.csv`."""
    with (folder / "tweets.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "mention", "words"])
        writer.writerows(
            [i, text, int("@user" in text), len(text.split())] for i, (text, _) in enumerate(test, start=1)
        )
    drawn = stream(0, "gold").permutation(len(test))[: GOLD_TEXTS + DEV_TEXTS]
    with (folder / "gold.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "split", "label"])
        for place, i in enumerate(drawn.tolist()):
            writer.writerow([i + 1, "dev" if place < DEV_TEXTS else "test", test[i][1]])
    (folder / "codebook.yaml").write_text(yaml.safe_dump(CODEBOOK, sort_keys=False))
    recipe = {
        "title": "Sentiment of 12,284 tweets, coded by models of half a million weights",
        "data": {"path": "tweets.csv", "id": "id"},
        "models": {name: {"path": f"models/{name}"} for name in MODELS},
        "strategies": {"zero_shot": {}, "contextual": {"kind": "zero_shot", "correction": "contextual"}},
        "corpus_is_sample": False,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))


def workflow(folder: Path) -> dict[str, float]:
    """dev, freeze, run, estimate, report as a user types them; seconds by step."""
    took = {}
    steps = {
        "dev": ["dev"],
        "freeze": [
            "freeze",
            "--choose",
            "llama.zero_shot",
            "--choose",
            "llama.contextual",
            "--choose",
            "gpt2.zero_shot",
        ],
        "run": ["run"],
        "estimate": ["estimate", "--formula", FORMULA],
        "by": ["estimate", "--by", "mention"],
        "report": ["report"],
    }
    for name, (verb, *options) in steps.items():
        started = time.monotonic()
        command = [sys.executable, "-m", "consilience.cli", "annotate", verb, str(folder), *options]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        (folder / f"{name}.txt").write_text(done.stdout)
        took[name] = time.monotonic() - started
    return took


def truth(test: list[tuple[str, str]]) -> dict[str, Any]:
    """Shares and coefficients by all human labels."""
    labels = np.array([label for _, label in test])
    x = np.array([[1.0, float("@user" in text), len(text.split())] for text, _ in test])
    found = weighted_regression(
        (labels == "negative").astype(float), x, ("Intercept", "mention", "words"), family="logistic"
    )
    return {
        "shares": {label: float((labels == label).mean()) for label in LABELS},
        "coefficients": {name: estimate.value for name, estimate in found.items()},
    }


def covers(folder: Path, test: list[tuple[str, str]], whole: dict[str, Any], draws: int) -> dict[str, Any]:
    """How often the intervals of 300 gold labels, drawn anew each time, hold the truth; and how wide they are."""
    project = read_project(folder)
    frozen = read_frozen(project)
    sample = read_sample(project, frozen, frozen.primary, ["mention", "words"])
    category = [sample.categories[place] for place in sample.category_N]
    rng = stream(1, "redraws")
    hits: dict[str, list[int]] = {}
    widths: dict[str, list[float]] = {}
    for _ in range(draws):
        drawn = rng.permutation(len(test))[:GOLD_TEXTS]
        gold_N = np.full(len(test), -1, dtype=np.intp)
        gold_N[drawn] = np.arange(len(drawn))
        coded = tuple(
            Coded(
                GoldItem(str(i + 1), test[i][1]),
                category[i] if category[i] in LABELS else None,
                "ok" if category[i] in LABELS else category[i].strip("()"),
            )
            for i in drawn.tolist()
        )
        redrawn = Sample(
            configuration=sample.configuration, labels=3, categories=sample.categories, category_N=sample.category_N,
            gold_N=gold_N, coded=coded, ids=sample.ids, columns=sample.columns,
        )  # fmt: skip
        shares = prevalence(redrawn, project.codebook, seed=0, corpus_is_sample=False)
        of = regression(redrawn, project.codebook, FORMULA, family=None, seed=0)["coefficients"]
        for way in (POST, PPI, GOLD, NAIVE):
            for label in LABELS:
                _note(hits, widths, f"share, {way}", shares[label][way], whole["shares"][label])
        for way in (DSL, PPI, GOLD, NAIVE):
            for name, value in whole["coefficients"].items():
                _note(hits, widths, f"coefficient, {way}", of[name][way], value)
    return {
        key: {"covers": float(np.mean(found)), "of": len(found), "mean_width": float(np.mean(widths[key]))}
        for key, found in hits.items()
    }


def _note(hits: dict[str, list[int]], widths: dict[str, list[float]], key: str, found: Any, true: float) -> None:
    if found is None:  # the model labels all tweets alike
        return
    hits.setdefault(key, []).append(found["low"] <= true <= found["high"])
    widths.setdefault(key, []).append(found["high"] - found["low"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    val, test = tweets(given.data / "sentiment_val.csv.gz"), tweets(given.data / "sentiment_test.csv.gz")
    result: dict[str, Any] = {"tweets": len(test)}
    if not (given.out / "models").exists():
        result["training_cpu_s"] = train(given.out / "models", val, given.steps)
    if not (given.out / "frozen.json").exists():
        make_project(given.out, test)
        result["seconds"] = workflow(given.out)
    whole = truth(test)
    estimates = json.loads((given.out / "estimates.json").read_text())
    result["truth"] = whole
    result["shares"] = {
        label: {
            way: ways[way] and [ways[way][key] for key in ("value", "low", "high")] for way in (POST, PPI, GOLD, NAIVE)
        }
        for label, ways in estimates["prevalence"].items()
    }
    result["coefficients"] = {
        name: {
            way: ways[way] and [ways[way][key] for key in ("value", "low", "high")] for way in (DSL, PPI, GOLD, NAIVE)
        }
        for name, ways in estimates["formulas"][FORMULA]["coefficients"].items()
    }
    result["accuracy_on_gold"] = estimates["validation"]["table"]["accuracy"]["value"]
    result["redraws"] = covers(given.out, test, whole, given.draws)
    for part in ("shares", "coefficients"):
        for name, ways in result[part].items():
            print(f"{name:10} truth {whole[part][name]:+.4f}")
            for way, found in ways.items():
                if found:  # there is no PPI++ of labels that are all alike, and no regression of an outcome that is
                    print(f"    {way:16} {found[0]:+.4f} [{found[1]:+.4f}, {found[2]:+.4f}]")
    for key, found in result["redraws"].items():
        print(f"{key:30} covers {found['covers']:.3f} of {found['of']}, mean width {found['mean_width']:.4f}")
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
