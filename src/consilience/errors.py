"""What a user can put right: one line, no traceback, the next step.

Any other exception is our bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class ConsilienceError(Exception):
    """The user's to mend. The command line prints its one line and exits with 2."""


class ConfigError(ConsilienceError):
    """A recipe, an option or a run folder that cannot be used as it stands."""


class DataError(ConsilienceError):
    """Input data that cannot be used as it stands: names the file, the line and what was expected."""


class BackendError(ConsilienceError):
    """A model, a library or a machine that did not do its part: missing, out of space, NaN."""


def first_line(error: BaseException) -> str:
    """What another library's error says first, to be put into a line of ours; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def nearest(name: str, names: Iterable[str]) -> str:
    """A sentence ` Did you mean 'x'?` with the entry of `names` most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry of `table` called `name`; the error says what there is, and what was meant."""
    if name in table:
        return table[name]
    raise ConfigError(f"no {kind} is called {name!r}.{nearest(name, table)} There are: {', '.join(sorted(table))}.")
