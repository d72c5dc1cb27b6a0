"""The made-up judges of tiny-evaluate.yaml. A judge of your own is such a function, too: docs/judge.md."""

import math

KNOWN = {"awful", "poor", "fair", "good", "superb", "twenty", "thirty", "forty", "telmar", "osk", "lunby"}


def prefer(prompt, first, second):
    """How far the first reply is preferred, 0 to 1: for its length, for being shown first, and on a whim."""
    whim = (sum(map(ord, first)) - sum(map(ord, second))) % 7 - 3
    return 1 / (1 + math.exp(-(0.1 * (len(first) - len(second)) + 0.6 + 0.4 * whim)))


def rate(prompt, reply):
    """1 to 10 by the share of known words in the reply; None, which is no verdict, where it is empty."""
    words = (reply if isinstance(reply, str) else reply[-1].content).lower().split()
    return round(1 + 9 * sum(word in KNOWN for word in words) / len(words), 1) if words else None
