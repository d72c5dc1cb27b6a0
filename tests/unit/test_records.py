from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilience.errors import DataError
from consilience.records import (
    ROLES,
    Conversation,
    Judgment,
    Message,
    VerdictState,
    conversation_of,
    read_conversations,
    read_judgments,
    row_of,
    row_of_judgment,
    write_jsonl,
    write_parquet,
)

ROW = {
    "id": "a",
    "group": "maths",
    "messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}],
}
CHAT = Conversation("a", (Message("user", "1 + 1?"), Message("assistant", "2")), "maths")
SHARE_GPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Bye"},
        {"from": "chatgpt", "value": "Bye!"},
    ]
}


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as refused:
        read_conversations(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["c.jsonl", "c.ndjson", "c.jsonl.gz", "c.json", "c.json.gz", "c.parquet"])
def test_every_format_holds_the_same_chats(tmp_path, name):
    path = tmp_path / name
    text = (
        json.dumps([ROW, ROW | {"id": "b"}]) if ".json" in name and "l" not in name else lines(ROW, ROW | {"id": "b"})
    )
    if name.endswith(".parquet"):
        write_parquet(path, [ROW, ROW | {"id": "b"}])
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    assert read_conversations(path) == [CHAT, Conversation("b", CHAT.messages, "maths")]


def test_sharegpt_s_names_become_roles(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(lines(SHARE_GPT))
    (chat,) = read_conversations(path)
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.replies == ("Hello", "Bye!")
    assert [message.content for message in chat.prompt] == ["Be brief.", "Hi", "Hello", "Bye"]


def test_ids_default_to_the_place_in_the_file(tmp_path):
    path = tmp_path / "c.jsonl"
    bare = {"messages": ROW["messages"]}
    path.write_text(lines(bare, "", bare | {"id": None}, bare | {"id": 7}))
    assert [chat.id for chat in read_conversations(path)] == ["0", "1", "7"]


def test_group_key_limit_and_other_fields(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text(lines(ROW | {"skill": "sums", "score": 3}, "not JSON, but behind the limit"))
    (chat,) = read_conversations(path, group_key="skill", limit=1)
    assert chat.group == "sums"
    assert chat.extra == {"group": "maths", "score": 3}
    assert row_of(chat) == ROW | {"group": "sums", "score": 3}


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + lines(ROW).encode())
    assert read_conversations(path) == [CHAT]


def test_chats_with_one_opening_are_one_unit():
    def opening(*turns: tuple[str, str]) -> str:
        return Conversation("x", tuple(Message(*turn) for turn in turns)).opening

    plain = opening(("user", "Hi"), ("assistant", "Hello"))
    assert plain == opening(("user", "Hi"), ("assistant", "Hey"), ("user", "So?"), ("assistant", "Yes"))
    assert plain != opening(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    assert plain != opening(("user", "Hi\0"), ("assistant", "Hello"))
    # A text without a prompt, or a chat that the assistant opens, is known by that.
    assert opening(("assistant", "Hello")) != opening(("assistant", "Hey"))
    assert opening(("assistant", "Hello")) == opening(("assistant", "Hello"), ("user", "Hi"), ("assistant", "Hey"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (lines(ROW, "{broken"), "line 2: not JSON (Expecting property name enclosed in double quotes, column 2)"),
        (lines(ROW, "", [1]), "line 3: got list, expected an object with 'messages'"),
        (
            lines({"text": "Hi", "id": 1}),
            "line 1: no 'messages' (or ShareGPT 'conversations') list; its keys are ['id', 't",
        ),
        (lines({"messages": "Hi"}), "line 1: no 'messages'"),
        (lines({"messages": []}), "line 1: the conversation has no assistant turn"),
        (lines(ROW, {"messages": ROW["messages"][:1]}), "line 2: the conversation has no assistant turn"),
        (lines({"messages": ["Hi"]}), "line 1: a turn is str, expected an object with 'role' and 'content'"),
        (lines({"messages": [{"role": "robot", "content": ""}]}), "line 1: a turn has role 'robot', expected one of "),
        (
            lines({"messages": [{"role": ["user"], "content": ""}]}),
            "line 1: a turn has role ['user'], expected one of ",
        ),
        (lines({"messages": [{"role": "user", "content": 3}]}), "line 1: a user turn has content of type int"),
        ("\n\n", "holds no conversations"),
        ("", "holds no conversations"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(tmp_path, text, expected):
    path = tmp_path / "c.jsonl"
    path.write_text(text)
    line = refusal(path)
    assert line.startswith(str(path))
    assert expected in line


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.json", b'[{"a": 1},\n oops]', "line 2: not JSON"),
        ("c.json", b'{"messages": []}', "holds a dict; expected a list"),
        ("c.json", b"[1]", "item 1: got int"),
        ("c.json", b"\xff\xfe", "not readable as UTF-8 text"),
        ("c.jsonl", lines(ROW).encode() + b"\xff\n", "not readable as UTF-8 text"),
        ("c.json.gz", b"no gzip", "not readable as UTF-8 text"),
        ("c.jsonl.gz", b"no gzip", "not readable as UTF-8 text"),
        ("c.jsonl.gz", gzip.compress(lines(ROW).encode() * 50, mtime=0)[:-20], "not readable as UTF-8 text"),
        ("c.jsonl.gz", gzip.compress(bytes(range(32)), mtime=0)[:12] + b"\x00\xff" * 9, "not readable as UTF-8 text"),
        ("c.parquet", b"no parquet", "not a Parquet file"),
        ("c.parquet", b"", "not a Parquet file"),
        ("c.csv", b"a,b", "ends in .csv; expected .jsonl, .json or .parquet"),
        ("chats", b"", "expected .jsonl, .json or .parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, expected):
    path = tmp_path / name
    path.write_bytes(content)
    line = refusal(path)
    assert str(path) in line
    assert expected in line


def test_a_missing_file_is_named(tmp_path):
    assert "no file" in refusal(tmp_path / "absent.jsonl")


def test_a_parquet_row_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "c.parquet"
    write_parquet(path, [ROW, ROW | {"messages": ROW["messages"][:1]}])
    assert "row 2: the conversation has no assistant turn" in refusal(path)


# Any character, half a surrogate pair among them: JSON can hold one.
TEXT = st.text(st.characters(exclude_categories=[]), max_size=12)
TURNS = st.lists(st.builds(Message, st.sampled_from(ROLES), TEXT), max_size=4)
EXTRA = st.dictionaries(st.text(max_size=5), st.integers() | st.text(st.characters(), max_size=5), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(TURNS, TEXT, TEXT, TEXT, EXTRA)
def test_what_was_written_is_read_back(tmp_path, turns, reply, id_, group, extra):
    chat = Conversation(id_, (*turns, Message("assistant", reply)), group, extra)
    path = tmp_path / "c.jsonl"
    write_jsonl(path, [row_of(chat)])
    assert read_conversations(path) == [chat]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from([*ROLES, "gpt", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "conversations", "role", "from", "content", "id", "group"]), inner
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_chat_or_a_data_error(value):
    with contextlib.suppress(DataError):
        assert conversation_of(value, where="f, line 1", index=0).replies


def test_judgments_are_written_and_read_back(tmp_path):
    one = Judgment(key="a", judge="m", state=VerdictState.OK, value=0.0, said="B \ud800 \x1b[31m <b>")
    other = Judgment(key="b", judge="m", state=VerdictState.OUT_OF_RANGE, stated=0.0, swapped=True, reason="why")
    both = Judgment(key="c", judge="m", state=VerdictState.OUT_OF_RANGE, orders=(one, other), prompt="p")
    path = tmp_path / "judgments.jsonl"
    write_jsonl(path, map(row_of_judgment, (one, other, both)))
    assert read_judgments(path) == [one, other, both]
    assert both.consistent is None


@pytest.mark.parametrize("row", [{}, [], {"key": "a", "judge": "m", "state": "well", "value": 1}, {"key": 1}, "x"])
def test_what_is_no_judgment_is_named_with_its_line(row, tmp_path):
    path = tmp_path / "judgments.jsonl"
    write_jsonl(path, [row])
    with pytest.raises(DataError, match="line 1"):
        read_judgments(path)


@pytest.mark.parametrize(
    ("values", "consistent"),
    [((1, 1), True), ((0.9, 0.6), True), ((0.5, 0.5), True), ((1, 0.5), False), ((1, 0), False)],
)
def test_consistency_of_two_orders(values, consistent):
    orders = tuple(Judgment(key=str(v), judge="m", state=VerdictState.OK, value=v) for v in values)
    assert Judgment(key="", judge="m", state=VerdictState.OK, value=0.5, orders=orders).consistent is consistent
