"""The tiny world's questions and answers, against answers worked out by hand, and its mistakes against their rates."""

import re

import numpy as np
import pytest

from consilience.pipelines.tiny.world import (
    CAPITALS,
    LEXICON,
    SKILLS,
    VERDICTS,
    draw_chats,
    draw_task,
    number_words,
    prompt_of,
    to_zorg,
    verdict,
)

NUMBERS = {
    word: number
    for number, word in enumerate(
        str.split(
            "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
            "seventeen eighteen nineteen twenty"
        )
    )
} | {"thirty": 30, "forty": 40}


def value(words: str) -> int:
    return sum(NUMBERS[word] for word in words.split())


@pytest.mark.parametrize(
    ("words", "label"),
    [
        (("filthy", "broken", "rude"), "awful"),  # -6
        (("filthy", "noisy", "plain"), "awful"),  # -3
        (("filthy", "plain", "usual"), "poor"),  # -2
        (("noisy", "plain", "usual"), "poor"),  # -1
        (("noisy", "plain", "tidy"), "fair"),  # 0
        (("tidy", "plain", "usual"), "good"),  # 1
        (("noisy", "warm", "lovely"), "good"),  # 2
        (("lovely", "tidy", "plain"), "superb"),  # 3
        (("lovely", "perfect", "divine"), "superb"),  # 6
    ],
)
def test_verdicts_by_hand(words, label):
    assert verdict(words) == label


def test_zorg_is_said_backwards():
    # sun, moon, star are the first three words: stems velk, zumb, kard with the first ending.
    assert to_zorg("sun moon star") == "kardak zumbak velkak"
    # bone is the 13th word: the first stem with the second ending; rope the 48th: the last with the last.
    assert to_zorg("bone rope") == "jornesh velkith"
    assert len(set(LEXICON.values())) == 48


@pytest.mark.parametrize(
    ("number", "words"), [(0, "zero"), (13, "thirteen"), (20, "twenty"), (34, "thirty four"), (40, "forty")]
)
def test_number_words_by_hand(number, words):
    assert number_words(number) == words


def test_every_sum_adds_up():
    for chat in draw_chats("sums", 500, np.random.default_rng(0), clean=True):
        terms = [word for word in re.findall("[a-z]+", prompt_of(chat)) if word in NUMBERS]
        assert len(terms) == 2
        assert value(chat.replies[0]) == sum(map(value, terms))


def test_facts_by_hand():
    task = {prompt_of(chat): chat.replies[0] for chat in draw_task("facts", 150, np.random.default_rng(0))}
    assert len(task) == 20
    assert task["What is the capital of Arvonia?"] == "Telmar"
    assert task["What is the capital of Tarkesh?"] == "Zabul"


def mistakes(skill: str, draws: int) -> list[tuple[str, str]]:
    """(right answer, given answer) of `draws` questions."""
    rng = np.random.default_rng(1)
    right = [SKILLS[skill].ask(rng).answer for _ in range(draws)]
    return [(answer, SKILLS[skill].slip(answer, rng)) for answer in right]


@pytest.mark.parametrize(("skill", "rate"), [("stars", 0.3), ("sums", 0.3), ("facts", 0.3)])
def test_share_of_wrong_answers(skill, rate):
    wrong = np.mean([given != right for right, given in mistakes(skill, 4000)])
    assert wrong == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 4000) ** 0.5)


def test_share_of_wrong_zorg_words():
    pairs = [pair for right, given in mistakes("zorg", 2000) for pair in zip(right.split(), given.split(), strict=True)]
    wrong = np.mean([given != right for right, given in pairs])
    assert wrong == pytest.approx(0.18, abs=4 * (0.18 * 0.82 / len(pairs)) ** 0.5)
    assert {given for _, given in pairs} <= set(LEXICON.values())


def test_wrong_answers_are_near_misses():
    places = [abs(VERDICTS.index(given) - VERDICTS.index(right)) for right, given in mistakes("stars", 1000)]
    assert set(places) == {0, 1}
    misses = [value(given) - value(right) for right, given in mistakes("sums", 2000)]
    assert set(misses) == {-2, -1, 0, 1, 2}
    assert {given for _, given in mistakes("facts", 1000)} <= set(CAPITALS.values())


def test_prompts_to_stay_clear_of_are_not_drawn():
    facts = {prompt_of(chat) for chat in draw_task("facts", 19, np.random.default_rng(2))}
    assert len(facts) == 19
    (rest,) = {prompt_of(chat) for chat in draw_chats("facts", 50, np.random.default_rng(3), unseen=facts)}
    assert rest not in facts
