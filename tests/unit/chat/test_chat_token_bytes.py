"""The bytes of every token, against the vocabulary files the tokenizers were made from."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from chat_tokenizers import package_file
from tokenizers import pre_tokenizers

from consilience.chat import token_bytes
from consilience.chat.pieces import BYTE_OF, Style, style_of


def test_the_byte_alphabet_is_the_one_of_tokenizers() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in (*map(chr, range(128)), "é", "漢", "👋"):
        written = level.pre_tokenize_str(character)[0][0]
        assert bytes(BYTE_OF[sign] for sign in written) == character.encode()


def test_every_token_of_qwen(tokenizers: Any) -> None:
    tokenizer = tokenizers("qwen")
    lines = package_file("dashscope", "resources/qwen.tiktoken").read_text().splitlines()
    expected: list[bytes | None] = [base64.b64decode(line.split()[0]) for line in lines]
    assert token_bytes(tokenizer) == expected + [None] * 3  # <|endoftext|>, <|im_start|>, <|im_end|>


def test_every_token_of_tekken(tokenizers: Any) -> None:
    file = json.loads(package_file("mistral_common", "data/tekken_240911.json").read_text(encoding="utf-8"))
    special, size = file["config"]["default_num_special_tokens"], file["config"]["default_vocab_size"]
    ranked = [base64.b64decode(entry["token_bytes"]) for entry in file["vocab"][: size - special]]
    assert token_bytes(tokenizers("mistral_tekken")) == [None] * special + ranked


@pytest.mark.parametrize("name", ["mistral_spm", "slow_spm", "prepend_spm"])
def test_every_token_of_a_sentencepiece_model(tokenizers: Any, name: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(str(package_file("mistral_common", "data/tokenizer.model.v1")))
    for id, stands_for in enumerate(token_bytes(tokenizers(name))):
        if model.is_control(id) or model.is_unknown(id):
            assert stands_for is None
        elif model.is_byte(id):
            assert stands_for == bytes([id - 3])  # this model's bytes follow <unk>, <s>, </s>
        else:
            # Decoding drops a blank at the very start, so the token is put after another one.
            assert stands_for == model.decode([model.piece_to_id("▁a"), id]).encode()[1:]


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("qwen", Style.BYTE_LEVEL),
        ("mistral_tekken", Style.BYTE_LEVEL),
        ("byte_level_nfkc", Style.BYTE_LEVEL),
        ("slow_bytes", Style.BYTE_LEVEL),
        ("mistral_spm", Style.SENTENCEPIECE),
        ("prepend_spm", Style.SENTENCEPIECE),
        ("unigram", Style.SENTENCEPIECE),
        ("slow_spm", Style.SENTENCEPIECE),
        ("wordpiece_lowercase", Style.WORDPIECE),
        ("characters", Style.TEXT),
    ],
)
def test_the_style_comes_from_the_pipeline(tokenizers: Any, name: str, style: Style) -> None:
    assert style_of(tokenizers(name)) is style


def test_words_and_continuations_of_wordpiece(tokenizers: Any) -> None:
    tokenizer = tokenizers("wordpiece_lowercase")
    stands_for = token_bytes(tokenizer)
    assert stands_for[tokenizer.convert_tokens_to_ids("hello")] == b" hello"
    assert stands_for[tokenizer.convert_tokens_to_ids("##o")] == b"o"


def test_added_tokens_are_their_text_and_unused_ids_are_none() -> None:
    from chat_tokenizers import SPECIALS, fast
    from tokenizers import AddedToken, Tokenizer, decoders, models

    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 99}, merges=[]))  # nothing has most ids between
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIALS)
    backend.add_tokens([AddedToken("<think>é", normalized=False)])
    tokenizer = fast(backend)
    stands_for = token_bytes(tokenizer)
    assert stands_for[0] == b"a"
    assert stands_for[99] == b"b"
    assert stands_for[tokenizer.convert_tokens_to_ids("<think>é")] == "<think>é".encode()
    assert [text for text in stands_for if text is not None] == [b"a", "<think>é".encode(), b"b"]
    assert len(stands_for) == 100
