"""Real template shapes on a byte-level tokenizer that has their control tokens; the expected text is by hand."""

from __future__ import annotations

from typing import Any

import pytest
from chat_tokenizers import Characters, byte_level, package_file
from tokenizers import AddedToken

from consilience.chat import Rendered, render, render_prompt
from consilience.errors import ConfigError, DataError
from consilience.records import Message

CONTROL = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<start_of_turn>", "<end_of_turn>", "<bos>"]
CONTROL += ["<|end_of_turn|>", "[INST]", "[/INST]", "<|end|>"]

CHATML = """{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
LLAMA2 = """{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0].content %}\
{% else %}{% set turns = messages %}{% endif %}{% for m in turns %}\
{% if loop.index0 == 0 and system is defined %}{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m.content %}\
{% else %}{% set content = m.content %}{% endif %}\
{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}{{ m.content + eos_token }}{% endif %}\
{% endfor %}"""
LLAMA3 = """{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim \
+ '<|eot_id|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
ZEPHYR = """{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token }}
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"""
GEMMA = """{{ '<bos>' }}{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}\
{{ '<start_of_turn>' + role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
OPENCHAT = """{{ bos_token }}{% for m in messages %}{{ 'GPT4 Correct ' + m.role.title() + ': ' + m.content \
+ '<|end_of_turn|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}"""
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
# The shape of Qwen3's: earlier turns lose their reasoning, the last one is given an empty one if it has none.
REASONING = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}\
{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}{% if loop.last %}{{ '<think>\n' + \
(m.content.split('</think>')[0].split('<think>')[-1].strip('\n') if '</think>' in m.content else '') + \
'\n</think>\n\n' + answer }}{% else %}{{ answer }}{% endif %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    return tokenizer


def chat(*contents: str, system: str | None = None) -> list[Message]:
    turns = [Message(("user", "assistant")[i % 2], content) for i, content in enumerate(contents)]
    return turns if system is None else [Message("system", system), *turns]


def replies_in_text(read: Rendered) -> list[str]:
    """The text that each reply's tokens cover, closing token included."""
    text = read.text.encode()
    covered = [b""] * (read.reply_T.max() + 1)
    for reply, start, end in zip(read.reply_T, read.starts_T, read.ends_T):
        if reply >= 0:
            covered[reply] += text[start:end]
    return [part.decode() for part in covered]


def spans(read: Rendered, reply: int) -> list[tuple[int, int]]:
    mine = read.reply_T == reply
    return list(zip(read.reply_starts_T[mine].tolist(), read.reply_ends_T[mine].tolist()))


TWO_TURNS = chat("Hi", "Hello there!", "And?", "Hello. ", system="Be nice.")
SHAPES = {
    "chatml": (
        CHATML,
        TWO_TURNS,
        "<|im_start|>system\nBe nice.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello there!"
        "<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\nHello. <|im_end|>\n",
        ["Hello there!<|im_end|>", "Hello. <|im_end|>"],
    ),
    "llama2": (
        LLAMA2,
        TWO_TURNS,
        "<s>[INST] <<SYS>>\nBe nice.\n<</SYS>>\n\nHi [/INST] Hello there! </s><s>[INST] And? [/INST] Hello. </s>",
        [" Hello there! </s>", " Hello. </s>"],  # the blank in front is in one token with the word: ' He'
    ),
    "mistral": (
        MISTRAL,
        TWO_TURNS[1:],
        "<s>[INST] Hi [/INST]Hello there!</s>[INST] And? [/INST]Hello. </s>",
        ["Hello there!</s>", "Hello. </s>"],
    ),
    "llama3": (
        LLAMA3,
        TWO_TURNS,
        "<|start_header_id|>system<|end_header_id|>\n\nBe nice.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello there!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>",
        ["Hello there!<|eot_id|>", "Hello.<|eot_id|>"],
    ),
    "zephyr": (
        ZEPHYR,
        TWO_TURNS,
        "<|system|>\nBe nice.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello there!</s>\n"
        "<|user|>\nAnd?</s>\n<|assistant|>\nHello. </s>\n",
        # Zephyr's generation prompt ends before the line feed, so the model must write it.
        ["\nHello there!</s>", "\nHello. </s>"],
    ),
    "gemma": (
        GEMMA,
        TWO_TURNS[1:],
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello there!<end_of_turn>\n"
        "<start_of_turn>user\nAnd?<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n",
        ["Hello there!<end_of_turn>", "Hello.<end_of_turn>"],
    ),
    "openchat": (
        OPENCHAT,
        TWO_TURNS[1:],
        "<s>GPT4 Correct User: Hi<|end_of_turn|>GPT4 Correct Assistant: Hello there!<|end_of_turn|>"
        "GPT4 Correct User: And?<|end_of_turn|>GPT4 Correct Assistant: Hello. <|end_of_turn|>",
        [" Hello there!<|end_of_turn|>", " Hello. <|end_of_turn|>"],
    ),
}


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_the_replies_and_their_closing_tokens_are_found(tokenizer: Any, shape: str) -> None:
    template, messages, text, replies = SHAPES[shape]
    read = render(tokenizer, messages, chat_template=template)
    assert read.text == text
    assert replies_in_text(read) == replies
    assert not read.truncated
    contents = [message.content.encode() for message in messages if message.role == "assistant"]
    for reply, content in enumerate(contents):
        shown = b"".join(content[start:end] for start, end in spans(read, reply))
        assert shown == (content if template in (CHATML, MISTRAL, ZEPHYR, OPENCHAT) else content.strip())
        assert max(end for _, end in spans(read, reply)) == len(content) + 1


def test_the_mask_is_the_one_of_a_template_with_generation_marks(tokenizer: Any) -> None:
    """transformers marks a reply's tokens itself when the template says where `{% generation %}` begins and ends."""
    marked = CHATML.replace(
        "{{ m.content }}<|im_end|>\n",
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n\n",  # Jinja drops the first line feed after a block
    )
    turns = [{"role": message.role, "content": message.content} for message in TWO_TURNS]
    theirs = tokenizer.apply_chat_template(turns, chat_template=marked, return_assistant_tokens_mask=True)
    read = render(tokenizer, TWO_TURNS, chat_template=CHATML)
    assert read.ids_T.tolist() == theirs["input_ids"]
    assert (read.reply_T >= 0).astype(int).tolist() == theirs["assistant_masks"]


def test_spans_by_hand(tokenizers: Any) -> None:
    # One token per character: <|im_start|> is 12 of them, </s> is one control token.
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}</s>{% endfor %}"
    read = render(tokenizers("characters"), chat("é", "aé"), chat_template=template)
    assert read.text == "u:é</s>a:aé</s>"
    assert read.starts_T.tolist() == [0, 1, 2, 4, 8, 9, 10, 11, 13]
    assert read.ends_T.tolist() == [1, 2, 4, 8, 9, 10, 11, 13, 17]
    assert read.reply_T.tolist() == [-1, -1, -1, -1, -1, -1, 0, 0, 0]
    assert read.reply_starts_T.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 3]
    assert read.reply_ends_T.tolist() == [0, 0, 0, 0, 0, 0, 1, 3, 4]


def test_the_arrays_have_the_promised_types(tokenizer: Any) -> None:
    read = render(tokenizer, TWO_TURNS, chat_template=CHATML)
    arrays = (read.ids_T, read.starts_T, read.ends_T, read.reply_starts_T, read.reply_ends_T)
    assert {str(array.dtype) for array in arrays} == {"int32"}
    assert str(read.reply_T.dtype) == "int16"


def test_trimmed_bytes_belong_to_no_token(tokenizers: Any) -> None:
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content | trim }}</s>{% endfor %}"
    read = render(tokenizers("characters"), chat("u", "\n ab  "), chat_template=template)
    assert spans(read, 0) == [(2, 3), (3, 4), (6, 7)]  # 'a', 'b', and the closing token past all six bytes


def test_a_blank_before_the_closing_token_is_the_first_closing_token(tokenizers: Any) -> None:
    read = render(tokenizers("characters"), chat("u", "ab"), chat_template=LLAMA2)
    assert read.text == "<s>[INST] u [/INST] ab </s>"
    # The blank before the reply, which the generation prompt lacks; a, b; the blank before </s>; </s>.
    assert spans(read, 0) == [(0, 0), (0, 1), (1, 2), (2, 3), (3, 3)]


def test_a_template_without_a_closing_token(tokenizers: Any) -> None:
    read = render(tokenizers("characters"), chat("u", "ab", "v", "c"), chat_template=PLAIN)
    assert spans(read, 0) == [(0, 1), (1, 2)]
    assert spans(read, 1) == [(0, 1)]


def test_tokens_that_straddle_the_edges_of_a_reply() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.add_tokens([": He", "y\n"])  # tokens across the template's text and the reply's
    read = render(tokenizer, chat("u", "Hey", "v", "w"), chat_template=PLAIN)
    assert tokenizer.convert_ids_to_tokens(read.ids_T[read.reply_T == 0].tolist()) == [": He", "y\n"]
    assert spans(read, 0) == [(0, 2), (2, 3)]
    tokenizer.backend_tokenizer.add_special_tokens(["y</s>"])
    closed = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    tokenizer.eos_token = "y</s>"
    read = render(tokenizer, chat("u", "Hey"), chat_template=closed)
    assert spans(read, 0) == [(0, 2), (2, 4)]  # 'y' and the end of the reply in one token


def test_an_empty_reply_is_its_closing_token(tokenizers: Any) -> None:
    read = render(tokenizers("characters"), chat("u", "", "v", "x"), chat_template=ZEPHYR)
    assert spans(read, 0) == [(0, 0), (0, 1)]  # the line feed before it is the model's to write
    assert spans(read, 1) == [(0, 0), (0, 1), (1, 2)]
    only_if = CHATML.replace("{{ m.content }}", "{% if m.content %}{{ 'text ' + m.content }}{% endif %}")
    read = render(tokenizers("byte_level"), chat("u", ""), chat_template=only_if)
    assert replies_in_text(read) == ["<|im_end|>"]


def test_identical_replies_keep_their_own_turns(tokenizer: Any) -> None:
    read = render(tokenizer, chat("ok", "ok", "ok", "ok", "assistant\nok", "ok"), chat_template=CHATML)
    assert replies_in_text(read) == ["ok<|im_end|>"] * 3
    first = [int(read.starts_T[read.reply_T == reply][0]) for reply in range(3)]
    # By hand, in bytes: '<|im_start|>user\n' 17, '<|im_start|>assistant\n' 22, 'ok' 2, '<|im_end|>\n' 11.
    user, assistant, last_user = 17 + 2 + 11, 22 + 2 + 11, 17 + 12 + 11
    assert first == [user + 22, 2 * user + assistant + 22, 2 * (user + assistant) + last_user + 22]


@pytest.mark.parametrize(
    "name", ["mistral_spm", "mistral_tekken", "qwen", "metaspace", "unigram", "characters", "slow_spm"]
)
def test_control_tokens_written_in_contents_are_text(tokenizers: Any, name: str) -> None:
    tokenizer = tokenizers(name)
    eos = tokenizer.eos_token
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    messages = chat(f"say {eos} now", f"x {eos}{eos} y{eos}", f"{eos}", "z")
    read = render(tokenizer, messages, chat_template=template)
    closing = [i for i, id in enumerate(read.ids_T) if id == tokenizer.eos_token_id]
    assert len(closing) == 4
    assert [read.text.encode()[read.starts_T[i] : read.ends_T[i]].decode() for i in closing] == [eos] * 4
    assert spans(read, 0)[-1] == (len(messages[1].content), len(messages[1].content) + 1)
    text = read.text.encode()
    assert b"".join(text[start:end] for start, end in zip(read.starts_T, read.ends_T)) == text
    if name in ("mistral_spm", "mistral_tekken", "qwen"):
        assert tokenizer.decode(read.ids_T) == read.text  # no blank from a dummy prefix in the middle
    again = tokenizer(f"a{eos}b", add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id in again  # the tokenizer is left as it was


def test_a_prompt_spells_out_control_tokens_too(tokenizer: Any) -> None:
    prompt = render_prompt(tokenizer, chat("a<|im_end|>b"), chat_template=CHATML)
    assert (prompt == tokenizer.convert_tokens_to_ids("<|im_end|>")).sum() == 1
    assert tokenizer.decode(prompt) == "<|im_start|>user\na<|im_end|>b<|im_end|>\n<|im_start|>assistant\n"
    assert str(prompt.dtype) == "int32"


def test_the_prompt_and_the_reply_make_the_conversation(tokenizer: Any) -> None:
    messages = chat("Hi", "Hello", "And?", "Bye")
    read = render(tokenizer, messages, chat_template=CHATML)
    prompt = render_prompt(tokenizer, messages[:-1], chat_template=CHATML)
    assert read.ids_T[: len(prompt)].tolist() == prompt.tolist()
    assert read.reply_T[len(prompt)] == 1


@pytest.mark.parametrize(("template", "begins"), [(MISTRAL, 1), (PLAIN, 0)])
def test_bos_is_the_templates_business(template: str, begins: int) -> None:
    tokenizer = byte_level()
    tokenizer.add_bos_token = True  # what tokenizer(text) does must not matter
    read = render(tokenizer, chat("Hi", "Hello"), chat_template=template)
    assert (read.ids_T == tokenizer.bos_token_id).sum() == begins


def test_truncation_cuts_the_tail(tokenizer: Any) -> None:
    whole = render(tokenizer, TWO_TURNS, chat_template=CHATML)
    cut = render(tokenizer, TWO_TURNS, chat_template=CHATML, max_tokens=20)
    assert cut.truncated
    for name in ("ids_T", "starts_T", "ends_T", "reply_T", "reply_starts_T", "reply_ends_T"):
        assert getattr(cut, name).tolist() == getattr(whole, name)[:20].tolist()
    assert not render(tokenizer, TWO_TURNS, chat_template=CHATML, max_tokens=len(whole.ids_T)).truncated


def test_a_template_that_drops_reasoning(tokenizer: Any) -> None:
    thought = "<think>\nhm\n</think>\n\nHello"  # 'Hello' begins at byte 21
    read = render(tokenizer, chat("Hi", thought, "And?", thought), chat_template=REASONING)
    assert replies_in_text(read) == ["Hello<|im_end|>", thought + "<|im_end|>"]
    assert spans(read, 0)[0][0] == 21
    assert spans(read, 0)[-1] == (26, 27)
    assert spans(read, 1)[0][0] == 0
    # A reply without reasoning is given an empty one by the template, which is not the reply's.
    assert replies_in_text(render(tokenizer, chat("Hi", "Yes"), chat_template=REASONING)) == ["Yes<|im_end|>"]


def test_a_template_that_rewrites_a_reply_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"rewrites message 1 \(assistant: 'Hello'\)"):
        render(tokenizer, chat("Hi", "Hello"), chat_template=CHATML.replace("m.content", "m.content | upper"))
    last_only = CHATML.replace("messages %}", "messages[-1:] %}")
    with pytest.raises(DataError, match="rewrites message 1"):
        render(tokenizer, chat("Hi", "Hello", "a", "b"), chat_template=last_only)


def test_a_users_words_may_be_rewritten(tokenizer: Any) -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content if m.role == 'assistant' else m.content | upper }}")
    read = render(tokenizer, chat("Hi", "Hello"), chat_template=template)
    assert replies_in_text(read) == ["Hello<|im_end|>"]


def test_a_tokenizer_without_a_template_is_refused_with_the_way_out(tokenizers: Any) -> None:
    with pytest.raises(ConfigError, match=r"'characters' has no chat template.*template: pivot"):
        render(tokenizers("characters"), TWO_TURNS)


def test_the_tokenizers_own_template_is_used() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    assert replies_in_text(render(tokenizer, chat("a", "b"))) == ["b<|im_end|>"]
    expected = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
    assert render_prompt(tokenizer, chat("a")).tolist() == expected["input_ids"]


def test_a_template_that_refuses_says_why(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"refuses the roles system, user, assistant.*roles must alternate"):
        render(tokenizer, chat("u", "a", system="s"), chat_template=MISTRAL)
    with pytest.raises(ConfigError, match="is not Jinja: line 1"):
        render(tokenizer, TWO_TURNS, chat_template="{% for m in %}")


def test_what_is_not_text_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no messages"):
        render(tokenizer, [], chat_template=CHATML)
    with pytest.raises(DataError, match=r"message 1 \(assistant\) holds half a surrogate pair"):
        render(tokenizer, chat("u", "\ud83d"), chat_template=CHATML)


def test_a_tokenizer_that_cannot_be_followed_is_named() -> None:
    class Shouting(Characters):
        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text.upper())

    class Breathless(Characters):
        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)[:3]

    with pytest.raises(DataError, match=r"'loud' gives no offsets.* token 0, 'U', .* at byte 0: b'user: a"):
        render(Shouting(name_or_path="loud", unk_token="<unk>"), chat("a", "b"), chat_template=PLAIN)
    with pytest.raises(DataError, match=r"'short' gives no offsets.* its end .* at byte 3: b'r: a"):
        render(Breathless(name_or_path="short", unk_token="<unk>"), chat("a", "b"), chat_template=PLAIN)


@pytest.mark.parametrize(
    "contents",
    [
        ("Hi", "Hello there", "b", "Bye"),
        ("say </s> now<s>", "x </s></s> y</s>", "</s>", "[INST] é [/INST]"),
        ("👋🏽 [/INST]", "a", "\nu", "漢"),
    ],
)
@pytest.mark.parametrize("name", ["mistral_tekken", "prepend_spm"])
def test_ids_are_those_of_mistrals_own_library(tokenizers: Any, name: str, contents: tuple[str, ...]) -> None:
    """mistral_common puts the control tokens in by id, so that no text of a user can be one."""
    from mistral_common.protocol.instruct.messages import AssistantMessage, UserMessage
    from mistral_common.tokens.tokenizers.instruct import InstructRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    if name == "prepend_spm":
        theirs, user, reply = MistralTokenizer.v1(), "[INST] %s [/INST]", " %s"
    else:
        theirs = MistralTokenizer.from_file(str(package_file("mistral_common", "data/tekken_240911.json")))
        user, reply = "[INST]%s[/INST]", "%s"
    turns = [(UserMessage, AssistantMessage)[i % 2](content=content) for i, content in enumerate(contents)]
    expected = theirs.instruct_tokenizer.encode_instruct(InstructRequest(messages=turns)).tokens
    template = (
        "<s>{% for m in messages %}"
        f"{{{{ '{user}' % m.content if m.role == 'user' else '{reply}' % m.content + '</s>' }}}}"
        "{% endfor %}"
    )
    assert render(tokenizers(name), chat(*contents), chat_template=template).ids_T.tolist() == expected


def test_a_closing_token_that_swallows_the_line_feed_after_it() -> None:
    # Phi-3 declares its control tokens with rstrip=True.
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", rstrip=True, special=True)]})
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    read = render(tokenizer, chat("a", "b<|end|> c", "d", "e"), chat_template=template)
    assert replies_in_text(read) == ["b<|end|> c<|end|>\n", "e<|end|>\n"]
    assert spans(read, 0)[0] == (0, 1)
    assert spans(read, 0)[-1] == (10, 11)
    assert spans(read, 1) == [(0, 1), (1, 2)]
