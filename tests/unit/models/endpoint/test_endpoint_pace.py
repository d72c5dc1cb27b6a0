"""Back-off, Retry-After, and the rate at which requests begin."""

from __future__ import annotations

import threading
import time

import pytest

from consilience.models.endpoint import pace
from consilience.models.endpoint.pace import Pace, Stopped, backoff_s, retry_after_s, spread


@pytest.mark.parametrize(
    ("attempt", "jitter", "seconds"), [(0, 0.0, 0.5), (0, 1.0, 1.0), (3, 1.0, 8.0), (3, 0.5, 6.0), (60, 1.0, 30.0)]
)
def test_backoff(attempt: int, jitter: float, seconds: float) -> None:
    assert backoff_s(attempt, first=1.0, longest=30.0, jitter=jitter) == seconds


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("0.25", 0.25),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0),  # the example of RFC 9110
        ("Sun, 06 Nov 1994 08:48:37 GMT", 0.0),
        ("soon", None),
        (None, None),
    ],
)
def test_retry_after(said: str | None, seconds: float | None) -> None:
    now = 784111740.0  # 08:49:00 of that day
    assert retry_after_s({"retry-after": said} if said else {}, now) == seconds


def test_jitter_differs_between_requests_and_attempts() -> None:
    drawn = [spread(key, attempt) for key in ("a", "b", "c") for attempt in range(50)]
    assert len(set(drawn)) == 150
    assert 0 <= min(drawn) < 0.1
    assert 0.9 < max(drawn) < 1


class Clock:
    """Time that passes only by waiting."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


class Waiting(threading.Event):
    """An event nobody sets; waiting for it moves the clock on."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.now += timeout or 0.0
        return False


def times(limit: Pace, clock: Clock, tokens: list[int]) -> list[float]:
    stop, found = Waiting(clock), []
    for count in tokens:
        limit.wait(count, stop)
        found.append(clock.now)
    return found


def test_requests_per_minute(begun: Clock) -> None:
    assert times(Pace(2, None), begun, [1] * 5) == [0, 0, 60, 60, 120]


def test_tokens_per_minute(begun: Clock) -> None:
    assert times(Pace(None, 100), begun, [60, 40, 1, 500, 1]) == [0, 0, 60, 120, 180]


def test_what_a_server_asks_for_holds_everyone(begun: Clock) -> None:
    limit = Pace()
    limit.hold(12.5)
    assert times(limit, begun, [1, 1]) == [12.5, 12.5]


def test_waiting_ends_when_the_caller_stops() -> None:
    limit, stop = Pace(), threading.Event()
    limit.hold(60)
    threading.Timer(0.05, stop.set).start()
    started = time.monotonic()
    with pytest.raises(Stopped):
        limit.wait(1, stop)
    assert time.monotonic() - started < 30
