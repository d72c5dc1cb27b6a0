"""A toy whose reward is known: reviews of a stay, written to order, and a parser that says how favourable one is.

A prompt lists four of eight aspects: "all food room price view". The review speaks of them in this order, joins
sentences by "and" where the verdicts agree and by "but" where they do not, and closes with an overall verdict:

    the food is tasty and the room is very tidy but the price is not fair . overall good .

After "some" it speaks of as many of the four as it likes, so reviews differ in length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from consilience.records import Conversation, Message

# aspect -> adjectives that go with it: two favourable, two not
ADJECTIVES = {
    "food": ("tasty", "fresh", "bland", "stale"),
    "room": ("tidy", "cosy", "dirty", "cramped"),
    "price": ("fair", "low", "steep", "unfair"),
    "view": ("lovely", "wide", "dull", "blocked"),
    "staff": ("kind", "quick", "rude", "slow"),
    "music": ("soft", "lively", "loud", "dreary"),
    "bed": ("comfy", "firm", "lumpy", "creaky"),
    "garden": ("green", "calm", "barren", "noisy"),
}
SIGN = {adjective: 1 if place < 2 else -1 for several in ADJECTIVES.values() for place, adjective in enumerate(several)}
VERDICTS = {"good": 1, "bad": -1}
LISTED = 4
COUNTED = 5  # sentences that enter the reward, so that length alone earns nothing
HOW_MANY = ("all", "some")
WORDS = ["the", "is", "not", "very", "and", "but", ".", "overall", *VERDICTS, *HOW_MANY, *ADJECTIVES, *SIGN]
SENTENCE = re.compile(r"the (\w+) is (not )?(very )?(\w+)")
FAVOURABLE = (0.3, 0.5, 0.7)  # share of favourable sentences of a review: all three in the corpus
NEGATED, EMPHASIZED = 0.15, 0.25


def draw_prompt(rng: np.random.Generator, how_many: str) -> str:
    return " ".join([how_many, *rng.permutation(list(ADJECTIVES))[:LISTED]])


def draw_review(rng: np.random.Generator, prompt: str) -> str:
    """A correct review; sentences are favourable or not almost independently."""
    how_many, *listed = prompt.split()
    if how_many == "some":
        spoken_of = np.sort(rng.permutation(LISTED)[: rng.integers(1, LISTED + 1)])
        listed = [listed[place] for place in spoken_of]
    share = rng.choice(FAVOURABLE)
    signs = np.where(rng.random(len(listed)) < share, 1, -1)
    words: list[str] = []
    for place, (aspect, sign) in enumerate(zip(listed, signs)):
        if place:
            words.append("and" if sign == signs[place - 1] else "but")
        words += ["the", aspect, "is"]
        negated = rng.random() < NEGATED
        if negated:
            words.append("not")
        if rng.random() < EMPHASIZED:
            words.append("very")
        favourable = (sign > 0) != negated
        words.append(ADJECTIVES[aspect][rng.integers(2) if favourable else 2 + rng.integers(2)])
    total = signs.sum() or rng.choice((-1, 1))
    return " ".join([*words, ".", "overall", "good" if total > 0 else "bad", "."])


def draw_chats(rng: np.random.Generator, count: int) -> Iterator[Conversation]:
    for number in range(count):
        prompt = draw_prompt(rng, HOW_MANY[rng.integers(2)])
        messages = (Message("user", prompt), Message("assistant", draw_review(rng, prompt)))
        yield Conversation(str(number), messages, prompt.split()[0])


def reward(review: str) -> int:
    """How favourable a text is: +1 or -1 a sentence, "not" turns it, "very" doubles it, the verdict counts double.

    Only the first five sentences count, so it lies between -10 and 10; a sentence that is none counts 0.
    """
    total = 0
    for part in re.split(r" (?:and|but|\.) ?", review + " ")[:COUNTED]:
        verdict = re.fullmatch(r"overall (\w+)", part)
        sentence = SENTENCE.fullmatch(part)
        if verdict and verdict[1] in VERDICTS:
            total += 2 * VERDICTS[verdict[1]]
        elif sentence and sentence[4] in SIGN:
            total += SIGN[sentence[4]] * (-1 if sentence[2] else 1) * (2 if sentence[3] else 1)
    return total


def is_correct(prompt: str, review: str) -> bool:
    """Whether the review follows the grammar and the prompt exactly."""
    how_many, *listed = prompt.split()
    body = re.fullmatch(r"(.*) \. overall (good|bad) \.", review)
    if not body:
        return False
    parts = re.split(r" (and|but) ", body[1])
    sentences = [SENTENCE.fullmatch(part) for part in parts[::2]]
    signs = []
    for sentence in sentences:
        if not sentence or sentence[4] not in ADJECTIVES.get(sentence[1], ()):
            return False
        signs.append(SIGN[sentence[4]] * (-1 if sentence[2] else 1))
    joined = ["and" if before == after else "but" for before, after in pairwise(signs)]
    spoken_of = [sentence[1] for sentence in sentences if sentence]
    order = [aspect for aspect in listed if aspect in spoken_of]
    return parts[1::2] == joined and spoken_of == order and (how_many == "some" or order == listed)


def tokenizer(*_: Any) -> Any:
    """A token for every word; its chat template writes "<user> prompt <reply> review </s>"."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    control = ["<pad>", "</s>", "<unk>", "<user>", "<reply>"]
    vocabulary = {word: id_ for id_, word in enumerate([*control, *dict.fromkeys(WORDS)])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        chat_template=TEMPLATE,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<reply>"],
        clean_up_tokenization_spaces=False,
    )


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<reply> {{ message.content }} {{ eos_token }}"
    "{% else %}<user> {{ message.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}<reply>{% endif %}"
)
