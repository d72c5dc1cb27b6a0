"""Answers that were paid for, in one SQLite file: nothing is asked twice, and what was spent is known after any stop.

    answers   key -> one sample of an answer, as the server sent it
    calls     every call that was begun: what it cost; what it may have cost where no answer arrived
    claims    key -> the call that is asking for it now, in whichever process
notes     what a server was seen to do otherwise than asked: a report made after a resume must say it, too

An answer is on the disk before anyone sees it. A process that dies leaves claims: its sign of life tells that it is
gone; the next one that wants the answer asks again, and counts the lost call as one that may have been paid.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import BackendError, DataError
from consilience.models.endpoint.alive import SignOfLife
from consilience.models.endpoint.answer import Answer, read_choice
from consilience.models.endpoint.settings import Budget

TABLES = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, call INTEGER NOT NULL, choice TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
    id INTEGER PRIMARY KEY, owner TEXT NOT NULL, begun REAL NOT NULL, state TEXT NOT NULL, model TEXT NOT NULL,
    prompt_tokens INTEGER, completion_tokens INTEGER, most_tokens INTEGER NOT NULL, most_money REAL NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, call INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    calls INTEGER, lost INTEGER, prompt_tokens INTEGER, completion_tokens INTEGER, money REAL,
    unsure_tokens INTEGER, unsure_money REAL);
CREATE TABLE IF NOT EXISTS notes (server TEXT, note TEXT, UNIQUE (server, note));
INSERT INTO totals SELECT 0, 0, 0, 0, 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
"""


class Amount(NamedTuple):
    """What a call costs, or may cost at most."""

    prompt_tokens: int
    completion_tokens: int
    money: float

    @property
    def tokens(self) -> int:
        """Both kinds together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """What was ever paid into a cache. `unsure`: calls whose answer never arrived, at the most they can have cost."""

    calls: int
    lost: int
    prompt_tokens: int
    completion_tokens: int
    money: float
    unsure_tokens: int
    unsure_money: float

    def __str__(self) -> str:
        money = f", {self.money:.4g} in money" if self.money else ""
        lost = f"; {self.lost} calls without an answer may have cost more" if self.lost else ""
        if self.lost and self.unsure_money:
            lost += f", at most {self.unsure_money:.4g}"
        tokens = f"{self.prompt_tokens:,} tokens in, {self.completion_tokens:,} out"
        return f"{self.calls:,} calls, {tokens}{money}{lost}"


class Begin(Enum):
    """Why a call was not begun."""

    ANSWERED = "another thread or process has its answer"
    HELD = "another thread or process is asking, or holds what is left of the budget until it has its answer"
    OVER_BUDGET = "the budget"


class AnswerCache:
    """The file at `path`, or memory where there is none. May be shared by threads and by processes."""

    def __init__(self, path: Path | None = None) -> None:
        self._name = str(path) if path else "the cache in memory"
        self._lock = threading.RLock()  # a close() on the way out of an interrupt may find it held by its own thread
        try:
            self._alive = SignOfLife(path) if path else None
            self._sql = sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.OperationalError) as error:
            raise BackendError(f"{self._name} cannot be written ({error}). Give the cache another place.") from None
        self._owner = self._alive.owner if self._alive else ""
        try:
            with self._work():
                _set_up(self._sql)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the file; claims that are still open count as lost from now on."""
        with self._lock:
            self._sql.close()
            if self._alive:
                self._alive.close()

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there."""
        found = {}
        with self._work():
            for key in keys:
                row = self._sql.execute(
                    "SELECT choice, calls.model, prompt_tokens, completion_tokens FROM answers "
                    "JOIN calls ON calls.id = call WHERE key = ?",
                    (key,),
                ).fetchone()
                if row:
                    choice, model, prompt, completion = row
                    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
                    found[key] = read_choice(json.loads(choice), model=model, usage=usage, cached=True)
        return found

    def begin(self, keys: Sequence[str], most: Amount, budget: Budget | None) -> int | Begin:
        """A new call for `keys`, which may cost `most`; or why it must not be begun now."""
        with self._transaction():
            for key in keys:
                if self._sql.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                    return Begin.ANSWERED
                claim = self._sql.execute(
                    "SELECT calls.id, owner FROM claims JOIN calls ON calls.id = call WHERE key = ?", (key,)
                ).fetchone()
                if claim and self._lives(claim[1]):
                    return Begin.HELD
                if claim:
                    self._lose(claim[0])
            if budget and (unpaid := self._unpaid(most, budget)) is not None:
                return unpaid
            call = self._sql.execute(
                "INSERT INTO calls VALUES (NULL, ?, ?, 'asking', '', NULL, NULL, ?, ?)",
                (self._owner, time.time(), most.tokens, most.money),
            ).lastrowid
            assert call is not None
            self._sql.executemany("INSERT INTO claims VALUES (?, ?)", [(key, call) for key in keys])
            return call

    def finish(self, call: int, choices: Mapping[str, Any], *, model: str, cost: Amount, stated: bool = True) -> None:
        """Keeps the answers of a call and its cost, which is the most it can have been where the server stated none."""
        prompt, completion, money = cost
        with self._transaction(through_power_cuts=True):
            self._sql.executemany(
                "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)",
                [(key, call, json.dumps(choice)) for key, choice in choices.items()],
            )
            self._sql.execute(
                "UPDATE calls SET model = ?, prompt_tokens = ?, completion_tokens = ? WHERE id = ?",
                (model, prompt if stated else None, completion if stated else None, call),
            )
            self._sql.execute(
                "UPDATE totals SET calls = calls + 1, prompt_tokens = prompt_tokens + ?, "
                "completion_tokens = completion_tokens + ?, money = money + ?",
                (prompt, completion, money),
            )
            self._end(call, "answered")

    def note(self, server: str, note: str) -> None:
        """Keeps a note about a server."""
        with self._transaction():
            self._sql.execute("INSERT OR IGNORE INTO notes VALUES (?, ?)", (server, note))

    def notes(self, server: str) -> list[str]:
        """The notes about a server, in the order in which they were made."""
        with self._work():
            found = self._sql.execute("SELECT note FROM notes WHERE server = ? ORDER BY rowid", (server,))
            return [note for (note,) in found]

    def fail(self, call: int, *, charged: bool) -> None:
        """Gives a call up; one that may have been charged for counts as lost."""
        with self._transaction():
            if charged:
                self._lose(call)
            else:
                self._end(call, "failed")

    @property
    def spent(self) -> Spent:
        """What was ever paid into this cache, calls that died with their process included."""
        with self._transaction():
            self._lose_the_dead()
            calls, lost, prompt, completion, money, unsure_tokens, unsure = self._sql.execute(
                "SELECT * FROM totals"
            ).fetchone()
        return Spent(
            calls=calls,
            lost=lost,
            prompt_tokens=prompt,
            completion_tokens=completion,
            money=money,
            unsure_tokens=unsure_tokens,
            unsure_money=unsure,
        )

    def _unpaid(self, most: Amount, budget: Budget) -> Begin | None:
        """Why a call cannot be paid for now: nothing is left, or what is left is held by calls under way."""
        spent = self._sql.execute(
            "SELECT prompt_tokens + completion_tokens + unsure_tokens, money + unsure_money FROM totals"
        ).fetchone()
        held = self._sql.execute(
            "SELECT coalesce(sum(most_tokens), 0), coalesce(sum(most_money), 0) FROM calls "
            "WHERE id IN (SELECT call FROM claims)"
        ).fetchone()
        limits = [(budget.tokens, spent[0], held[0], most.tokens), (budget.money, spent[1], held[1], most.money)]
        if any(limit is not None and paid + more > limit for limit, paid, _, more in limits):
            return Begin.OVER_BUDGET
        if any(limit is not None and paid + kept + more > limit for limit, paid, kept, more in limits):
            self._lose_the_dead()
            return Begin.HELD
        return None

    def _lose_the_dead(self) -> None:
        """Ends the calls of processes that are gone."""
        claims = "SELECT DISTINCT calls.id, owner FROM claims JOIN calls ON calls.id = call"
        for call, owner in self._sql.execute(claims).fetchall():
            if not self._lives(owner):
                self._lose(call)

    def _lose(self, call: int) -> None:
        """Counts a call as one that may have been paid though its answer never arrived."""
        self._sql.execute(
            "UPDATE totals SET lost = lost + 1, unsure_tokens = unsure_tokens + most_tokens, "
            "unsure_money = unsure_money + most_money FROM calls WHERE id = ?",
            (call,),
        )
        self._end(call, "lost")

    def _end(self, call: int, state: str) -> None:
        self._sql.execute("UPDATE calls SET state = ? WHERE id = ?", (state, call))
        self._sql.execute("DELETE FROM claims WHERE call = ?", (call,))

    def _lives(self, owner: str) -> bool:
        return self._alive is None or self._alive.lives(owner)

    @contextmanager
    def _work(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:  # the disk is full, say
                raise BackendError(
                    f"{self._name}: {error}. Answers are kept; give the same command again when that is mended."
                ) from None
            except sqlite3.ProgrammingError:  # ours: a cache that was closed
                raise
            except sqlite3.DatabaseError as error:
                raise DataError(
                    f"{self._name} cannot be used as a cache of answers ({error}). Move it away; it is made anew."
                ) from None

    @contextmanager
    def _transaction(self, *, through_power_cuts: bool = False) -> Iterator[None]:
        """All of it or nothing, whenever the process dies. Answers outlive a power cut, too; claims need not."""
        with self._work():
            self._sql.execute(f"PRAGMA synchronous = {'FULL' if through_power_cuts else 'NORMAL'}")
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # SQLite may have rolled back by itself
                    self._sql.execute("ROLLBACK")
                raise


def _set_up(sql: sqlite3.Connection) -> None:
    """Makes the tables. Of several processes that open a new file at once, one may change its journal at a time."""
    for wait_s in [0.05] * 1200 + [None]:
        try:
            sql.execute("PRAGMA journal_mode = WAL")
            sql.executescript(TABLES)
            return
        except sqlite3.OperationalError as error:
            if wait_s is None or "locked" not in str(error):
                raise
            time.sleep(wait_s)
