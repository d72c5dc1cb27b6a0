"""The published alignments as sequence alignments, by hand: whose next token speaks for whose."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest

from consilience.align import SEQUENCE_ALIGNMENTS, Spelling, TokenText
from consilience.errors import DataError


def reply(raw: list[str], mark: str, ends: list[int] | None = None) -> TokenText:
    """One reply; a mark is a blank, and the blank before the first word is not written."""
    lengths = [len(token) - (i == 0 and token.startswith(mark)) for i, token in enumerate(raw)]
    ends_N = np.array(ends or list(accumulate(lengths)), dtype=np.int64)
    decoded = [token.replace(mark, " ") for token in raw]
    return TokenText(np.append(0, ends_N[:-1]), ends_N, np.arange(len(raw)), Spelling(raw, decoded, mark))


# bytes: 0    3    (6)  8    12   (14) 16
PIVOT = reply(["▁The", "▁cats", "▁sat", "on", "it", "▁x"], "▁")
SOURCE = reply(["The", "Ġca", "ts", "Ġsat", "onit", "Ġx"], "Ġ")
BY_SPANS = [0, 1, 3, 4, -1, 5]


def test_spans_by_hand() -> None:
    assert SEQUENCE_ALIGNMENTS["spans"](PIVOT, SOURCE).source_P.tolist() == BY_SPANS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Warped: The-The, cats-{ca, ts}, sat-sat, {on, it}-onit, x-x. The position after a token that has a partner
        # stands beside the position after that partner; the first ones stand beside one another.
        # One partner of the same spelling; "▁The" is "The" with the blank that opens a text.
        ("fusellm", [0, 1, -1, 4, -1, -1]),
        # One partner that the token is a part of: "on" is a part of "onit", which says more than it, so that its next
        # position is a wrong one. "▁The" is no part of "The".
        ("fusechat1", [0, -1, -1, 4, 5, 5]),
        # The first partner of which one is the other's ending: "ts" ends "cats" as "ca" does not, "it" ends "onit".
        ("fusechat2", [0, 1, 3, 4, -1, 5]),
    ],
)
def test_the_published_rules_by_hand(name: str, expected: list[int]) -> None:
    alignment = SEQUENCE_ALIGNMENTS[name](PIVOT, SOURCE)
    assert alignment.source_P.tolist() == expected


def test_after_the_last_source_token_nothing_is_left() -> None:
    pivot, source = reply(["▁a", "x", "y"], "▁"), reply(["Ġa", "Ġx"], "Ġ", ends=[1, 3])
    assert SEQUENCE_ALIGNMENTS["fusechat2"](pivot, source).source_P.tolist() == [0, 1, -1]  # "x" is the source's last


def test_without_spelling_only_spans_can_be_read() -> None:
    bare = TokenText(PIVOT.starts_N, PIVOT.ends_N)
    assert SEQUENCE_ALIGNMENTS["spans"](bare, SOURCE).source_P.tolist() == BY_SPANS
    with pytest.raises(DataError, match=r"fusellm compares the tokens' spelling.* or take spans"):
        SEQUENCE_ALIGNMENTS["fusellm"](bare, SOURCE)
