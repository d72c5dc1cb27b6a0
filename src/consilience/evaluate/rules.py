"""Rules that say whether a reply has the right answer, and what else can become of a question."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum


class Outcome(StrEnum):
    """What became of one question. Compare, never test for truth."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNREADABLE = "unreadable"  # no answer of the expected kind in the reply
    CUT_OFF = "cut off"  # the reply did not end within max_new_tokens, and what there is is not correct
    NOT_ASKED = "not asked"  # the model's chat template refuses the question
    REFUSED = "refused"  # a server's filter withheld the reply
    ERROR = "error"  # a server, or a file of finished replies, gave none: not the model's doing


Matching = Callable[[str, str], Outcome]


def exact(reply: str, answer: str) -> Outcome:
    """The reply is the answer, but for blanks at its ends, capitals and a final full stop."""
    return Outcome.CORRECT if _plain(reply) == _plain(answer) else Outcome.WRONG


def contains(reply: str, answer: str) -> Outcome:
    """The answer stands in the reply as whole words."""
    found = re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", _plain(reply))
    return Outcome.CORRECT if found else Outcome.WRONG


def last_number(reply: str, answer: str) -> Outcome:
    """The last number of the reply equals that of the answer (as GSM8K is scored); thousands commas are dropped."""
    found, expected = _numbers(reply), _numbers(answer)
    if not found:
        return Outcome.UNREADABLE
    return Outcome.CORRECT if found[-1:] == expected[-1:] else Outcome.WRONG


def number_after(mark: str) -> Matching:
    """A rule: the first number behind the regular expression `mark`, character by character but for commas.

    With `#### ` this is GSM8K's own extraction, and lm-evaluation-harness' strict match.
    """
    pattern = re.compile(rf"{mark}(-?[0-9.,]+)", re.MULTILINE)

    def rule(reply: str, answer: str) -> Outcome:
        found, expected = pattern.search(reply), pattern.search(answer)
        if not found:
            return Outcome.UNREADABLE
        return (
            Outcome.CORRECT if _as_gsm8k(found[1]) == _as_gsm8k(expected[1] if expected else answer) else Outcome.WRONG
        )

    return rule


def gsm8k_flexible(reply: str, answer: str) -> Outcome:
    """The last number of the reply, as lm-evaluation-harness' flexible extract reads it: `$` and commas are dropped,
    `18.00` is not `18`. The answer's is what stands behind `####`, if that is there."""
    found = [some or plain for some, plain in FLEXIBLE.findall(reply)]
    if not found:
        return Outcome.UNREADABLE
    expected = answer.rpartition("#### ")[2]
    return Outcome.CORRECT if _as_gsm8k(found[-1]) == _as_gsm8k(expected) else Outcome.WRONG


FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")


def _as_gsm8k(number: str) -> str:
    return number.strip().replace(",", "").replace("$", "").removesuffix(".").lower()


def _numbers(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text)]


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").lower()


MATCHES: dict[str, Matching] = {
    "exact": exact,
    "contains": contains,
    "last_number": last_number,
    "gsm8k_strict": number_after("#### "),
    "gsm8k_flexible": gsm8k_flexible,
}
