"""Replies read by small tokenizers of every kind and aligned: from the text to the matched positions."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from consilience.align import Alignment, align_spans, text_keys
from consilience.chat import Rendered, render, token_bytes
from consilience.records import Message

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Hello world, hello there!",
    "naïve café, 漢字, привет 👋🏽 … ﬁne ½ km",
    "  two blanks,\n\nnew lines\tand tabs ",
] * 4
CONTROL = ["<unk>", "<s>", "</s>", "<|end|>"]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def byte_level_of(backend: Tokenizer) -> Tokenizer:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def byte_level(size: int = 330) -> Tokenizer:
    backend = byte_level_of(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=CONTROL, initial_alphabet=ALPHABET, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def bytes_alone() -> Tokenizer:
    return byte_level(size=0)


def byte_level_of_random_merges(seed: int) -> Tokenizer:
    """Any merges will do, also of halves of characters with blanks."""
    rng = np.random.default_rng(seed)
    pieces, merges = sorted(ALPHABET), []
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    written = "".join(piece for line in CORPUS for piece, _ in level.pre_tokenize_str(line))
    for _ in range(60):
        at = rng.integers(len(written) - 1)
        one, other = ([piece for piece in pieces if written.startswith(piece, start)] for start in (at, at + 1))
        pair = str(rng.choice(one)), str(rng.choice(other))
        if "".join(pair) not in pieces:
            merges.append(pair)
            pieces.append("".join(pair))
    backend = byte_level_of(Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens(CONTROL)
    return backend


def byte_level_nfkc() -> Tokenizer:
    backend = byte_level()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return backend


def byte_level_nfkc_trimmed() -> Tokenizer:
    """Offsets leave out the blanks that tokens begin with, as GPT-2's do."""
    backend = byte_level_nfkc()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    return backend


def sentencepiece(*, dummy_prefix: bool = True) -> Tokenizer:
    """Llama's: bytes for what has no piece; the blank before a text comes from a normalizer."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    blank = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank]) if dummy_prefix else blank
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    learnt = Tokenizer(models.BPE())
    learnt.normalizer, learnt.pre_tokenizer = blank, pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(vocab_size=90, limit_alphabet=30, show_progress=False)
    learnt.train_from_iterator(CORPUS, trainer)
    state = json.loads(learnt.to_str())["model"]
    names = [*CONTROL, *pieces, *sorted(state["vocab"], key=state["vocab"].get)]
    merges = [tuple(merge) for merge in state["merges"]]
    vocab = {name: i for i, name in enumerate(names)}
    backend.model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    backend.add_special_tokens(CONTROL)
    return backend


def sentencepiece_without_prefix() -> Tokenizer:
    return sentencepiece(dummy_prefix=False)


def unigram_nfkc() -> Tokenizer:
    """T5's: full normalization, runs of blanks shrink, unknown characters."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=CONTROL, unk_token="<unk>", show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


def wordpiece() -> Tokenizer:
    """BERT's: '##' goes on with a word, accents and case are dropped, blanks are nowhere."""
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=CONTROL, show_progress=False)
    backend.train_from_iterator(CORPUS, trainer)
    return backend


EXACT: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "bytes_alone": bytes_alone,
    **{f"random_merges_{seed}": lambda seed=seed: byte_level_of_random_merges(seed) for seed in range(3)},
    "sentencepiece": sentencepiece,
    "sentencepiece_without_prefix": sentencepiece_without_prefix,
}
NORMALISING = {
    "byte_level_nfkc": byte_level_nfkc,
    "byte_level_nfkc_trimmed": byte_level_nfkc_trimmed,
    "unigram_nfkc": unigram_nfkc,
    "wordpiece": wordpiece,
}


@cache
def tokenizer(name: str) -> Any:
    backend = (EXACT | NORMALISING)[name]()
    closing = "<|end|>" if name == "byte_level" else "</s>"  # models call it differently
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token=closing, unk_token="<unk>")


texts_of = cache(lambda name: token_bytes(tokenizer(name)))
names = st.sampled_from(sorted(EXACT | NORMALISING))
examples = settings(deadline=None, max_examples=150)
# Letters, blanks, marks of vocabularies, characters of two to four bytes, what normalizers rewrite, joined emoji.
CHARACTERS = "aHello the fox \n\t▁Ġ##<0xE2>é漢ﬁ½…ÉİѢ\u0301\u200b\u00a0👋🏽👩\u200d🚀"
# An accent on a ligature ends up on its last letter, where the library's offsets still show two characters.
ON_LIGATURES = re.compile("(?<=[ﬁ½…İ])\u0301+")
contents_of = st.text(st.sampled_from(CHARACTERS), max_size=25).map(lambda text: ON_LIGATURES.sub("", text))
replies = st.lists(contents_of, min_size=1, max_size=3)


def read(name: str, contents: list[str]) -> Rendered:
    messages = [Message(role, text) for content in contents for role, text in (("user", "u"), ("assistant", content))]
    return render(tokenizer(name), messages, chat_template=TEMPLATE)


def side(name: str, contents: list[str]) -> tuple[Rendered, np.ndarray, np.ndarray, np.ndarray]:
    """A rendering, and of its reply positions the places and the spans."""
    one = read(name, contents)
    at = one.reply_positions
    keys = [text_keys(np.zeros(len(at)), one.reply_T[at], ends[at]) for ends in (one.reply_starts_T, one.reply_ends_T)]
    return one, at, *keys


def aligned(pivot: str, source: str, contents: list[str]) -> tuple[Alignment, Any, Any]:
    ours, theirs = side(pivot, contents), side(source, contents)
    return align_spans(*ours[2:], *theirs[2:]), ours, theirs


@examples
@given(pivot=names, source=names, contents=replies)
def test_every_byte_of_the_replies_is_covered_once_by_the_chunks_of_both_sides(
    pivot: str, source: str, contents: list[str]
) -> None:
    alignment, ours, theirs = aligned(pivot, source, contents)
    wanted = [key for reply, content in enumerate(contents) for key in keys_of(reply, len(content.encode()) + 1)]
    for (_, _, starts, ends), chunk_N in ((ours, alignment.chunk_P), (theirs, alignment.chunk_S)):
        inside = chunk_N >= 0
        covered = [key for start, end in zip(starts[inside], ends[inside]) for key in range(start, end)]
        assert covered == wanted  # both have all of the text: the template does not touch it
    for chunk in np.unique(alignment.chunk_P[alignment.chunk_P >= 0]):
        of_pivot, of_source = alignment.chunk_P == chunk, alignment.chunk_S == chunk
        assert ours[2][of_pivot].min() == theirs[2][of_source].min()
        assert ours[3][of_pivot].max() == theirs[3][of_source].max()


def keys_of(reply: int, length: int) -> range:
    first = int(text_keys(np.array([0]), np.array([reply]), np.array([0]))[0])
    return range(first, first + length)


@examples
@given(pivot=names, source=names, contents=replies)
def test_matched_positions_have_read_the_same_text(pivot: str, source: str, contents: list[str]) -> None:
    """What a side's tokens before the position spell is the reply up to that byte, as that side normalises it."""
    alignment, ours, theirs = aligned(pivot, source, contents)
    for position in np.flatnonzero(alignment.matched_P):
        partner = alignment.source_P[position]
        assert ours[2][position] == theirs[2][partner]
        assert_spelled(pivot, ours, position, contents)
        assert_spelled(source, theirs, partner, contents)


def assert_spelled(name: str, one: Any, position: int, contents: list[str]) -> None:
    rendered, at, _, _ = one
    reply, start = rendered.reply_T[at[position]], rendered.reply_starts_T[at[position]]
    content = contents[reply].encode()[:start]
    if name.startswith("sentencepiece"):
        content = content.replace("▁".encode(), b" ")  # it reads its own mark as a blank
    before = [at[other] for other in range(position) if rendered.reply_T[at[other]] == reply]
    pieces = [texts_of(name)[rendered.ids_T[place]] for place in before]
    if name in EXACT:
        # A blank that belongs to the template and one that a dummy prefix adds are in front of the reply.
        assert b"".join(piece or b"" for piece in pieces).removeprefix(b" ").endswith(content.removeprefix(b" "))
        assert len(b"".join(piece or b"" for piece in pieces)) - len(content) in (0, 1)
    elif name == "byte_level_nfkc_trimmed" and "\u00a0" in contents[reply]:
        pass  # rewritten to a blank and then trimmed: no offset is left that tells where it was
    elif name.startswith("byte_level_nfkc") and start <= len(contents[reply].encode()):
        whole = content.decode(errors="ignore").encode()  # what is left over is the beginning of a character
        expected = unicodedata.normalize("NFKC", whole.decode()).lower().encode() + content[len(whole) :]
        assert b"".join(piece or b"" for piece in pieces).removeprefix(b" ") == expected.removeprefix(b" ")


@examples
@given(name=names, contents=replies)
def test_a_reading_aligned_with_itself_is_the_identity(name: str, contents: list[str]) -> None:
    alignment, (_, _, starts, ends), _ = aligned(name, name, contents)
    expected = np.where(ends > starts, np.arange(len(starts)), -1)
    assert alignment.source_P.tolist() == expected.tolist()
    assert (alignment.one_to_one_P == (ends > starts)).all()


@pytest.mark.parametrize("source", sorted(EXACT | NORMALISING))
@pytest.mark.parametrize("pivot", sorted(EXACT | NORMALISING))
def test_the_tokens_that_close_the_replies_meet(pivot: str, source: str) -> None:
    contents = ["Hello there", "", "ﬁne 漢 👋🏽"]
    alignment, (ours, at, starts, ends), (theirs, places, *_) = aligned(pivot, source, contents)
    closing = [keys_of(reply, len(content.encode()) + 1)[-1] for reply, content in enumerate(contents)]
    of_pivot = [int(np.flatnonzero((starts == key) & (ends > starts))[0]) for key in closing]
    partners = alignment.source_P[of_pivot]
    assert ours.ids_T[at[of_pivot]].tolist() == [tokenizer(pivot).eos_token_id] * 3
    assert theirs.ids_T[places[partners]].tolist() == [tokenizer(source).eos_token_id] * 3
    assert alignment.one_to_one_P[of_pivot].all()


@pytest.mark.parametrize(
    ("content", "written", "expected_spans", "partners"),
    [
        # 'ﬁ' (3 bytes) becomes 'f', 'i': the first of them stands for all of it, and where the second one begins
        # nothing of the other side does.
        ("ﬁx", ["f", "i", "x"], [(0, 3), (3, 3), (3, 4)], [0, -1, -1, 2]),
        # '½' (2 bytes) becomes '1', '⁄' (3 bytes), '2'.
        ("½", ["1", "â", "ģ", "Ħ", "2"], [(0, 2), *[(2, 2)] * 4], [0, -1]),
        # 'e' and an accent (1 + 2 bytes) become 'é' (2 bytes, one token each).
        ("ze\u0301z", ["z", "Ã", "©", "z"], [(0, 1), (1, 4), (4, 4), (4, 5)], [0, 1, -1, -1, 3]),
        # 'É' becomes 'é' in as many bytes, which are others.
        ("É", ["Ã", "©"], [(0, 2), (2, 2)], [0, -1]),
        # What stays as it is may be cut anywhere, also between the bytes of a character.
        ("漢", ["æ", "¼", "¢"], [(0, 1), (1, 2), (2, 3)], [0, 1, 2]),
    ],
)
def test_rewritten_characters_are_matched_where_they_begin_and_nowhere_inside(
    content: str, written: list[str], expected_spans: list[tuple[int, int]], partners: list[int]
) -> None:
    backend = bytes_alone()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    normalising = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    chat = [Message("user", "u"), Message("assistant", content)]
    ours, theirs = (render(one, chat, chat_template=template) for one in (tokenizer("bytes_alone"), normalising))
    at = theirs.reply_positions[:-1]  # all but the closing one
    assert normalising.convert_ids_to_tokens(theirs.ids_T[at].tolist()) == written
    found = [*zip(theirs.reply_starts_T[at].tolist(), theirs.reply_ends_T[at].tolist())]
    assert found == expected_spans
    mine = ours.reply_positions
    alignment = align_spans(
        *(side.astype(np.int64)[mine] for side in (ours.reply_starts_T, ours.reply_ends_T)),
        *(side.astype(np.int64)[theirs.reply_positions] for side in (theirs.reply_starts_T, theirs.reply_ends_T)),
    )
    assert alignment.source_P.tolist() == [*partners, len(written)]  # the closing ones meet
