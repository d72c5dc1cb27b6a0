"""A tiny chat model of twenty words and a reward that is known.

    "warm soft bold"  ->  "calm light rich calm neat"

A prompt is three of sixteen words, a reply five. Every word of a reply has a worth, half as much again for the prompt's
first word, and every pair of neighbouring words a quarter; none of this has to do with what the model says before it is
aligned. Rewards are in standard deviations of the replies it was trained on. The vocabulary holds nothing else: what
alignment takes from two replies goes to others, and with more tokens it went to those that the model was never taught.

    FOLDER/chat/            the start policy, a Hugging Face checkpoint
    FOLDER/pairs.jsonl      prompts, each with a chosen and a rejected reply of the kind that it was trained on
    FOLDER/held_out.jsonl   prompts alone, none of them in pairs.jsonl
    FOLDER/reward.py        score(prompt, reply): the reward
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from consilience.pipelines.tiny.models import LONGEST, SPREAD, TinyModel, train_tiny
from consilience.pipelines.tiny.tokenizers import Special
from consilience.records import Conversation, Message, write_jsonl
from consilience.rng import stream

WORDS = str.split("warm bright quiet fresh sweet plain soft bold calm rich light dark sharp mild wild neat")
ASKED, LENGTH = 3, 5  # words of a prompt, of a reply
TWICE = -2.0  # worth of a word said twice in a row, which the start policy does not do
WRONG_LENGTH = 0.5  # what a word too many or too few costs, in standard deviations
SHARPNESS = 0.6  # of what the model says before it is aligned
ANNOTATOR = 2.0  # offline labels: odds exp(this * difference in reward)
TAUGHT, STEPS = 4_000, 200

REWARD = '''"""The reward of this tiny world, in standard deviations of what the start policy was trained on."""

import json
from pathlib import Path

KNOWN = json.loads((Path(__file__).parent / "reward.json").read_text())


def score(prompt, reply):
    first, said = prompt[-1].content.split()[0], reply.split()
    words = [word for word in said if word in KNOWN["words"]][: KNOWN["length"]]
    worth = sum(KNOWN["words"][word] + KNOWN["after"][first][word] for word in words)
    worth += sum(KNOWN["neighbours"][one][next_] for one, next_ in zip(words, words[1:]))
    return (worth - KNOWN["mean"]) / KNOWN["sd"] - KNOWN["wrong_length"] * abs(len(said) - KNOWN["length"])
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
    """Writes the tiny world of `seed` under `folder`; about two seconds on one core."""
    rng = stream(seed, "tiny preference", "world")
    size = len(WORDS)
    says_WW = SHARPNESS * rng.normal(size=(size, size))
    worth_W = rng.normal(size=size)
    after_WW = 0.5 * rng.normal(size=(size, size))
    neighbours_WW = 0.25 * rng.normal(size=(size, size))
    np.fill_diagonal(neighbours_WW, TWICE)
    drawn = stream(seed, "tiny preference", "replies")

    def draw(prompt: NDArray[np.int64]) -> NDArray[np.int64]:
        odds = np.exp(says_WW[prompt].sum(0))
        words: list[int] = []
        for _ in range(LENGTH):
            left = np.where(np.isin(np.arange(size), words[-1:]), 0.0, odds)  # no word twice in a row
            words.append(int(np.searchsorted(left.cumsum(), drawn.random() * left.sum())))
        return np.array(words)

    def value(prompt: NDArray[np.int64], words: NDArray[np.int64]) -> float:
        return float((worth_W[words] + after_WW[prompt[0], words]).sum() + neighbours_WW[words[:-1], words[1:]].sum())

    asked = _distinct(pairs + held_out, stream(seed, "tiny preference", "prompts"))
    values = np.array([value(prompt, draw(prompt)) for prompt in asked for _ in range(4)])
    known: dict[str, Any] = {
        "words": dict(zip(WORDS, worth_W.tolist())),
        "after": {first: dict(zip(WORDS, row.tolist())) for first, row in zip(WORDS, after_WW)},
        "neighbours": {one: dict(zip(WORDS, row.tolist())) for one, row in zip(WORDS, neighbours_WW)},
        "length": LENGTH,
        "wrong_length": WRONG_LENGTH,
        "mean": float(values.mean()),
        "sd": float(values.std()),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reward.json").write_text(json.dumps(known))
    (folder / "reward.py").write_text(REWARD)

    labels = stream(seed, "tiny preference", "labels")
    rows = []
    for number, prompt in enumerate(asked[:pairs]):
        replies = [draw(prompt) for _ in range(2)]
        scores = [ANNOTATOR * value(prompt, words) / values.std() + labels.gumbel() for words in replies]
        better = int(np.argmax(scores))
        pair = {"chosen": _text(replies[better]), "rejected": _text(replies[1 - better])}
        rows.append({"id": f"pair-{number}", "prompt": _text(prompt)} | pair)
    write_jsonl(folder / "pairs.jsonl", rows)
    alone = ({"id": f"held-{i}", "prompt": _text(prompt)} for i, prompt in enumerate(asked[pairs:]))
    write_jsonl(folder / "held_out.jsonl", alone)

    chats = []
    for number, prompt in enumerate(drawn.integers(0, size, (TAUGHT, ASKED))):
        turns = (Message("user", _text(prompt)), Message("assistant", _text(draw(prompt))))
        chats.append(Conversation(f"{number}", turns))
    steps = max(1, round(STEPS * steps_scale))
    train_tiny(
        "chat", CHAT, chats, folder / "chat", spelling=[], seed=seed, steps=steps, on_step=partial(on_progress, "chat")
    )


def _distinct(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """So many different prompts, in random order."""
    numbers = rng.choice(len(WORDS) ** ASKED, count, replace=False)
    return np.stack(np.unravel_index(numbers, (len(WORDS),) * ASKED), axis=1)


def _text(words: NDArray[np.int64]) -> str:
    return " ".join(WORDS[word] for word in words)


def whole_words(chats: object, size: int, template: str, special: Special) -> PreTrainedTokenizerFast:
    """A token for every word, and nothing else."""
    names = [*special.values(), "<ask>", "<say>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: id_ for id_, name in enumerate(names)}, special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template, **special)
    made.add_special_tokens({"additional_special_tokens": ["<ask>", "<say>"]})
    return made


def small_llama(**settings: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
        **settings,
    )


CHAT = TinyModel(
    architecture=small_llama,
    tokenizer=whole_words,
    vocabulary=0,
    special={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    template=(
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<say> {{ m.content }}{{ eos_token }}"
        "{% else %}<ask> {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}<say>{% endif %}"
    ),
    spelling={},
    chats={},
    steps=STEPS,
)
