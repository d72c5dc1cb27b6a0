"""`gold.sqlite`: the drawn texts, who coded what and when, and everything that was ever undone.

What a coder may see (`texts`) and what the design knows (`draws`: the stratum is the model's label) are two tables; the
coding page reads the first only. A coding is never changed or deleted: a later one takes its place, an undone one is
marked. While a coder types, the same coding grows in place. Every write is on the disk when the call returns.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from consilience.errors import DataError, nearest

STORE, GOLD_TABLE = "gold.sqlite", "gold.csv"  # in a project's folder
CODER, ADJUDICATOR = "coder", "adjudicator"
OPEN, CODED, UNCLEAR = "open", "coded", "unclear"  # OPEN: a note, but no label yet
HELD_FOR = timedelta(minutes=30)  # a text that a coder looks at is not given to another for so long
NAME_LENGTH = 40

SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE texts (item TEXT PRIMARY KEY, place INTEGER NOT NULL UNIQUE, text TEXT NOT NULL, wanted INTEGER NOT NULL);
CREATE TABLE draws (
  item TEXT PRIMARY KEY REFERENCES texts, stratum TEXT NOT NULL, cluster TEXT NOT NULL, part TEXT NOT NULL,
  probability REAL NOT NULL, part_probability REAL NOT NULL
);
CREATE TABLE coders (name TEXT PRIMARY KEY, joined TEXT NOT NULL);
CREATE TABLE held (
  item TEXT NOT NULL REFERENCES texts, coder TEXT NOT NULL, until TEXT NOT NULL, PRIMARY KEY (item, coder)
);
CREATE TABLE codings (
  id INTEGER PRIMARY KEY AUTOINCREMENT, item TEXT NOT NULL REFERENCES texts, coder TEXT NOT NULL REFERENCES coders,
  role TEXT NOT NULL, status TEXT NOT NULL, value TEXT NOT NULL, note TEXT NOT NULL, codebook TEXT NOT NULL,
  origin TEXT NOT NULL, at TEXT NOT NULL, undone TEXT
);
CREATE INDEX codings_of ON codings (item, coder, role);
CREATE VIEW current AS
  SELECT * FROM codings WHERE id IN (SELECT max(id) FROM codings WHERE undone IS NULL GROUP BY item, coder, role);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldText:
    """A drawn text with what the design knows of it; `wanted` coders are to code it."""

    item: str
    text: str
    wanted: int
    stratum: str
    cluster: str
    part: str
    probability: float
    part_probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Coding:
    """What one coder said of one text: a value as the codebook writes it where `status` is CODED, else ""."""

    id: int
    item: str
    coder: str
    role: str
    status: str
    value: str
    note: str
    at: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A coder's texts: coded, and still to be had."""

    done: int
    left: int


class GoldStore:
    """The gold sample on disk. Several processes and threads may each have one open on the same file."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise DataError(f"no gold sample {path}. Draw one first: consilience gold plan {path.parent}.")
        self.path = path
        self._connection = _connect(path)

    @classmethod
    def create(cls, path: Path, about: Mapping[str, Any], texts: Sequence[GoldText]) -> GoldStore:
        """A new store of `texts`, coded in their order. Raises `DataError` where `path` is there already."""
        if path.exists():
            raise DataError(f"{path} is there already; a gold sample is extended, never drawn anew over codings.")
        partial = path.with_name(path.name + ".partial")
        for leftover in path.parent.glob(partial.name + "*"):
            leftover.unlink()
        with closing(_connect(partial)) as connection:
            connection.executescript(f"BEGIN; {SCHEMA} COMMIT;")
            with _transaction(connection):
                _write_about(connection, about)
                _write_texts(connection, texts, first_place=0)
            # All of it into the one file, which then gets its name whole.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode = DELETE")
        partial.rename(path)
        return cls(path)

    def close(self) -> None:
        """Closes the file; what was written is there already."""
        self._connection.close()

    def __enter__(self) -> GoldStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the sample ----------------------------------------------------------------------------------------------------

    @property
    def about(self) -> dict[str, Any]:
        """What was written down of the design: settings, seed, corpus fingerprint, codebook."""
        return {key: json.loads(value) for key, value in self._connection.execute("SELECT key, value FROM about")}

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Adds to, or replaces in, what is written down."""
        with _transaction(self._connection):
            _write_about(self._connection, about)

    def texts(self) -> list[GoldText]:
        """Every drawn text in coding order, with its design: not for coders' eyes."""
        rows = self._connection.execute(
            "SELECT item, text, wanted, stratum, cluster, part, probability, part_probability "
            "FROM texts JOIN draws USING (item) ORDER BY place"
        )
        return [GoldText(**dict(row)) for row in rows]

    def extend(self, about: Mapping[str, Any], texts: Sequence[GoldText]) -> int:
        """Makes the sample `texts`, which holds all that was drawn before, with new probabilities; the number added.

        Raises `DataError` where a text of before is missing or has another wording or part.
        """
        before = {text.item: text for text in self.texts()}
        after = {text.item: text for text in texts}
        for item, text in before.items():
            if item not in after or (after[item].text, after[item].part) != (text.text, text.part):
                raise DataError(
                    f"the longer sample does not hold text {item!r} as it was drawn before; {self.path} stays."
                )
        added = [text for text in texts if text.item not in before]
        with _transaction(self._connection) as connection:
            _write_about(connection, about)
            for item in before:
                now = after[item]
                connection.execute("UPDATE texts SET wanted = max(wanted, ?) WHERE item = ?", (now.wanted, item))
                connection.execute(
                    "UPDATE draws SET probability = ?, part_probability = ? WHERE item = ?",
                    (now.probability, now.part_probability, item),
                )
            _write_texts(connection, added, first_place=len(before))
        return len(added)

    # -- coding --------------------------------------------------------------------------------------------------------

    def add_coder(self, name: str) -> str:
        """Registers a coder and gives the name as kept; one who is there already is simply there.

        Raises `DataError` at a name that is empty, long, or holds what moves a terminal's cursor.
        """
        kept = " ".join(name.split())
        if not kept or len(kept) > NAME_LENGTH or not kept.isprintable() or kept[0] in "=+-@":
            raise DataError(f"a coder's name is 1 to {NAME_LENGTH} printable characters, not beginning with = + - @.")
        if known := self.coder_called(kept):
            return known
        with _transaction(self._connection) as connection:
            connection.execute("INSERT OR IGNORE INTO coders VALUES (?, ?)", (kept, _now()))
        return kept

    def coder_called(self, name: str) -> str | None:
        """The coder of that name, in any case and spacing; None where there is none."""
        wanted = " ".join(name.split()).casefold()
        return next((coder for coder in self.coders() if coder.casefold() == wanted), None)

    def coders(self) -> list[str]:
        """The coders' names, in the order in which they joined."""
        return [name for (name,) in self._connection.execute("SELECT name FROM coders ORDER BY joined, name")]

    def text_of(self, item: str) -> tuple[str, int]:
        """A text and its place in the coding order. Raises `DataError` where it was not drawn."""
        row = self._connection.execute("SELECT text, place FROM texts WHERE item = ?", (item,)).fetchone()
        if row is None:
            raise DataError(f"{item!r} is not in the gold sample.")
        return row["text"], row["place"]

    def next_for(self, coder: str, skipping: Sequence[str] = ()) -> str | None:
        """The first text in coding order that waits for `coder`, held for them for a while; None when there is none.

        A text waits while fewer coders than it wants have coded it or hold it. Those `skipping` names come last.
        """
        self._check_coder(coder)
        later = json.dumps(list(skipping))
        with _transaction(self._connection) as connection:
            row = connection.execute(
                f"SELECT item FROM texts WHERE {WAITS} "
                "ORDER BY item IN (SELECT value FROM json_each(:later)), place LIMIT 1",
                {"coder": coder, "now": _now(), "later": later},
            ).fetchone()
            if row is None:
                return None
            until = (datetime.now(UTC) + HELD_FOR).isoformat()
            connection.execute("DELETE FROM held WHERE coder = ? AND item != ?", (coder, row["item"]))
            connection.execute("INSERT OR REPLACE INTO held VALUES (?, ?, ?)", (row["item"], coder, until))
            return str(row["item"])

    def progress(self, coder: str) -> Progress:
        """How many texts `coder` has coded, and how many wait for them."""
        self._check_coder(coder)
        (done,) = self._connection.execute(
            "SELECT count(*) FROM current WHERE coder = ? AND role = ? AND status != ?", (coder, CODER, OPEN)
        ).fetchone()
        (left,) = self._connection.execute(
            f"SELECT count(*) FROM texts WHERE {WAITS}", {"coder": coder, "now": _now()}
        ).fetchone()
        return Progress(done, left)

    def code(
        self,
        item: str,
        coder: str,
        *,
        status: str,
        value: str,
        note: str = "",
        codebook: str = "",
        origin: str = "page",
        role: str = CODER,
        continues: int | None = None,
    ) -> int:
        """Writes a coding down and gives its number; `value` is as the codebook writes it.

        `continues` names the coding that this one is a further key press of: it is overwritten if it is still the
        last of this coder on this text, else a new one is made.
        """
        self._check_coder(coder)
        self.text_of(item)
        row = (status, value, note, codebook, origin, _now())
        with _transaction(self._connection) as connection:
            if continues is not None:
                last = connection.execute(
                    "SELECT id FROM current WHERE item = ? AND coder = ? AND role = ?", (item, coder, role)
                ).fetchone()
                if last is not None and last["id"] == continues:
                    connection.execute(
                        "UPDATE codings SET status = ?, value = ?, note = ?, codebook = ?, origin = ?, at = ? "
                        "WHERE id = ?",
                        (*row, continues),
                    )
                    return continues
            made = connection.execute(
                "INSERT INTO codings (item, coder, role, status, value, note, codebook, origin, at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (item, coder, role, *row),
            )
            return int(made.lastrowid or 0)

    def code_many(self, rows: Sequence[tuple[str, str, str, str]], coder: str, *, codebook: str, origin: str) -> None:
        """Writes `(item, status, value, note)` codings of one coder down: all of them or none."""
        self._check_coder(coder)
        with _transaction(self._connection) as connection:
            connection.executemany(
                f"INSERT INTO codings (item, coder, role, status, value, note, codebook, origin, at) "
                f"VALUES (?, ?, '{CODER}', ?, ?, ?, ?, ?, ?)",
                [(item, coder, status, value, note, codebook, origin, _now()) for item, status, value, note in rows],
            )

    def undo(self, coder: str, role: str = CODER) -> str | None:
        """Takes back the coder's last coding; the text that it was of, or None when there is none to take back."""
        self._check_coder(coder)
        with _transaction(self._connection) as connection:
            row = connection.execute(
                "SELECT id, item FROM codings WHERE coder = ? AND role = ? AND undone IS NULL ORDER BY id DESC LIMIT 1",
                (coder, role),
            ).fetchone()
            if row is None:
                return None
            connection.execute("UPDATE codings SET undone = ? WHERE id = ?", (_now(), row["id"]))
            return str(row["item"])

    def coding_of(self, item: str, coder: str, role: str = CODER) -> Coding | None:
        """What `coder` says of `item` now."""
        row = self._connection.execute(
            f"SELECT {FIELDS} FROM current WHERE item = ? AND coder = ? AND role = ?", (item, coder, role)
        ).fetchone()
        return None if row is None else Coding(**dict(row))

    def codings(self) -> dict[str, list[Coding]]:
        """What all coders and adjudicators say now, by text; a note without a label is not among it."""
        found: dict[str, list[Coding]] = defaultdict(list)
        for row in self._connection.execute(f"SELECT {FIELDS} FROM current WHERE status != ? ORDER BY id", (OPEN,)):
            found[row["item"]].append(Coding(**dict(row)))
        return dict(found)

    def coded_by(self, coder: str) -> list[str]:
        """The coder's texts in coding order, those with only a note included."""
        rows = self._connection.execute(
            "SELECT item FROM current JOIN texts USING (item) WHERE coder = ? AND role = ? ORDER BY place",
            (coder, CODER),
        )
        return [item for (item,) in rows]

    def history(self) -> list[dict[str, Any]]:
        """Every coding ever made, undone ones included, oldest first."""
        return [dict(row) for row in self._connection.execute("SELECT * FROM codings ORDER BY id")]

    def _check_coder(self, coder: str) -> None:
        if coder not in (coders := self.coders()):
            raise DataError(f"no coder is called {coder!r}.{nearest(coder, coders)} Register the name first.")


FIELDS = "id, item, coder, role, status, value, note, at"
WAITS = """(
  NOT EXISTS (SELECT 1 FROM current WHERE current.item = texts.item AND coder = :coder AND role = 'coder'
              AND status != 'open')
  AND texts.wanted > (
    SELECT count(DISTINCT coder) FROM (
      SELECT coder FROM current WHERE current.item = texts.item AND role = 'coder' AND status != 'open'
      UNION ALL
      SELECT coder FROM held WHERE held.item = texts.item AND until > :now
    ) WHERE coder != :coder
  )
)"""


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    try:
        connection.execute("PRAGMA journal_mode = WAL")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise DataError(f"{path} is not a gold sample ({error}).") from None
    connection.execute("PRAGMA synchronous = FULL")  # a coding outlives a power cut, not only a killed process
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _write_about(connection: sqlite3.Connection, about: Mapping[str, Any]) -> None:
    rows = [(key, json.dumps(value, ensure_ascii=False)) for key, value in about.items()]
    connection.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", rows)


def _write_texts(connection: sqlite3.Connection, texts: Sequence[GoldText], first_place: int) -> None:
    for place, text in enumerate(texts, start=first_place):
        connection.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", (text.item, place, text.text, text.wanted))
        connection.execute(
            "INSERT INTO draws VALUES (?, ?, ?, ?, ?, ?)",
            (text.item, text.stratum, text.cluster, text.part, text.probability, text.part_probability),
        )


def _now() -> str:
    return datetime.now(UTC).isoformat()
