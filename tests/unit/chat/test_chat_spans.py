"""What must hold for every tokenizer and every conversation."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.chat import render, token_bytes
from consilience.records import Message

TEMPLATE = """{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}{{ eos_token }}
{% endfor %}"""
# Letters, blanks, marks that vocabularies use themselves, characters of two to four bytes, ligatures and fractions
# that normalizers rewrite, combining accents, joined emoji.
CHARACTERS = "aHello  \n\t▁Ġ<0xE2>é漢字ﬁ½İ\u0301\u200b\u00a0👋🏽👩\u200d🚀ñ#"
contents = st.text(st.sampled_from(CHARACTERS), max_size=25)
chats = st.lists(contents, min_size=2, max_size=5).map(
    lambda texts: [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
)
examples = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
# Those whose vocabulary says exactly which bytes a token is, with no normalizer in between.
EXACT = ("mistral_tekken", "byte_level", "byte_level_trimmed", "slow_bytes")


@examples
@given(messages=chats)
def test_spans_and_replies(tokenizer: Any, messages: list[Message]) -> None:
    read = render(tokenizer, messages, chat_template=TEMPLATE)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    theirs = tokenizer.apply_chat_template(turns, chat_template=TEMPLATE, tokenize=True, return_dict=False)
    assert read.ids_T.tolist() == list(theirs)

    text = read.text.encode()
    assert read.starts_T[0] == 0
    assert read.ends_T[-1] == len(text)
    assert (read.starts_T[1:] == read.ends_T[:-1]).all()
    assert (read.starts_T <= read.ends_T).all()

    replies = [message.content.encode() for message in messages if message.role == "assistant"]
    for reply, content in enumerate(replies):
        mine = read.reply_T == reply
        starts, ends = read.reply_starts_T[mine], read.reply_ends_T[mine]
        assert b"".join(content[start:end] for start, end in zip(starts, ends)) == content
        assert (starts[1:] == ends[:-1]).all()
        assert ends[-1] == len(content) + 1
        # Inside the content, bytes of the reply and bytes of the text are the same bytes.
        for start, end, reply_start, reply_end in zip(read.starts_T[mine], read.ends_T[mine], starts, ends):
            if reply_start > 0 and reply_end <= len(content):
                assert text[start:end] == content[reply_start:reply_end]
    outside = read.reply_T < 0
    assert not read.reply_starts_T[outside].any()
    assert not read.reply_ends_T[outside].any()


@examples
@given(messages=chats, spoofs=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 25)), min_size=1, max_size=4))
def test_spoofed_control_tokens(tokenizer: Any, messages: list[Message], spoofs: list[tuple[int, int]]) -> None:
    """Wherever a control token's text is put into contents, only those of the template are control tokens."""
    contents = [message.content for message in messages]
    for i, at in spoofs:
        i %= len(contents)
        contents[i] = contents[i][:at] + tokenizer.eos_token + contents[i][at:]
    spoofed = [Message(message.role, content) for message, content in zip(messages, contents)]
    read = render(tokenizer, spoofed, chat_template=TEMPLATE)
    assert (read.ids_T == tokenizer.eos_token_id).sum() == len(messages)
    assert read.ends_T[-1] == len(read.text.encode())
    assert (read.starts_T[1:] == read.ends_T[:-1]).all()
    assert (read.starts_T <= read.ends_T).all()
    for reply, content in enumerate(message.content.encode() for message in spoofed if message.role == "assistant"):
        spans = zip(read.reply_starts_T[read.reply_T == reply], read.reply_ends_T[read.reply_T == reply])
        assert b"".join(content[start:end] for start, end in spans) == content


vocabulary = cache(token_bytes)


@pytest.mark.parametrize("name", EXACT)
@examples
@given(messages=chats)
def test_a_byte_level_token_covers_the_bytes_it_stands_for(tokenizers: Any, name: str, messages: list[Message]) -> None:
    tokenizer = tokenizers(name)
    stands_for = vocabulary(tokenizer)
    read = render(tokenizer, messages, chat_template=TEMPLATE)
    text = read.text.encode()
    for id, start, end in zip(read.ids_T.tolist(), read.starts_T, read.ends_T):
        assert stands_for[id] is None or stands_for[id] == text[start:end]


@examples
@given(messages=chats)
def test_sentencepiece_tokens_cover_what_the_library_says(tokenizers: Any, messages: list[Message]) -> None:
    """Each span decodes, in sentencepiece's own hands, from that token alone; blanks at its edge aside."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from chat_tokenizers import package_file

    model = sentencepiece.SentencePieceProcessor(str(package_file("mistral_common", "data/tokenizer.model.v1")))
    tokenizer = tokenizers("mistral_spm")
    read = render(tokenizer, messages, chat_template=TEMPLATE)
    text = read.text.encode()
    for id, start, end in zip(read.ids_T.tolist(), read.starts_T, read.ends_T):
        if not model.is_control(id) and not model.is_byte(id):
            blanks_and_marks = text[start:end].decode().replace(" ", "▁")
            assert blanks_and_marks.removeprefix("▁") == model.id_to_piece(id).removeprefix("▁")
        elif model.is_byte(id):
            assert end - start == 1
            assert model.id_to_piece(id) == f"<0x{text[start]:02X}>"


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        # 👋 is F0 9F 91 8B, and 🏽 is F0 9F 8F BD.
        ("mistral_tekken", [1, 1, 1, 1, 1, 1, 1, 1]),
        ("mistral_spm", [1, 1, 1, 1, 4]),
        ("qwen", [4, 4]),
        ("byte_level", [2, 1, 1, 2, 1, 1]),
        ("slow_bytes", [1] * 8),
        ("slow_spm", [1, 1, 1, 1, 4]),
        ("characters", [4, 4]),
    ],
)
def test_an_emoji_split_over_tokens(tokenizers: Any, name: str, pieces: list[int]) -> None:
    template = "{{ messages[0].content }}:{{ messages[1].content }}"
    read = render(tokenizers(name), [Message("user", "u"), Message("assistant", "👋🏽")], chat_template=template)
    assert (read.reply_ends_T - read.reply_starts_T)[read.reply_T == 0].tolist() == pieces


def test_a_dummy_prefix_covers_nothing(tokenizers: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    chat = [Message("user", "u"), Message("assistant", "漢")]
    read = render(tokenizers("prepend_spm"), chat, chat_template=template)
    pieces = tokenizers("prepend_spm").convert_ids_to_tokens(read.ids_T.tolist())
    assert pieces == ["▁u", "</s>", "▁", "<0xE6>", "<0xBC>", "<0xA2>", "</s>"]
    assert read.starts_T.tolist() == [0, 1, 5, 5, 6, 7, 8]
    assert read.ends_T.tolist() == [1, 5, 5, 6, 7, 8, 12]
    assert read.reply_T.tolist() == [-1, -1, 0, 0, 0, 0, 0]  # the prompt does not contain it, so the model writes it
    assert read.reply_ends_T.tolist() == [0, 0, 0, 1, 2, 3, 4]


def test_blanks_that_no_token_covers_go_to_the_token_after_them(tokenizers: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    chat = [Message("user", "hello"), Message("assistant", "Hello  THERE")]
    read = render(tokenizers("wordpiece_lowercase"), chat, chat_template=template)
    mine = read.reply_T == 0
    assert tokenizers("wordpiece_lowercase").convert_ids_to_tokens(read.ids_T[mine].tolist()) == [
        "hello",
        "there",
        "</s>",
    ]
    assert read.reply_starts_T[mine].tolist() == [0, 5, 12]
    assert read.reply_ends_T[mine].tolist() == [5, 12, 13]


def test_torch_is_not_imported() -> None:
    code = "import sys, consilience.chat; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
