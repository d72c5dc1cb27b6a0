"""Threads that work on what one thread gives them, and that Ctrl-C cannot lock up.

`concurrent.futures` and `threading.Thread.start` wait on conditions that are written in Python. A KeyboardInterrupt in
the middle of one leaves it locked, and whoever comes next waits forever: that happened here. The thread that can be
interrupted therefore only touches queues whose operations are single steps of the interpreter.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class Crew(Generic[Task, Result]):
    """At most `size` threads that do `work`; they are started as tasks come, and end with the process at the latest."""

    def __init__(self, work: Callable[[Task], Result], size: int) -> None:
        self.waiting = 0  # tasks that were given, and whose results were not taken yet
        self._work, self._size, self._started, self._ended = work, size, 0, False
        self._tasks: SimpleQueue[tuple[Task] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[Task, Result | BaseException] | None] = SimpleQueue()

    def give(self, task: Task) -> None:
        """Has `task` done, when a thread is free."""
        self.waiting += 1
        self._tasks.put((task,))
        if self._started < self._size:
            self._started += 1
            _thread.start_new_thread(self._run, ())

    def take(self) -> tuple[Task, Result]:
        """Waits for the next task that is done. Raises what its work raised."""
        found = self._done.get()
        assert found is not None  # threads leave when the crew ends
        self.waiting -= 1
        task, result = found
        if isinstance(result, BaseException):
            raise result
        return task, result

    def end(self) -> None:
        """Drops the tasks that nobody has begun, and waits for the others."""
        self._ended = True
        for _ in range(self._started):
            self._tasks.put(None)
        left = self._started
        while left:
            left -= self._done.get() is None

    def _run(self) -> None:
        while (given := self._tasks.get()) is not None and not self._ended:
            result: Result | BaseException
            try:
                result = self._work(given[0])
            except BaseException as error:  # handed to the thread that gave the task
                result = error
            self._done.put((given[0], result))
        self._done.put(None)
