"""The published alignments and mappings by hand and by property; tests/golden has them on real texts."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from consilience.align import WARPINGS, Marks, Warping
from consilience.align.published import (
    count_warped,
    fusechat1_choices,
    fusechat2_choices,
    fusellm_choices,
    map_rows,
    nearest_spelling,
    same_spelling,
    sigmoid_weighted,
)
from consilience.errors import DataError

MARKS = Marks(pivot="▁", source="Ġ")
methods = pytest.mark.parametrize("method", sorted(WARPINGS))


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Seconds that no single example should be charged with."""
    WARPINGS["fusellm"](["a"], ["a"], MARKS)


# ---- sequence alignment ----


@pytest.mark.parametrize(
    ("source", "pivot", "fusellm", "fusechat1", "fusechat2"),
    [
        ("Ġcats", "▁cat", 1, 0.1, 1),  # one letter more; one inside the other
        ("Ġcats", "▁cart", 2, 2, 2),
        ("ĠĠ", "ab", 2, 2 * 0.1, 2),  # "" and "ab", a tenth as "" is inside everything; "▁▁" and "ab"
        ("ĠĠ", "a", 1, 0.1, 2),  # "" and "a"; FuseChat: "▁▁" and "a"
        ("a", "▁▁", 1, 0.1, 2),  # the same, blank on the pivot's side
        ("ĠĠ", "▁", 0, 0, 1),  # nothing left of both; FuseChat: "▁▁" and "▁"
    ],
)
def test_cost_of_a_pair_by_hand(source: str, pivot: str, fusellm: float, fusechat1: float, fusechat2: float) -> None:
    costs = [WARPINGS[name]([pivot], [source], MARKS).cost for name in ("fusellm", "fusechat1", "fusechat2")]
    assert costs == [fusellm, fusechat1, fusechat2]


def test_equal_ways_are_told_apart_as_published() -> None:
    # Accumulated costs, by hand:  a  xya  abc      Back from the last cell (5) both neighbours cost 2, the
    #                         a    0   2    4       diagonal 3. FuseLLM goes up to (abc, abc), FuseChat left to
    #                         abc  2   3    2       (xya, xya).
    #                         xya  4   2    5
    pivot, source = ["a", "xya", "abc"], ["a", "abc", "xya"]
    up, left = [[0], [0], [1, 2]], [[0, 1], [2], [2]]
    warped = {name: align(pivot, source, MARKS) for name, align in WARPINGS.items()}
    assert warped["fusellm"].rows() == up
    assert warped["fusellm"].cost == 5
    assert warped["fusechat1"].rows() == up  # "a" inside the others: the twos become tenths, the order stays
    assert warped["fusechat1"].cost == pytest.approx(3.2)
    assert warped["fusechat2"].rows() == left
    assert warped["fusechat2"].cost == 5


@methods
def test_the_diagonal_comes_first(method: str) -> None:
    warped = WARPINGS[method](["a", "a", "a"], ["a", "a"], MARKS)
    assert warped.rows() == [[0], [0], [1]]  # (1, 2), (0, 1), then along the edge to (0, 0)
    assert warped.cost == 0


@methods
def test_texts_without_tokens_are_refused(method: str) -> None:
    with pytest.raises(DataError, match="0 source tokens onto 1 pivot"):
        WARPINGS[method](["a"], [], MARKS)


words = st.lists(st.text("abĠ", max_size=3), min_size=1, max_size=4)


@given(words, words)
def test_no_other_path_is_cheaper(pivot: list[str], source: list[str]) -> None:
    def pair(s: int, p: int) -> int:
        return textbook_distance(source[s].replace("Ġ", ""), pivot[p])

    def cheapest(s: int, p: int) -> int:
        """By trying all paths."""
        before = [(s - 1, p - 1), (s - 1, p), (s, p - 1)]
        rest = [cheapest(*cell) for cell in before if min(cell) >= 0]
        return pair(s, p) + min(rest, default=0)

    warped = WARPINGS["fusellm"](pivot, source, MARKS)
    assert warped.cost == cheapest(len(source) - 1, len(pivot) - 1)
    path = [(s, p) for p, row in enumerate(warped.rows()) for s in row]
    assert sum(pair(*cell) for cell in path) == warped.cost
    assert path[0] == (0, 0)
    assert path[-1] == (len(source) - 1, len(pivot) - 1)
    steps = {(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(path)}
    assert steps <= {(1, 1), (1, 0), (0, 1)}


@methods
@given(words)
def test_a_text_warped_onto_itself_is_free(method: str, tokens: list[str]) -> None:
    warped = WARPINGS[method](tokens, tokens, Marks("Ġ", "Ġ"))
    assert warped.rows() == [[i] for i in range(len(tokens))]
    assert warped.cost == 0


def test_numba_stays_out_until_it_is_needed() -> None:
    check = (
        "import sys, consilience.align, consilience.align.published; assert not {'numba', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", check], check=True)


# ---- which source position ----


def warp(*rows: list[int]) -> Warping:
    values = np.array([j for row in rows for j in row], dtype=np.int32)
    return Warping(np.cumsum([0, *map(len, rows)]), values, 0.0)


def test_fusellm_takes_single_partners_of_the_same_spelling() -> None:
    pivot, source = ["▁the", "▁cat", "s", "▁on"], ["the", "Ġcats", "Ġo", "n"]
    warped = warp([0], [1], [1], [2, 3])
    assert fusellm_choices(pivot, source, warped, MARKS) == [{0: 1.0}, None, None, None]  # "the" opens the text
    nearest = {"▁cats": "▁cat"}
    assert fusellm_choices(pivot, source, warped, MARKS, nearest) == [{0: 1.0}, {1: 1.0}, None, None]


def test_fusechat1_takes_partners_around_the_token() -> None:
    pivot, source = ["▁cat", "s", "▁x"], ["Ġcats", "y"]
    assert fusechat1_choices(pivot, source, warp([0], [0], [1]), MARKS) == [{0: 1.0}, {0: 1.0}, None]


def test_fusechat1_with_several_partners() -> None:
    source = ["Ġgoing", "Ġgo", "Ġba", "nana", "Ġ", "x"]
    pivot = ["▁go", "▁banana", "▁kiwi", "▁goin", "▁"]
    warped = warp([0, 1], [2, 3], [4, 5], [0, 1], [4, 5])

    def count(position: int, partner: int) -> float:
        return {2: 1.0, 3: 1.0 + np.log(3), 4: 7.0}[partner]

    choices = fusechat1_choices(pivot, source, warped, MARKS, count)
    assert choices[0] == {1: 1.0}  # the equal one, although the first is around it, too
    assert choices[1] == pytest.approx({2: 0.25, 3: 0.75})  # softmax of 1 and 1 + ln 3
    assert choices[2:4] == [None, {0: 1.0}]
    assert choices[4] == {4: 1.0}  # a lone mark is only ever spelled
    assert fusechat1_choices(pivot, source, warped, MARKS) == [None] * 5


def test_fusechat2_takes_the_first_ending() -> None:
    pivot, source = ["cat", "s", "banana", "kiwi"], [" cats", "b", "a", "nana", "x", "y"]
    warped = warp([0], [0], [1, 2, 3], [4, 5])
    # "banana" also ends in "a": the first ending is not the last piece.
    assert fusechat2_choices(pivot, source, warped, MARKS) == [None, {0: 1.0}, {2: 1.0}, None]
    assert fusechat2_choices(["cat", " cats"], [" cats", " cats"], warp([0], [1]), MARKS, hard=True) == [None, {1: 1.0}]


# ---- which pivot token ----


def test_same_spelling_goes_by_marks() -> None:
    assert same_spelling(["Ġa", "a", "b"], ["x", "a", "▁a"], MARKS).tolist() == [2, 1, -1]


def test_nearest_spelling_by_hand() -> None:
    pivot = ["longer", "cart", "▁cat", "cut", "ca"]
    # All but "longer" are two edits from "cats" and one from "cat": the first of them; nothing is near the z.
    assert nearest_spelling(["cats", "Ġcat", "cat", "zzzzzzzzz"], pivot, MARKS).tolist() == [1, 2, 1, 0]


tokens = st.lists(st.text("abc▁", max_size=6), min_size=1, max_size=8, unique=True)


@given(tokens, tokens)
def test_nearest_spelling_is_the_first_at_the_least_distance(source: list[str], pivot: list[str]) -> None:
    for token, id_ in zip(source, nearest_spelling(source, pivot, MARKS), strict=True):
        distances = [textbook_distance(token, other) for other in pivot]
        assert id_ == distances.index(min(distances))


def test_a_pairing_counts_once_per_pivot_position() -> None:
    pivot_ids, source_ids = np.array([3, 3, 1]), np.array([5, 5, 2])
    counts = count_warped(pivot_ids, source_ids, warp([0, 1], [1], [1, 2]), (6, 4)).toarray()
    assert counts[5, 3] == 2  # both positions of 3; the first met 5 twice
    assert counts[5, 1] == counts[2, 1] == 1
    assert counts.sum() == 4


def test_the_sigmoid_prefers_the_rarer_pairing() -> None:
    source, pivot = ["ab", "never", "eos", "Ġ"], ["<unk>", "b", "a", "</s>", "▁"]
    counts = sparse.csr_array(np.array([[0, 5, 1, 0, 0], [0] * 5, [0, 9, 0, 0, 0], [0, 1, 0, 0, 1]]))
    mapped = sigmoid_weighted(counts, source, pivot, MARKS, unseen=0, forced={2: 3})
    # "ab" is one tenth from "a" and from "b", times sigmoid(1) = 0.73 and sigmoid(5) = 0.99. A lone mark is the mark.
    assert mapped.tolist() == [2, 0, 3, 4]


# ---- the distributions ----


def test_mapped_rows_by_hand() -> None:
    pivot_of = np.array([10, 11, 10, -1])  # two source tokens fall on 10, one nowhere
    ids, logits = np.array([[0, 1, 2], [3, 1, 0]]), np.array([[4.0, 3.0, 2.0], [5.0, 1.0, -2.0]], dtype=np.float16)
    choices = [{0: 1.0}, {1: 1.0}, None, {0: 0.5, 1: 0.5}]
    rows = map_rows(choices, np.array([7, 7, 8, 7]), ids, logits, pivot_of)
    assert rows.offsets.tolist() == [0, 2, 4, 5, 7]
    assert rows.ids_C.tolist() == [10, 11, 11, 10, 8, 10, 11]
    assert rows.logits_C.tolist() == [4, 3, 1, -2, 1, 2, 1.5]  # merged: halves, the larger where they meet


def textbook_distance(a: str, b: str) -> int:
    """Levenshtein's recursion, row by row (Wagner and Fischer 1974)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]
