"""One thread that drives a `Generator`: a queue with a limit, deadlines, jobs that are called off, counts."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from consilience.errors import ConsilienceError
from consilience.serve.generate import Failure, Generator, Job, Piece
from consilience.serve.metrics import Metrics

log = logging.getLogger(__name__)
Deliver = Callable[[Piece], None]

TIMED_OUT = "the request took longer than the server allows"
OUR_BUG = "the server failed while it wrote the reply; its log says why"
SHUTTING_DOWN = "the server is shutting down"


class QueueFull(Exception):
    """As many requests are waiting as the server lets wait."""


class Stopping(Exception):
    """The server takes on nothing more."""


@dataclass(slots=True, eq=False)
class _Ticket:
    job: Job
    deliver: Deliver  # called from the engine's thread
    deadline: float  # of time.monotonic()
    arrived: float
    first_text: float = 0.0
    unfinished: set[int] = field(default_factory=set)
    tokens: int = 0


class Engine:
    """Jobs go in from any thread; their pieces come out through each job's `deliver`, the last one with `finish` set
    for every choice, or one with an `error`."""

    def __init__(self, generator: Generator, *, max_waiting: int, timeout_s: float, metrics: Metrics) -> None:
        self.generator, self.max_waiting, self.timeout_s, self.metrics = generator, max_waiting, timeout_s, metrics
        self.changed = threading.Condition()
        self.waiting: deque[_Ticket] = deque()
        self.running: dict[str, _Ticket] = {}
        self.called_off: set[str] = set()
        self.stopping = False
        self.closes_at = math.inf  # of time.monotonic()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def submit(self, job: Job, deliver: Deliver) -> None:
        """Raises `QueueFull` or `Stopping`."""
        now = time.monotonic()
        ticket = _Ticket(job, deliver, now + self.timeout_s, now, unfinished={*range(job.choices)})
        with self.changed:
            if self.stopping:
                raise Stopping
            if len(self.waiting) >= self.max_waiting:
                raise QueueFull
            self.waiting.append(ticket)
            self.changed.notify()

    def call_off(self, job_id: str) -> None:
        """The work on a job stops before the next step; nothing more is delivered. Finished jobs are left alone."""
        with self.changed:
            self.called_off.add(job_id)
            self.changed.notify()

    def wind_up(self, grace_s: float) -> None:
        """Takes on nothing more; what is not finished in `grace_s` seconds is given up. Takes no lock: for signals."""
        self.stopping = True
        self.closes_at = min(self.closes_at, time.monotonic() + grace_s)

    def stop(self, *, waits: bool = True) -> None:
        """Gives up what there is, and ends the thread; where it `waits`, when its step is done."""
        self.wind_up(0)
        with self.changed:
            self.changed.notify()
        if waits:
            self.thread.join()

    @property
    def load(self) -> tuple[int, int]:
        """Jobs being worked on, and jobs waiting."""
        with self.changed:
            return len(self.running), len(self.waiting)

    @property
    def _is_over(self) -> bool:
        return time.monotonic() >= self.closes_at

    def _run(self) -> None:
        try:
            while not self._is_over:
                try:
                    if not self._take_turns():
                        break
                    for piece in self.generator.step():
                        self._hand_out(piece)
                except Exception:  # the outermost edge of this thread: the server goes on with other requests
                    log.exception("the generator failed; the requests in progress are given up")
                    self._give_up([*self.running.values()], OUR_BUG, Failure.BROKEN)
                    self.generator.clear()
        finally:
            self.stopping = True
            self._give_up([*self.running.values(), *self.waiting], SHUTTING_DOWN, Failure.STOPPING)

    def _take_turns(self) -> bool:
        """Waits for work, lets go of what is called off or late, and takes on what fits. False: the thread may end."""
        with self.changed:
            while not (self.waiting or self.running or self.called_off or self._is_over):
                self.changed.wait()
            if self._is_over:
                return False
            called_off, self.called_off = self.called_off, set()
            tickets = [*self.running.values(), *self.waiting]
        now = time.monotonic()
        for ticket in tickets:
            if ticket.job.id in called_off:
                self.generator.drop(ticket.job.id)
                self._close(ticket, "cancelled")
            elif ticket.deadline < now:
                self.generator.drop(ticket.job.id)
                self._give_up([ticket], TIMED_OUT, Failure.TIMEOUT)
        while self.waiting and self.generator.fits(self.waiting[0].job):
            with self.changed:
                ticket = self.waiting.popleft()
                self.running[ticket.job.id] = ticket
            try:
                self.generator.add(ticket.job)
            except ConsilienceError as error:
                self._give_up([ticket], str(error), Failure.REFUSED)
        return True

    def _hand_out(self, piece: Piece) -> None:
        ticket = self.running.get(piece.job)
        if ticket is None:  # given up over another of its replies in the same step
            return
        if piece.error:
            self.generator.drop(piece.job)
            self._give_up([ticket], piece.error, piece.failure)
            return
        if (piece.text or piece.tokens) and not ticket.first_text:
            ticket.first_text = time.monotonic()
            self.metrics.first_token.observe(ticket.first_text - ticket.arrived)
        ticket.tokens += piece.tokens
        if piece.finish:
            ticket.unfinished.discard(piece.choice)
            if not ticket.unfinished:
                self._close(ticket, "finished")
        ticket.deliver(piece)

    def _give_up(self, tickets: list[_Ticket], reason: str, failure: Failure) -> None:
        for ticket in tickets:
            self._close(ticket, failure)
            ticket.deliver(Piece(ticket.job.id, 0, "", error=reason, failure=failure))

    def _close(self, ticket: _Ticket, outcome: str) -> None:
        with self.changed:
            if self.running.pop(ticket.job.id, None) is None and ticket in self.waiting:
                self.waiting.remove(ticket)
        self.metrics.finished(outcome, time.monotonic() - ticket.arrived, len(ticket.job.prompt_ids), ticket.tokens)
