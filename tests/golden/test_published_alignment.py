"""The published alignments against the published code's own outputs, and `align_spans` on the same tokenizations.

../shared/checks/fusion holds real texts in the tokens of OpenChat-3.5 (pivot) and of Qwen1.5 or a GPT-NeoX-like
tokenizer (source), and what FuseLLM, FuseChat 1.0 ("v1") and FuseChat of August 2024 ("v2") made of them.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

from consilience.align import (
    SEQUENCE_ALIGNMENTS,
    VOCABULARY_MAPPINGS,
    Spelling,
    TokenText,
    Vocabularies,
    align_spans,
    exact_matches,
    likeliest_partner,
)
from consilience.align.published import (
    Choice,
    count_warped,
    fusechat1_choices,
    fusechat2_choices,
    fusellm_choices,
    map_rows,
    nearest_spelling,
    same_spelling,
    sigmoid_weighted,
)
from consilience.align.warping import WARPINGS, Marks, Warping
from consilience.chat.pieces import BYTE_PIECE, Style, piece_bytes

CHECKS = Path(__file__).parents[3] / "shared" / "checks" / "fusion"
pytestmark = pytest.mark.skipif(
    not (CHECKS / "reference").is_dir(), reason="no ../shared/checks/fusion beside the repo"
)

MARKS = Marks(pivot="▁", source="Ġ")
ALIGNMENT = {"fusellm": "fusellm", "v1": "fusechat1", "v2": "fusechat2"}
UNK, BOS, END_OF_TURN = 0, 1, 32_000  # of the pivot
END_OF_TEXT, IM_END = 151_643, 151_645  # of Qwen
CHATS = ("chat_long", "chat_mid_nopad", "chat_short_nopad")
PADDED_TO = 2048
CONTROL = re.compile(rb"[\x00-\x1f]")
TURN_END = b"\xff"  # no text: the token that ends a turn, whatever a tokenizer calls it


class Text(NamedTuple):
    """One text in both tokenizations: ids, raw and decoded tokens, and the source's top-k."""

    arrays: dict[str, np.ndarray]
    tokens: dict[str, list[str]]

    def spelled(self, implementation: str) -> tuple[list[str], list[str]]:
        """The pivot's and the source's tokens as an implementation reads them."""
        kind = "dec" if implementation == "v2" else "raw"
        return self.tokens[f"base_{kind}"], self.tokens[f"blend_{kind}"]


@cache
def text(name: str) -> Text:
    with np.load(CHECKS / "fixtures" / f"{name}.npz") as file:
        return Text(dict(file), _json(f"{name}.tokens.json.gz"))


@cache
def vocabulary(name: str) -> list[str]:
    tokens: list[str] = _json(f"vocab_{name}.json.gz")["tokens"]
    return tokens


@cache
def warping(implementation: str, name: str) -> Warping:
    return WARPINGS[ALIGNMENT[implementation]](*text(name).spelled(implementation), MARKS)


@cache
def counts(implementation: str) -> Any:
    """Pairings over the texts that the reference counted: every chat padded to 2048, and the short two also as is."""
    total = sparse.csr_array((len(vocabulary("qwen")), len(vocabulary("pivot"))), dtype=np.int64)
    for name in CHATS:
        ids, tokens = text(name).arrays, text(name).spelled(implementation)
        pivot_ids, pivot_tokens = _padded(ids["base_ids"], tokens[0], UNK, "<unk>")
        source_ids, source_tokens = _padded(ids["blend_ids"], tokens[1], END_OF_TEXT, "<|endoftext|>")
        warped = WARPINGS[ALIGNMENT[implementation]](pivot_tokens, source_tokens, MARKS)
        total = total + count_warped(pivot_ids, source_ids, warped, total.shape)
        if name != "chat_long":
            total = total + count_warped(ids["base_ids"], ids["blend_ids"], warping(implementation, name), total.shape)
    return total


@cache
def source_to_pivot(implementation: str) -> np.ndarray:
    """FuseChat's vocabulary map; its first version could only run with a bos, for which the check took the pad."""
    forced = {IM_END: END_OF_TURN} if implementation == "v2" else {END_OF_TEXT: BOS, IM_END: END_OF_TURN}
    return sigmoid_weighted(
        counts(implementation),
        vocabulary("qwen"),
        vocabulary("pivot"),
        MARKS,
        unseen=UNK,
        forced=forced,
        marks_if_nothing_else=implementation == "v2",
    )


@cache
def mined() -> dict[str, str]:
    """MinED for the source tokens that the reference lists, both in the pivot's marks."""
    listed = list(_reference_mined())
    nearest = nearest_spelling(listed, vocabulary("pivot"), MARKS)
    return {token: vocabulary("pivot")[id_] for token, id_ in zip(listed, nearest, strict=True)}


def references() -> Iterator[str]:
    for path in sorted((CHECKS / "reference").glob("*_*_*.npz")):
        if not path.stem.endswith("blending_to_base"):
            yield path.stem


@pytest.mark.parametrize("name", references())
def test_sequence_alignment_is_equal(name: str) -> None:
    implementation, _, text_name = name.split("_", 2)
    ours, theirs = warping(implementation, text_name), np.load(CHECKS / "reference" / f"{name}.npz")
    _assert_same(ours.offsets, theirs["map_off"])
    _assert_same(ours.source_V, theirs["map_val"])
    assert ours.cost == theirs["dtw_cost"]


@pytest.mark.parametrize("name", references())
def test_mapped_distributions_are_equal(name: str) -> None:
    implementation, mode, text_name = name.split("_", 2)
    arrays, theirs = text(text_name).arrays, np.load(CHECKS / "reference" / f"{name}.npz")
    own_ids = arrays["base_ids"]
    if implementation == "v2":
        own_ids = np.append(own_ids[1:], own_ids[-1])  # the one that fell back on the next token
    rows = map_rows(
        _choices(implementation, mode, text_name),
        own_ids,
        arrays["blend_topk_indices"],
        arrays["blend_topk_logits"],
        _pivot_ids(implementation, mode),
    )
    _assert_same(rows.offsets, theirs["al_off"])
    _assert_same(rows.ids_C, theirs["al_indices"])
    _assert_same(rows.logits_C, theirs["al_logits"])


@pytest.mark.parametrize("implementation", ["v1", "v2"])
def test_counts_are_equal(implementation: str) -> None:
    theirs = sparse.load_npz(CHECKS / "reference" / f"{implementation}_counts.npz")  # [pivot, source]
    ours = counts(implementation).T
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).nnz == 0


@pytest.mark.parametrize("implementation", ["v1", "v2"])
def test_sigmoid_weighted_vocabulary_is_equal(implementation: str) -> None:
    theirs = np.load(CHECKS / "reference" / f"{implementation}_blending_to_base.npz")["blending_to_base"]
    _assert_same(source_to_pivot(implementation), theirs)


def test_nearest_spellings_are_equal() -> None:
    assert mined() == _reference_mined()


def test_edit_distance_takes_the_nearest_spellings() -> None:
    """MinED as a mapping of bytes gives the published partners, but for what is spelled in bytes on one side."""
    listed, pivot_bytes = _reference_mined(), _bytes("pivot", Style.SENTENCEPIECE)
    source_bytes = [piece_bytes(token, Style.SENTENCEPIECE) for token in listed]
    counted = sparse.csr_array((len(listed), len(pivot_bytes)), dtype=np.int64)
    partner = _partners("edit_distance", source_bytes, pivot_bytes, counted)
    ours = {token: vocabulary("pivot")[id_] for token, id_ in zip(listed, partner, strict=True)}
    # '<0x26>' looks like '2026' to the published code; it is one character, '&', that is nothing like it.
    spelled_in_bytes = {token for token, theirs in listed.items() if BYTE_PIECE.fullmatch(theirs)} | {"Ċ"}
    assert {token for token in listed if ours[token] != listed[token]} <= spelled_in_bytes
    assert len(spelled_in_bytes) == 7
    assert len(listed) == 2881


def test_fusechat2_takes_the_sigmoid_weighted_partners() -> None:
    """The mapping of bytes, on the published counts, gives the published partners but for two kinds of source tokens.

    Where the vocabularies' own strings are bytes on one side and a character on the other ('Ċ' and '<0x0A>', 'Ã©' and
    'é') the published distances are between those strings. What was never counted is on `<unk>` there.
    """
    source_bytes, pivot_bytes = _bytes("qwen", Style.BYTE_LEVEL), _bytes("pivot", Style.SENTENCEPIECE)
    ours, theirs = _partners("fusechat2", source_bytes, pivot_bytes, counts("v2")), _pivot_ids("v2", "ms")
    text = np.array([piece is not None for piece in source_bytes])
    plain = np.array([piece is not None and piece.isascii() and not CONTROL.search(piece) for piece in source_bytes])
    counted = np.diff(counts("v2").tocsr().indptr) > 0
    assert (plain & counted).sum() > 1000
    _assert_same(ours[plain & counted], theirs[plain & counted].astype(ours.dtype))
    assert (ours[text & counted] != theirs[text & counted]).sum() == 12  # of 1,095: line feeds, tabs, é, 中, two emoji
    never = plain & ~counted & (ours < 0)
    assert (theirs[never] == UNK).all()
    assert never.sum() > 60_000


@pytest.mark.parametrize(
    ("name", "matchable_percent"),
    [("chat_long", 86.4), ("chat_mid_nopad", 85.2), ("chat_short_nopad", 83.7), ("lm_long", 83.7)],
)
def test_spans_match_all_that_can_be_matched_and_nothing_else(name: str, matchable_percent: float) -> None:
    """The share of fusion.md, section 8, column "matchable".

    There a row is known by the token *at* it, and two rows match when those tokens END at the same byte. Here a
    position is known by the token that it predicts, and two match when those BEGIN at the same byte: the same thing
    shifted by one, so that only the first and the last token of a text can make a difference.
    """
    tokens = text(name).tokens
    pivot = _pieces(tokens["base_raw"], Style.SENTENCEPIECE)
    source = _pieces(tokens["blend_raw"], Style.BYTE_LEVEL)
    alignment = align_spans(*_spans(pivot), *_spans(source))
    assert 100 * alignment.matched_P.mean() == pytest.approx(matchable_percent, abs=0.05)
    for position in np.flatnonzero(alignment.matched_P):
        assert b"".join(pivot[:position]) == b"".join(source[: alignment.source_P[position]])


@pytest.mark.parametrize(
    ("method", "name", "correct_percent", "wrong_percent"),
    [
        ("fusellm", "lm_long", 63.2, 0.0),
        ("fusechat2", "chat_long", 82.7, 0.4),
        ("fusechat2", "chat_mid_nopad", 80.1, 0.6),
        ("fusechat2", "chat_short_nopad", 76.4, 6.5),
    ],
)
def test_sequence_alignments_are_as_right_as_the_published(
    method: str, name: str, correct_percent: float, wrong_percent: float
) -> None:
    """The shares of fusion.md, section 8, of positions that the published code aligned rightly and wrongly.

    A text counts as one reply here. Which token of a row is looked at (see above) can move one position of it.
    """
    tokens = text(name).tokens
    sides = []
    for side, style, mark in (("base", Style.SENTENCEPIECE, MARKS.pivot), ("blend", Style.BYTE_LEVEL, MARKS.source)):
        starts, ends = _spans(_pieces(tokens[f"{side}_raw"], style))
        spelling = Spelling(tokens[f"{side}_raw"], tokens[f"{side}_dec"], mark)
        sides.append(TokenText(starts, ends, np.arange(len(starts)), spelling))
    found, exact = SEQUENCE_ALIGNMENTS[method](*sides).source_P, SEQUENCE_ALIGNMENTS["spans"](*sides).source_P
    one_position = 100 / len(found) + 0.05  # and the rounding of the table
    assert 100 * ((found >= 0) & (found == exact)).mean() == pytest.approx(correct_percent, abs=one_position)
    assert 100 * ((found >= 0) & (found != exact)).mean() == pytest.approx(wrong_percent, abs=one_position)


def _bytes(name: str, style: Style) -> list[bytes | None]:
    special = {"<unk>", "<s>", "</s>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|end_of_turn|>", "<|pad_0|>"}
    return [None if token in special else piece_bytes(token, style) for token in vocabulary(name)]


def _partners(mapping: str, source: list[bytes | None], pivot: list[bytes | None], counted: Any) -> np.ndarray:
    known = Vocabularies(counted, exact_matches(source, pivot), source, pivot)
    return likeliest_partner(VOCABULARY_MAPPINGS[mapping](known))


def _choices(implementation: str, mode: str, name: str) -> list[Choice]:
    tokens, warped = text(name).spelled(implementation), warping(implementation, name)
    if implementation == "fusellm":
        return fusellm_choices(*tokens, warped, MARKS, mined() if mode == "soft" else None)
    if implementation == "v2":
        return fusechat2_choices(*tokens, warped, MARKS, hard=mode == "hard")
    if mode == "nomatrix":
        return fusechat1_choices(*tokens, warped, MARKS)
    pivot_ids, source_ids = text(name).arrays["base_ids"], text(name).arrays["blend_ids"]
    table = counts("v1")
    return fusechat1_choices(*tokens, warped, MARKS, lambda p, s: table[source_ids[s], pivot_ids[p]])


@cache
def _pivot_ids(implementation: str, mode: str) -> np.ndarray:
    """Which pivot token each source token's logit goes to."""
    source = vocabulary("neox50k" if implementation == "fusellm" else "qwen")
    exact = same_spelling(source, vocabulary("pivot"), MARKS)
    if mode == "hard":
        return exact
    if mode == "soft":
        id_of = {token: id_ for id_, token in enumerate(vocabulary("pivot"))}
        listed = mined()
        return np.array([id_of[listed[token]] if token in listed else -1 for token in MARKS.as_pivot(source)])
    return np.where(exact >= 0, exact, source_to_pivot(implementation))


def _pieces(tokens: list[str], style: Style) -> list[bytes]:
    """The bytes of every token of a text, without the blanks that sentencepiece puts before each turn."""
    pieces: list[bytes] = []
    begins = True
    for token in tokens:
        closes = token in ("<|end_of_turn|>", "<|im_end|>")
        piece = b"" if token == "<s>" else TURN_END if closes else piece_bytes(token, style)
        pieces.append(piece.removeprefix(b" ") if begins and style is Style.SENTENCEPIECE else piece)
        begins = closes or (begins and not piece)
    return pieces


def _spans(pieces: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([len(piece) for piece in pieces])
    return np.append(0, ends[:-1]), ends


def _padded(ids: np.ndarray, tokens: list[str], pad_id: int, pad: str) -> tuple[np.ndarray, list[str]]:
    missing = PADDED_TO - len(ids)
    return np.append(ids, np.full(missing, pad_id, dtype=ids.dtype)), [*tokens, *[pad] * missing]


def _reference_mined() -> dict[str, str]:
    found: dict[str, str] = json.loads((CHECKS / "reference" / "fusellm_mined_subset.json").read_text())
    return found


def _json(name: str) -> Any:
    return json.loads(gzip.decompress((CHECKS / "fixtures" / name).read_bytes()))


def _assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours, theirs, strict=True)
