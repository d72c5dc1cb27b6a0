"""Two kinds of BPE tokenizer, trained from scratch on chats, and four chat templates to train them with.

In every template a prompt's ids are a prefix of the whole chat's ids: the space or newline before a reply is a token
of its own or opens the reply's first token.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from consilience.records import Conversation, row_of

# Llama 2: "<s>[INST] prompt [/INST] reply</s>"
BRACKETS = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}"
    " {{ message.content }}{{ eos_token }}"
    "{% else %}[INST] {{ message.content }} [/INST]{% endif %}{% endfor %}"
)
# Zephyr: "<|user|>\nprompt</s>\n<|assistant|>\nreply</s>\n"
ZEPHYR = (
    "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# Qwen: "<|im_start|>user\nprompt<|im_end|>\n<|im_start|>assistant\nreply<|im_end|>\n"
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Vicuna: "User: prompt\nAssistant: reply<|end|>\n"
DIALOGUE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}\n"
    "{% else %}User: {{ message.content }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)

# transformers gives every tokenizer beside a Qwen 2 model this pattern when it loads it, whatever tokenizer.json says.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Special = Mapping[str, str]  # "eos_token" and its like -> the token's text


def metaspace(chats: Sequence[Conversation], size: int, template: str, special: Special) -> PreTrainedTokenizerFast:
    """Words open with '▁', as in Llama 2. Reads ASCII; any other character is the unknown token."""
    tokenizer = Tokenizer(models.BPE(unk_token=special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[\n.,:?]"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    alphabet = ["▁", "\n", *string.ascii_letters, *string.digits, *string.punctuation]
    return _train(tokenizer, alphabet, chats, size, template, special)


def byte_level(chats: Sequence[Conversation], size: int, template: str, special: Special) -> PreTrainedTokenizerFast:
    """Bytes, cut into words as Qwen 2 does. Reads any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _train(tokenizer, pre_tokenizers.ByteLevel.alphabet(), chats, size, template, special)


def rendered(
    tokenizer: PreTrainedTokenizerFast, chats: list[list[dict[str, str]]], *, generation_prompt: bool = False
) -> list[str]:
    """The text of each chat through the tokenizer's template; at least one chat."""
    texts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=generation_prompt)
    return cast("list[str]", texts)


def _train(
    tokenizer: Tokenizer,
    alphabet: list[str],
    chats: Sequence[Conversation],
    size: int,
    template: str,
    special: Special,
) -> PreTrainedTokenizerFast:
    """Merges are learnt on chats as `template` renders them, between the special tokens."""
    settings: dict[str, Any] = {"chat_template": template, "clean_up_tokenization_spaces": False, **special}
    untrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
    texts = rendered(untrained, [row_of(chat)["messages"] for chat in chats])
    control = re.compile("|".join(map(re.escape, special.values())))
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((part for text in texts for part in control.split(text)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **settings)
