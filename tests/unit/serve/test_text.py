"""Text that is final: nothing is taken back, no half characters, nothing of a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from consilience.serve.text import Stops, TextStream


@pytest.fixture(scope="module", params=["pivot", "wren", "finch"])
def tokenizer(request: pytest.FixtureRequest, world: Path) -> Any:
    return AutoTokenizer.from_pretrained(world / request.param)


@pytest.fixture(scope="module")
def wren(world: Path) -> Any:
    return AutoTokenizer.from_pretrained(world / "wren")  # byte-level


def streamed(tokenizer: Any, ids: list[int], context: list[int] | None = None) -> list[str]:
    stream = TextStream(tokenizer, context or ())
    return [*(stream.push([id_]) for id_ in ids), stream.finish()]


@pytest.mark.parametrize(
    "text", ["The river carries cold water.", "naïve café 你好, 🧑‍🚀 und ¼ ½\n\tдом ", "", " two  blanks ", "é"]
)
def test_pieces_join_to_the_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    if tokenizer.name_or_path.endswith(("wren", "finch")):  # byte-level: no unknown tokens
        assert "".join(pieces) == text
        assert not any("�" in piece for piece in pieces)


def test_a_completion_keeps_the_blank_of_its_first_token(world: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(world / "pivot")  # its decoder drops the first blank of a text
    ids = tokenizer("The river carries cold water", add_special_tokens=False)["input_ids"]
    begin = next(i for i in range(2, len(ids)) if tokenizer.convert_ids_to_tokens(ids[i]).startswith("▁"))
    whole = tokenizer.decode(ids)
    rest = "".join(streamed(tokenizer, ids[begin:], ids[:begin]))
    assert rest.startswith(" ")
    assert tokenizer.decode(ids[:begin]) + rest == whole


def test_half_characters_are_held_back_and_at_the_end_given_out(wren: Any) -> None:
    ids = wren("🧑", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4
    assert streamed(wren, ids) == ["", "", "", "🧑", ""]
    assert streamed(wren, ids[:2]) == ["", "", "�"]


def test_bytes_that_are_no_character_do_not_hold_the_rest_up(wren: Any) -> None:
    half = wren("é", add_special_tokens=False)["input_ids"][:1]
    pieces = streamed(wren, half * 100)
    assert "".join(pieces) == "�" * 100 == wren.decode(half * 100)
    assert all(len("".join(pieces[:n])) >= n - 3 for n in range(100))  # three bytes may yet become a character


@given(ids=st.lists(st.integers(0, 339), max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_tokens_give_the_text_of_the_decoder(wren: Any, ids: list[int]) -> None:
    assert "".join(streamed(wren, ids)) == wren.decode(ids, skip_special_tokens=True)


def pushed(stops: Stops, pieces: list[str]) -> list[str]:
    found = [stops.push(piece) for piece in pieces]
    return [*found, "" if stops.found else stops.finish()]


def test_a_stop_across_pieces() -> None:
    stops = Stops(["###", "\n\n"])
    assert pushed(stops, ["one #", "#", "two\n", "\n#", "never"]) == ["one ", "", "##two", "", "", ""]
    assert stops.found


def test_the_beginning_of_a_stop_is_given_out_when_none_comes() -> None:
    assert pushed(Stops(["###"]), ["a #", "#"]) == ["a ", "", "##"]


def test_the_stop_itself_may_be_kept() -> None:
    assert pushed(Stops(["b"], keep=True), ["abc"]) == ["ab", ""]


@given(st.lists(st.text("ab", max_size=4), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stops_cut_where_the_first_one_is_complete(pieces: list[str], words: list[str]) -> None:
    whole = "".join(pieces)
    ends = ((end, word) for end in range(len(whole) + 1) for word in words if whole[:end].endswith(word))
    first, _ = next(ends, (None, ""))  # the stop that is complete first, and of those that end there the longest
    longest = max((len(word) for word in words if first and whole[:first].endswith(word)), default=0)
    shown = pushed(Stops(words), pieces)
    assert "".join(shown) == (whole if first is None else whole[: first - longest])
