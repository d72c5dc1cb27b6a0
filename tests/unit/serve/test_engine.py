"""The engine with a generator that does as a test says: queue, deadlines, jobs called off, steps that fail."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from consilience.errors import DataError
from consilience.serve.engine import Engine, QueueFull, Stopping
from consilience.serve.generate import Failure, Job, Piece, Sampling
from consilience.serve.metrics import Metrics

WAIT_S = 5


class Script:
    """A generator with `room` jobs at once: a step gives each a letter; a job ends after `max_tokens` of them."""

    def __init__(self, room: int = 2) -> None:
        self.room = room
        self.jobs: dict[str, Job] = {}
        self.written: dict[str, int] = {}
        self.go = threading.Semaphore(0)  # steps that may be made
        self.fails: Callable[[], Any] = lambda: None
        self.added: list[str] = []
        self.dropped: list[str] = []

    def fits(self, job: Job) -> bool:
        return len(self.jobs) < self.room

    def add(self, job: Job) -> None:
        if not job.prompt_ids:
            raise DataError("an empty prompt")
        self.added.append(job.id)
        self.jobs[job.id], self.written[job.id] = job, 0

    def drop(self, job_id: str) -> None:
        self.dropped.append(job_id)
        self.jobs.pop(job_id, None)

    def clear(self) -> None:
        self.jobs.clear()

    def step(self) -> Sequence[Piece]:
        if not self.jobs:
            return []
        self.go.acquire(timeout=WAIT_S)
        self.fails()
        pieces = []
        for job in [*self.jobs.values()]:
            self.written[job.id] += 1
            over = self.written[job.id] == job.sampling.max_tokens
            pieces.append(Piece(job.id, 0, "x", 1, finish="length" if over else None))
            if over:
                del self.jobs[job.id]
        return pieces


class Heard:
    """What was delivered to one job."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.over = threading.Event()
        self.begun = threading.Event()

    def __call__(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self.begun.set()
        if piece.finish or piece.error:
            self.over.set()

    def wait(self) -> Piece:
        assert self.over.wait(WAIT_S)
        return self.pieces[-1]


def job(name: str, tokens: int = 2, ids: Sequence[int] = (1,)) -> Job:
    return Job(id=name, prompt_ids=ids, sampling=Sampling(max_tokens=tokens, seed=0))


@pytest.fixture
def started() -> Iterator[Callable[..., tuple[Engine, Script]]]:
    engines: list[Engine] = []

    def start(*, room: int = 2, max_waiting: int = 2, timeout_s: float = 60.0) -> tuple[Engine, Script]:
        script = Script(room)
        engine = Engine(script, max_waiting=max_waiting, timeout_s=timeout_s, metrics=Metrics())
        engines.append(engine)
        engine.start()
        return engine, script

    yield start
    for engine in engines:
        engine.generator.go.release(1000)  # type: ignore[attr-defined]
        engine.stop()


def submit(engine: Engine, *jobs: Job) -> list[Heard]:
    heard = [Heard() for _ in jobs]
    for one, ears in zip(jobs, heard, strict=True):
        engine.submit(one, ears)
    return heard


def settled(engine: Engine, load: tuple[int, int]) -> None:
    for _ in range(WAIT_S * 200):
        if engine.load == load:
            return
        threading.Event().wait(0.005)
    assert engine.load == load


def test_first_come_first_served(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started(room=1, max_waiting=3)
    heard = submit(engine, job("a"), job("b"), job("c"))
    script.go.release(6)
    assert [one.wait().finish for one in heard] == ["length"] * 3
    assert script.added == ["a", "b", "c"]
    assert ["".join(piece.text for piece in one.pieces) for one in heard] == ["xx"] * 3


def test_the_queue_has_a_limit(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started(room=1, max_waiting=2)
    (first,) = submit(engine, job("a"))
    settled(engine, (1, 0))
    submit(engine, job("b"), job("c"))
    with pytest.raises(QueueFull):
        submit(engine, job("d"))
    script.go.release(2)
    first.wait()
    settled(engine, (1, 1))
    submit(engine, job("e"))


def test_what_is_called_off_is_heard_of_no_more(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started(room=1)
    running, waiting = submit(engine, job("a", tokens=100), job("b"))
    settled(engine, (1, 1))
    engine.call_off("b")
    engine.call_off("a")
    engine.call_off("never there")
    script.go.release(1)  # the step that is under way
    settled(engine, (0, 0))
    assert len(running.pieces) <= 1
    assert waiting.pieces == []
    assert script.jobs == {}
    assert engine.metrics.outcomes["cancelled"] == 2


def test_a_deadline_holds_for_those_who_wait_too(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started(room=1, timeout_s=0.2)
    running, waiting = submit(engine, job("a", tokens=100), job("b"))
    threading.Event().wait(0.3)
    script.go.release(1)
    assert (running.wait().failure, waiting.wait().failure) == (Failure.TIMEOUT, Failure.TIMEOUT)
    assert script.jobs == {}


def test_a_step_that_fails_ends_those_under_way_and_no_others(
    started: Callable[..., tuple[Engine, Script]], caplog: pytest.LogCaptureFixture
) -> None:
    engine, script = started(room=1)
    running, waiting = submit(engine, job("a"), job("b"))
    settled(engine, (1, 1))
    faults = iter([ZeroDivisionError("out of luck")])

    def fail_once() -> None:
        for fault in faults:
            raise fault

    script.fails = fail_once
    script.go.release(3)
    assert (running.wait().failure, running.pieces[-1].finish) == (Failure.BROKEN, None)
    assert "out of luck" in caplog.text
    assert "out of luck" not in running.pieces[-1].error  # the log is for the operator, not for the client
    assert waiting.wait().finish == "length"


def test_a_prompt_that_the_generator_fails_over_does_not_end_the_server(
    started: Callable[..., tuple[Engine, Script]], caplog: pytest.LogCaptureFixture
) -> None:
    engine, script = started()
    taken = script.add

    def add(job: Job) -> None:
        if job.id == "a":
            raise MemoryError("no room for its cache")
        taken(job)

    script.add = add  # type: ignore[method-assign]
    (bad,) = submit(engine, job("a"))
    assert bad.wait().failure == Failure.BROKEN
    (good,) = submit(engine, job("b"))
    script.go.release(2)
    assert good.wait().finish == "length"
    assert "no room for its cache" in caplog.text


def test_a_prompt_that_the_generator_refuses(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started()
    bad, good = submit(engine, job("a", ids=()), job("b"))
    script.go.release(2)
    assert (bad.wait().failure, bad.pieces[-1].error) == (Failure.REFUSED, "an empty prompt")
    assert good.wait().finish == "length"


def test_stopping_lets_what_is_there_finish(started: Callable[..., tuple[Engine, Script]]) -> None:
    engine, script = started(room=1)
    running, waiting = submit(engine, job("a"), job("b", tokens=1000))
    settled(engine, (1, 1))
    engine.wind_up(grace_s=0.5)
    with pytest.raises(Stopping):
        submit(engine, job("c"))
    script.go.release(3)
    assert running.wait().finish == "length"
    threading.Timer(0.6, script.go.release).start()  # the step that is under way when the time is over
    assert waiting.wait().failure == Failure.STOPPING
    engine.thread.join(WAIT_S)
    assert not engine.thread.is_alive()
