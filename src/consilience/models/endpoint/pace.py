"""How fast a server is asked, and how long one waits after a failure."""

from __future__ import annotations

import email.utils
import threading
import time
from collections import deque
from collections.abc import Mapping

from consilience.rng import seed_of

MINUTE = 60.0


class Stopped(Exception):
    """The caller wants no further answers: raised in the threads that wait, and seen by nobody else."""


class Pace:
    """Begins at most so many requests and so many tokens in any minute. Shared by threads."""

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None) -> None:
        self._requests, self._tokens = requests_per_minute, tokens_per_minute
        self._begun: deque[tuple[float, int]] = deque()
        self._not_before = 0.0
        self._lock = threading.Lock()

    def wait(self, tokens: int, stop: threading.Event) -> None:
        """Returns when a request of so many tokens may begin. Raises `Stopped`.

        One that is larger than what a minute allows begins when the minute before it is empty.
        """
        while delay := self._delay(tokens):
            if stop.wait(delay):
                raise Stopped
        if stop.is_set():
            raise Stopped

    def hold(self, seconds: float) -> None:
        """Nothing begins for so long: the server asked for it."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def _delay(self, tokens: int) -> float:
        with self._lock:
            now = time.monotonic()
            while self._begun and self._begun[0][0] <= now - MINUTE:
                self._begun.popleft()
            full = self._requests is not None and len(self._begun) >= self._requests
            if self._tokens is not None and self._begun:
                full = full or sum(count for _, count in self._begun) + tokens > self._tokens
            if now < self._not_before:
                return self._not_before - now
            if full:
                return self._begun[0][0] + MINUTE - now
            if self._requests is not None or self._tokens is not None:
                self._begun.append((now, tokens))
            return 0.0


def spread(key: str, attempt: int) -> float:
    """A number in [0, 1) that differs between requests and attempts, so that retries do not come all at once."""
    return seed_of(attempt, key) / 2**63


def backoff_s(attempt: int, *, first: float, longest: float, jitter: float) -> float:
    """Seconds before retry `attempt` (0, 1, ...): doubled each time, and between half and all of it by `jitter`."""
    return min(longest, first * 2.0**attempt) * (0.5 + 0.5 * jitter)


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait: a number or an HTTP date (RFC 9110, 10.2.3). `now` is a time stamp."""
    said = headers.get("retry-after")
    if said is None:
        return None
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - now)
    except ValueError:
        return None
