"""When a server is gone, or its budget spent: what comes after is not asked, and is no fault of its texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from consilience.errors import BackendError
from consilience.models.endpoint.answer import NOT_ASKED
from consilience.models.protocols import ReplyStatus

REFUSED = re.compile(r"HTTP (400|422)\b")  # asked the same again, the server would say the same again


class Unanswered(NamedTuple):
    """A request without an answer: why, and whether it was for the budget."""

    reason: str
    over_budget: bool


def unanswered(status: ReplyStatus, reason: str) -> Unanswered | None:
    """What a reply of that status is, None where the server answered."""
    if status not in (ReplyStatus.ERROR, ReplyStatus.OVER_BUDGET):
        return None
    return Unanswered(reason, status == ReplyStatus.OVER_BUDGET)


def refuse_gone_server(
    name: str, requests: Sequence[Unanswered | None], *, is_gone: Callable[[], bool] = lambda: True
) -> None:
    """Raises `BackendError` where requests to `name` were not even asked any more, or none has an answer.

    In the second case `is_gone` has the last word. A few requests that failed are neither. What was answered is in the
    cache, so that nothing is paid twice when the same command goes on.
    """
    failed = [one for one in requests if one is not None]
    gone = [one for one in failed if one.reason.startswith(NOT_ASKED)]
    if failed and not gone and len(failed) == len(requests) and is_gone():
        gone = failed
    if gone:
        reason = gone[0].reason.removeprefix(NOT_ASKED).strip(" .")
        if REFUSED.match(reason):
            raise BackendError(f"{name} refuses every request: {reason}. What is asked has to change.")
        if gone[0].over_budget:
            further = "With a larger budget the same command goes on from here."
            raise BackendError(f"{name} was not asked any more: {reason}. {further}")
        raise BackendError(f"{name} does not answer: {reason}. The same command goes on from here.")
