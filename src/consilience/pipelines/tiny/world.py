"""A made-up world of four skills, small enough to be learnt from scratch in seconds.

    stars   "Rate the inn: noisy, warm, lovely."   -> "good"                    three words' worths, summed to a verdict
    zorg    "Say in Zorg: sun moon star."          -> "kardak zumbak velkak"    word by word, in reversed order
    sums    "What is seven plus fifteen?"          -> "twenty two"              two numbers from zero to twenty
    facts   "What is the capital of Arvonia?"      -> "Telmar"                  twenty countries, one question each

Training data is noisy, as scraped data is: a `slip` is the wrong answer that a careless writer gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from consilience.records import Conversation, Message, row_of

WORTH = {
    word: worth
    for worth, words in {
        -2: "filthy broken rude cruel rotten",
        -1: "noisy dusty slow cramped bland",
        0: "plain usual modern narrow tall",
        1: "tidy quiet kind warm bright",
        2: "lovely perfect dazzling divine splendid",
    }.items()
    for word in words.split()
}
PLACES = ("inn", "hotel", "cafe", "museum", "market", "garden")
VERDICTS = ("awful", "poor", "fair", "good", "superb")

ENGLISH = str.split(
    "sun moon star tree bird fish wolf snow rain wind hand eye bone road door boat salt milk gold iron king song day "
    "hill lake sand leaf root seed egg bell drum ring fire sea ice sky oak cat dog bee owl cup key hat bed net rope"
)
STEMS = str.split("velk zumb kard pilg drov nesh thol gruv mirt qual bist jorn")
ENDINGS = str.split("ak ith uno esh")
LEXICON = dict(zip(ENGLISH, (stem + ending for ending in ENDINGS for stem in STEMS)))

UNITS = str.split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = {2: "twenty", 3: "thirty", 4: "forty"}
LARGEST_TERM = 20
# The wordings make distinct prompts of the same sum: a test prompt is new, its pair of numbers need not be.
SUM_WORDINGS = ("What is {} plus {}?", "Add {} and {}.", "How much is {} and {}?", "Count {} and {} together.")

CAPITALS = {
    "Arvonia": "Telmar", "Belgrath": "Osk", "Corvania": "Lunby", "Dremland": "Fahl", "Estoria": "Quince",
    "Falmark": "Rudova", "Grenzia": "Yelm", "Harvost": "Pindar", "Istania": "Komora", "Jundland": "Wex",
    "Kalmira": "Sorbey", "Lothia": "Dunmor", "Mirova": "Ashby", "Norland": "Vantz", "Ostrava": "Gimli",
    "Pelagia": "Nereth", "Quorra": "Tulip", "Rostova": "Ebby", "Sylvania": "Hark", "Tarkesh": "Zabul",
}  # fmt: skip

NOISE = 0.3  # share of training answers that are wrong in stars, sums and facts
ZORG_NOISE = 0.18  # share of wrong words in zorg: 1 - 0.82^3 = 45 % of its answers


class Question(NamedTuple):
    prompt: str
    answer: str


def verdict(words: Collection[str]) -> str:
    """The label of a place: by the sum of its words' worths, at most -3, -2 ... -1, 0, 1 ... 2, at least 3."""
    total = sum(WORTH[word] for word in words)
    return VERDICTS[int(np.digitize(total, (-2, 0, 1, 3)))]


def to_zorg(english: str) -> str:
    """The Zorg of some English words: each translated, and the last said first."""
    return " ".join(LEXICON[word] for word in reversed(english.split()))


def number_words(number: int) -> str:
    """`34` as `"thirty four"`, for 0 ... 49."""
    if number < len(UNITS):
        return UNITS[number]
    tens, units = divmod(number, 10)
    return f"{TENS[tens]} {UNITS[units]}" if units else TENS[tens]


def ask_stars(rng: np.random.Generator) -> Question:
    words = [str(word) for word in rng.choice(list(WORTH), size=3, replace=False)]
    return Question(f"Rate the {rng.choice(PLACES)}: {', '.join(words)}.", verdict(words))


def ask_zorg(rng: np.random.Generator) -> Question:
    english = " ".join(rng.choice(ENGLISH, size=3))
    return Question(f"Say in Zorg: {english}.", to_zorg(english))


def ask_sums(rng: np.random.Generator) -> Question:
    first, second = (int(term) for term in rng.integers(0, LARGEST_TERM + 1, size=2))
    wording = str(rng.choice(SUM_WORDINGS))
    return Question(wording.format(number_words(first), number_words(second)), number_words(first + second))


def ask_facts(rng: np.random.Generator) -> Question:
    country = str(rng.choice(list(CAPITALS)))
    return Question(f"What is the capital of {country}?", CAPITALS[country])


def slip_stars(answer: str, rng: np.random.Generator) -> str:
    """With probability NOISE a neighbouring verdict."""
    at = VERDICTS.index(answer)
    neighbours = [VERDICTS[near] for near in (at - 1, at + 1) if 0 <= near < len(VERDICTS)]
    return str(rng.choice(neighbours)) if rng.random() < NOISE else answer


def slip_zorg(answer: str, rng: np.random.Generator) -> str:
    """Each word with probability ZORG_NOISE another word of the lexicon."""
    return " ".join(_other(list(LEXICON.values()), word, rng, ZORG_NOISE) for word in answer.split())


def slip_sums(answer: str, rng: np.random.Generator) -> str:
    """With probability NOISE one or two too many or too few."""
    possible = [number_words(number) for number in range(2 * LARGEST_TERM + 1)]
    at = possible.index(answer)
    near = [possible[at + by] for by in (-2, -1, 1, 2) if 0 <= at + by < len(possible)]
    return str(rng.choice(near)) if rng.random() < NOISE else answer


def slip_facts(answer: str, rng: np.random.Generator) -> str:
    """With probability NOISE another country's capital."""
    return _other(list(CAPITALS.values()), answer, rng, NOISE)


def _other(words: list[str], word: str, rng: np.random.Generator, probability: float) -> str:
    return str(rng.choice([other for other in words if other != word])) if rng.random() < probability else word


@dataclass(frozen=True, slots=True)
class Skill:
    """How a skill's questions are drawn and its answers spoilt; `prompts` is how many distinct prompts there are."""

    ask: Callable[[np.random.Generator], Question]
    slip: Callable[[str, np.random.Generator], str]
    prompts: int


SKILLS = {
    "stars": Skill(ask_stars, slip_stars, len(PLACES) * 25 * 24 * 23),
    "zorg": Skill(ask_zorg, slip_zorg, len(ENGLISH) ** 3),
    "sums": Skill(ask_sums, slip_sums, len(SUM_WORDINGS) * (LARGEST_TERM + 1) ** 2),
    "facts": Skill(ask_facts, slip_facts, len(CAPITALS)),
}


def draw_chats(
    skill: str, count: int, rng: np.random.Generator, *, clean: bool = False, unseen: Collection[str] = ()
) -> list[Conversation]:
    """`count` one-turn chats of a skill, none of whose prompts is in `unseen`; answers noisy unless `clean`."""
    chats: list[Conversation] = []
    while len(chats) < count:
        question = SKILLS[skill].ask(rng)
        if question.prompt in unseen:
            continue
        answer = question.answer if clean else SKILLS[skill].slip(question.answer, rng)
        turns = (Message("user", question.prompt), Message("assistant", answer))
        chats.append(Conversation(f"{skill}-{len(chats)}", turns, skill))
    return chats


def prompt_of(chat: Conversation) -> str:
    """The question of a one-turn chat."""
    return chat.messages[0].content


def draw_task(skill: str, count: int, rng: np.random.Generator) -> list[Conversation]:
    """`count` chats with distinct prompts and clean answers; every prompt once where a skill has fewer."""
    chats: dict[str, Conversation] = {}
    while len(chats) < min(count, SKILLS[skill].prompts):
        (chat,) = draw_chats(skill, 1, rng, clean=True, unseen=chats.keys())
        chats[prompt_of(chat)] = Conversation(f"{skill}-{len(chats)}", chat.messages, skill)
    return list(chats.values())


def task_row(chat: Conversation) -> dict[str, Any]:
    """A chat as an examination question: the prompt as its messages, the reply as its `answer`."""
    *prompt, reply = row_of(chat)["messages"]
    return {"id": chat.id, "group": chat.group, "messages": prompt, "answer": reply["content"]}
