"""From the replies to a prompt and their scores to the pair that is learnt from. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from consilience.errors import pick

OFFLINE = ("chosen", "rejected")


class PairStatus(StrEnum):
    """What became of a prompt's replies. Compare, never test for truth; only OK is learnt from."""

    OK = "ok"
    IDENTICAL = "identical"  # chosen and rejected are the same text
    TIED = "tied"  # the judge scores all replies alike
    TOO_FEW = "too few replies"  # fewer than two that are not empty and were judged, or none of them ended
    TOO_LONG = "too long"  # prompt and reply exceed max_tokens
    UNREADABLE = "unreadable"  # the chat template refuses the prompt, or one of its replies
    NO_SOURCE_REPLY = "no source reply"  # wrpo: the source model gave none


@dataclass(frozen=True, slots=True)
class Candidate:
    """A reply that may become chosen or rejected. `slot` says where it is from: `chosen`, `rejected`, `sample 0` ...

    One that had not `ended` where it was cut off may lose, so that running on is unlearnt, and may not win.
    """

    slot: str
    text: str
    score: float | None = None  # None: not judged
    ended: bool = True

    @property
    def usable(self) -> bool:
        return bool(self.text.strip()) and self.score is not None


@dataclass(frozen=True, slots=True)
class Pair:
    """Slots of the chosen and the rejected reply, or why there are none."""

    status: PairStatus
    chosen: str = ""
    rejected: str = ""


def best_worst(candidates: Sequence[Candidate]) -> Pair:
    """The best against the worst of all replies: of {y, offline pair} in SELM, of n samples; the first where tied."""
    judged = [candidate for candidate in candidates if candidate.usable]
    ended = [candidate for candidate in judged if candidate.ended]
    if len(judged) < 2 or not ended:
        return Pair(PairStatus.TOO_FEW)
    best, worst = max(ended, key=_score), min(judged, key=_score)
    if best.score == worst.score:
        return Pair(PairStatus.TIED)
    if best.text == worst.text:
        return Pair(PairStatus.IDENTICAL)
    return Pair(PairStatus.OK, best.slot, worst.slot)


def swap(candidates: Sequence[Candidate]) -> Pair:
    """The offline pair, turned round where the judge disagrees with the data."""
    offline = [candidate for candidate in candidates if candidate.slot in OFFLINE]
    return best_worst(offline)


def offline(candidates: Sequence[Candidate]) -> Pair:
    """The offline pair as the data has it; no judge is asked."""
    found = {candidate.slot: candidate for candidate in candidates}
    if not all(slot in found and found[slot].text.strip() for slot in OFFLINE):
        return Pair(PairStatus.TOO_FEW)
    chosen, rejected = (found[slot] for slot in OFFLINE)
    return Pair(PairStatus.IDENTICAL) if chosen.text == rejected.text else Pair(PairStatus.OK, *OFFLINE)


PairingRule = Callable[[Sequence[Candidate]], Pair]
PAIRINGS: dict[str, PairingRule] = {"best_worst": best_worst, "swap": swap, "offline": offline}
JUDGED = frozenset({"best_worst", "swap"})


def pair_up(rule: str, candidates: Sequence[Candidate]) -> Pair:
    """The pair that `rule` makes of a prompt's candidates."""
    return pick(PAIRINGS, rule, "pairing rule")(candidates)


def _score(candidate: Candidate) -> float:
    assert candidate.score is not None
    return candidate.score
