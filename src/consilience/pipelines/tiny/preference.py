"""A tiny chat model and a reward that is known: praise of things in places, in five words of sixteen.

    "Ann asks about the tea in the garden."  ->  "warm bright quiet warm fresh"

Every word has a worth for the place and for the thing, every pair of neighbouring words another; none of this has to do
with what the model says before it is aligned. Rewards are in standard deviations of the replies it was trained on.

    FOLDER/chat/            the start policy, a Hugging Face checkpoint
    FOLDER/pairs.jsonl      prompts, each with a chosen and a rejected reply of the kind that it was trained on
    FOLDER/held_out.jsonl   prompts alone, none of them in pairs.jsonl
    FOLDER/reward.py        score(messages, reply, row): the reward
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import LlamaConfig

from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.models import LONGEST, SPREAD, TinyModel, train_tiny
from consilience.records import Conversation, Message, write_jsonl
from consilience.rng import stream

PEOPLE = str.split("Ann Ben Cleo Dan Eva Finn Gus Hana Ida Jon Kim Leo")
PLACES = str.split("garden market harbour library station meadow")
THINGS = str.split("tea bread music light soup wine fruit talk")
WORDS = str.split("warm bright quiet fresh sweet plain soft bold calm rich light dark sharp mild wild neat")
LENGTH = 5  # words of a reply; each word more or less costs
WRONG_LENGTH = 0.5  # standard deviations per word
SHARPNESS = 1.0  # of what the model says before it is aligned
ANNOTATOR = 2.0  # offline labels: odds exp(this * difference in reward)
SPELLING, TAUGHT, STEPS = 400, 3_000, 160

REWARD = '''"""The reward of this tiny world, in standard deviations of what the start policy was trained on."""

import json
from pathlib import Path

KNOWN = json.loads((Path(__file__).parent / "reward.json").read_text())


def score(messages, reply, row):
    place, thing = (next(word for word in KNOWN[kind] if f" {word} " in messages[-1]["content"].replace(".", " "))
                    for kind in ("places", "things"))
    words = [word for word in reply.split() if word in KNOWN["words"]]
    counted = words[: KNOWN["length"]]
    worth = sum(KNOWN["places"][place][word] + KNOWN["things"][thing][word] for word in counted)
    worth += sum(KNOWN["neighbours"][one][next_] for one, next_ in zip(counted, counted[1:]))
    return (worth - KNOWN["mean"]) / KNOWN["sd"] - KNOWN["wrong_length"] * abs(len(reply.split()) - KNOWN["length"])
'''


def make_preference_world(
    folder: Path,
    *,
    seed: int,
    pairs: int,
    held_out: int,
    on_progress: Callable[[str, int, int], None] = lambda name, step, steps: None,
    steps_scale: float = 1.0,
) -> None:
    """Writes the tiny world of `seed` under `folder`; about three seconds on one core."""
    rng = stream(seed, "tiny preference", "world")
    says = {kind: rng.normal(size=(size, len(WORDS))) for kind, size in (("place", 6), ("thing", 8))}
    worth = {kind: rng.normal(size=(size, len(WORDS))) for kind, size in (("place", 6), ("thing", 8))}
    neighbours = rng.normal(size=(len(WORDS), len(WORDS)))

    def draw(place: int, thing: int, rng: np.random.Generator) -> NDArray[np.int64]:
        log_odds = SHARPNESS * (says["place"][place] + says["thing"][thing])
        chances = np.exp(log_odds - log_odds.max())
        return rng.choice(len(WORDS), LENGTH, p=chances / chances.sum())

    def value(place: int, thing: int, words: NDArray[np.int64]) -> float:
        each = worth["place"][place, words] + worth["thing"][thing, words]
        return float(each.sum() + neighbours[words[:-1], words[1:]].sum())

    triples = list(itertools.product(range(len(PEOPLE)), range(len(PLACES)), range(len(THINGS))))
    order = stream(seed, "tiny preference", "prompts").permutation(len(triples))
    asked = [triples[i] for i in order]
    drawn = stream(seed, "tiny preference", "replies")
    sample = [(place, thing, draw(place, thing, drawn)) for _, place, thing in asked for _ in range(4)]
    values = np.array([value(*of_reply) for of_reply in sample])
    folder.mkdir(parents=True, exist_ok=True)
    known: dict[str, Any] = {
        "places": {name: dict(zip(WORDS, row.tolist())) for name, row in zip(PLACES, worth["place"])},
        "things": {name: dict(zip(WORDS, row.tolist())) for name, row in zip(THINGS, worth["thing"])},
        "neighbours": {name: dict(zip(WORDS, row.tolist())) for name, row in zip(WORDS, neighbours)},
        "words": WORDS,
        "length": LENGTH,
        "wrong_length": WRONG_LENGTH,
        "mean": float(values.mean()),
        "sd": float(values.std()),
    }
    (folder / "reward.json").write_text(json.dumps(known))
    (folder / "reward.py").write_text(REWARD)

    labels = stream(seed, "tiny preference", "labels")
    rows = []
    for number, (person, place, thing) in enumerate(asked[:pairs]):
        replies = [draw(place, thing, drawn) for _ in range(2)]
        scores = [ANNOTATOR * value(place, thing, words) / values.std() + labels.gumbel() for words in replies]
        better = int(np.argmax(scores))
        rows.append(
            {
                "id": f"pair-{number}",
                "prompt": _prompt(person, place, thing),
                "chosen": _reply(replies[better]),
                "rejected": _reply(replies[1 - better]),
            }
        )
    write_jsonl(folder / "pairs.jsonl", rows)
    asked_later = asked[pairs : pairs + held_out]
    write_jsonl(
        folder / "held_out.jsonl",
        ({"id": f"held-{i}", "prompt": _prompt(*triple)} for i, triple in enumerate(asked_later)),
    )

    def chats(count: int) -> list[Conversation]:
        picked = [triples[i] for i in drawn.integers(0, len(triples), count)]
        return [
            Conversation(
                f"{i}",
                (Message("user", _prompt(*triple)), Message("assistant", _reply(draw(triple[1], triple[2], drawn)))),
            )
            for i, triple in enumerate(picked)
        ]

    train_tiny(
        "chat",
        CHAT,
        chats(TAUGHT),
        folder / "chat",
        spelling=chats(SPELLING),
        seed=seed,
        steps=max(1, round(STEPS * steps_scale)),
        on_step=partial(on_progress, "chat"),
    )


def _prompt(person: int, place: int, thing: int) -> str:
    return f"{PEOPLE[person]} asks about the {THINGS[thing]} in the {PLACES[place]}."


def _reply(words: NDArray[np.int64]) -> str:
    return " ".join(WORDS[word] for word in words)


def small_llama(**settings: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=SPREAD,
        **settings,
    )


CHAT = TinyModel(
    architecture=small_llama,
    tokenizer=tokenizers.metaspace,
    vocabulary=220,
    special={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    template=tokenizers.BRACKETS,
    spelling={},
    chats={},
    steps=STEPS,
)
