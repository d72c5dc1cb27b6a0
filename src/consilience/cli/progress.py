"""Long work made visible: bars with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from consilience.run import rank_of_this_process

OnProgress = Callable[[str, int, int], None]


@contextmanager
def watching() -> Iterator[OnProgress]:
    """A function `(what, done, total)` that shows progress on standard error while the block runs."""
    quiet_libraries()
    if rank_of_this_process():
        yield lambda what, done, total: None
        return
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, rate="")
            bars.update(tasks[what], completed=done, total=total)
            task = next(task for task in bars.tasks if task.id == tasks[what])
            bars.update(task.id, rate=f"{task.speed:.0f}/s" if task.speed and task.speed >= 1 else "")
            if done >= total:  # a finished bar becomes a line above: a long run has more of them than a screen has rows
                bars.print(f"{what:<24} {total} in {task.elapsed or 0:.1f} s")
                bars.remove_task(tasks.pop(what))

        yield show


class _Lines:
    """A line every ten seconds, and one for everything that is done, unless it took no time."""

    def __init__(self) -> None:
        self.began: dict[str, tuple[float, int]] = {}
        self.spoke = 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began, done_before = self.began.setdefault(what, (now, done))
        took, done_since = now - began, done - done_before  # a run that goes on does not begin at zero
        if took < 0.1 or (done < total and now - self.spoke < 10):
            return
        self.spoke = now
        left = f", {took / done_since * (total - done):.0f} s left" if done_since and done < total else ""
        print(f"{what}: {done} of {total} in {took:.1f} s{left}", file=sys.stderr, flush=True)


def quiet_libraries() -> None:
    """transformers' own bars and notes would be drawn across ours; its warnings stay.

    Where it is not imported yet it reads what to do from its environment then: a command that is refused, or asks a
    server, must not wait for it.
    """
    if "transformers" not in sys.modules:
        os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
