"""The made-up judges of tiny-evaluate.yaml. A judge of your own is such a function, too: docs/judge.md."""

KNOWN = {"awful", "poor", "fair", "good", "superb", "twenty", "thirty", "forty", "telmar", "osk", "lunby"}


def prefer(prompt, first, second):
    """How far the first reply is preferred, 0 to 1: the longer one, or of like lengths the one shown first."""
    longer = len(first) - len(second)
    if abs(longer) <= 4:
        return 0.8
    return 0.9 if longer > 0 else 0.1


def rate(prompt, reply):
    """1 to 10 by the share of known words in the reply; None, which is no verdict, where it is empty."""
    words = (reply if isinstance(reply, str) else reply[-1].content).lower().split()
    return round(1 + 9 * sum(word in KNOWN for word in words) / len(words), 1) if words else None
