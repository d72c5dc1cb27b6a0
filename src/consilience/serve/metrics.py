"""What the server counts, in Prometheus's text format (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from itertools import accumulate

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
OUTCOMES = ("finished", "cancelled", "timeout", "failed", "stopping", "refused")


class Histogram:
    def __init__(self) -> None:
        self.counts = [0] * (len(SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str, help_: str) -> list[str]:
        upto = [*accumulate(self.counts)]
        bounds = [*map(str, SECONDS), "+Inf"]
        return [
            *_head(name, "histogram", help_),
            *(f'{name}_bucket{{le="{bound}"}} {count}' for bound, count in zip(bounds, upto, strict=True)),
            f"{name}_sum {self.sum:.6f}",
            f"{name}_count {upto[-1]}",
        ]


class Metrics:
    """Counts of one server since it started."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.prompt_tokens = self.reply_tokens = 0
        self.first_token = Histogram()
        self.whole = Histogram()

    def finished(self, outcome: str, seconds: float, prompt_tokens: int, reply_tokens: int) -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            self.prompt_tokens += prompt_tokens
            self.reply_tokens += reply_tokens
            self.whole.observe(seconds)

    def refused(self) -> None:
        with self.lock:
            self.outcomes["refused"] += 1

    def text(self, running: int, waiting: int) -> str:
        with self.lock:
            requests = "consilience_requests_total"
            lines = [
                *_head("consilience_requests_running", "gauge", "Requests whose replies are being written."),
                f"consilience_requests_running {running}",
                *_head("consilience_requests_waiting", "gauge", "Requests in the queue."),
                f"consilience_requests_waiting {waiting}",
                *_head(requests, "counter", "Requests by what became of them."),
                *(f'{requests}{{outcome="{outcome}"}} {count}' for outcome, count in self.outcomes.items()),
                *_head("consilience_prompt_tokens_total", "counter", "Tokens of prompts."),
                f"consilience_prompt_tokens_total {self.prompt_tokens}",
                *_head("consilience_reply_tokens_total", "counter", "Tokens of replies."),
                f"consilience_reply_tokens_total {self.reply_tokens}",
                *self.first_token.lines("consilience_time_to_first_token_seconds", "From arrival to the first token."),
                *self.whole.lines("consilience_request_seconds", "From arrival to the end."),
            ]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, help_: str) -> list[str]:
    return [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]
