"""Few-shot examples: which labelled texts a model is shown before the one that it codes. A table of choosers.

They come from the codebook's examples and from a table of labelled texts that the recipe names, never from gold.

Shapes: P texts of the pool, W words.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.strategies import Shot
from consilience.errors import ConfigError
from consilience.rng import stream

WORD = re.compile(r"\w+")


def fixed(pool: Sequence[Shot], text: str, shots: int, seed: int) -> tuple[Shot, ...]:
    """The first `shots` of the pool, in its order."""
    return tuple(pool[:shots])


def random(pool: Sequence[Shot], text: str, shots: int, seed: int) -> tuple[Shot, ...]:
    """`shots` of the pool drawn at random, the same for all texts."""
    return tuple(pool[i] for i in stream(seed, "shots").permutation(len(pool))[:shots])


def stratified(pool: Sequence[Shot], text: str, shots: int, seed: int) -> tuple[Shot, ...]:
    """Drawn at random, the same for all texts, and from every label as many as from any other, or one fewer."""
    shuffled = random(pool, text, len(pool), seed)
    turn: Counter[str] = Counter()
    ranked = []
    for place, shot in enumerate(shuffled):
        ranked.append((turn[shot.label], place, shot))
        turn[shot.label] += 1
    return tuple(shot for _, _, shot in sorted(ranked, key=lambda entry: entry[:2])[:shots])


@dataclass(frozen=True, slots=True)
class Nearest:
    """The pool by its words, weighted by their rarity (TF-IDF). The nearest text stands last, next to the asked."""

    pool: tuple[Shot, ...]
    places: dict[str, int]
    rarity_W: NDArray[np.float64]
    vectors_PW: NDArray[np.float64]

    def __call__(self, text: str, shots: int) -> tuple[Shot, ...]:
        likeness_P = self.vectors_PW @ _vector(text, self.places, self.rarity_W)
        nearest = np.lexsort((np.arange(len(self.pool)), -likeness_P))[:shots]
        return tuple(self.pool[i] for i in reversed(nearest))


def nearest_of(pool: Sequence[Shot]) -> Nearest:
    """The pool made ready for being searched: TF-IDF of single words with smoothed rarity, in unit vectors."""
    documents = [set(_words(shot.text)) for shot in pool]
    counts = Counter(word for words in documents for word in words)
    places = {word: i for i, word in enumerate(sorted(counts))}
    rarity_W = np.array([math.log((1 + len(pool)) / (1 + counts[word])) + 1 for word in places])
    vectors_PW = np.array([_vector(shot.text, places, rarity_W) for shot in pool])
    return Nearest(tuple(pool), places, rarity_W, vectors_PW)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _vector(text: str, places: dict[str, int], rarity_W: NDArray[np.float64]) -> NDArray[np.float64]:
    vector_W = np.zeros(len(places))
    for word, count in Counter(_words(text)).items():
        if word in places:
            vector_W[places[word]] = count * rarity_W[places[word]]
    norm = float(np.linalg.norm(vector_W))
    return vector_W / norm if norm else vector_W


def _nearest_embedded(
    pool: Sequence[Shot], vectors_PD: NDArray[np.float64], embed: Embed, shots: int, texts: tuple[str, ...]
) -> list[tuple[Shot, ...]]:
    """By the cosine of their vectors; the nearest stands last, next to the text that is asked about."""
    found = []
    for likeness_P in embed(texts) @ vectors_PD.T:
        nearest = np.lexsort((np.arange(len(pool)), -likeness_P))[:shots]
        found.append(tuple(pool[i] for i in reversed(nearest)))
    return found


Chooser = Callable[[Sequence[Shot], str, int, int], tuple[Shot, ...]]


def nearest(pool: Sequence[Shot], text: str, shots: int, seed: int) -> tuple[Shot, ...]:
    """Those whose words are most like the text's."""
    return nearest_of(pool)(text, shots)


CHOOSERS: dict[str, Chooser] = {"fixed": fixed, "random": random, "stratified": stratified, "nearest": nearest}
EMBEDDED = "nearest_embedded"  # nearest by the vectors of the recipe's `embedding`
Embed = Callable[[Sequence[str]], NDArray[np.float64]]  # texts -> unit vectors [N, D]
Choose = Callable[[Sequence[str]], list[tuple[Shot, ...]]]  # texts -> the examples of each


def refuse_few_examples(pool: Sequence[Shot], shots: int) -> None:
    """Raises `ConfigError` where the pool holds fewer examples than are to be shown."""
    if len(pool) < shots:
        raise ConfigError(
            f"{shots} examples are asked for, but there are {len(pool)}: add examples to the codebook, or name a table "
            "of labelled texts (examples: {path: ...}) that are not gold."
        )


def chooser_of(name: str, pool: Sequence[Shot], shots: int, seed: int, embed: Embed | None = None) -> Choose:
    """A function from texts to the examples of each; what does not depend on the texts is done once.

    Raises `ConfigError` where the pool holds fewer examples than are asked for.
    """
    refuse_few_examples(pool, shots)
    if name == "nearest" and shots:
        search = nearest_of(pool)
        return lambda texts: [search(text, shots) for text in texts]
    if name == EMBEDDED and shots:
        if embed is None:
            raise ConfigError(f"choose: {EMBEDDED} needs embedding: {{path: a folder}} in the recipe.")
        vectors_PD = embed([shot.text for shot in pool])
        # A batch is asked about under several orders, or several labels: its vectors are made once.
        of_batch = lru_cache(maxsize=1)(partial(_nearest_embedded, tuple(pool), vectors_PD, embed, shots))
        return lambda texts: of_batch(tuple(texts))
    chosen = () if not shots else CHOOSERS[name](pool, "", shots, seed)
    return lambda texts: [chosen for _ in texts]
