"""Between the large model's tokens and the guide's: prompts as ids, replies as text and back, half characters held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consilience.chat import render_prompt
from consilience.errors import ConfigError, DataError
from consilience.records import Message

UNFINISHED = "\ufffd"  # what decoders write for the first bytes of a character
LONGEST_CHARACTER = 4  # bytes, and so tokens at most
CONTEXT = 6  # tokens before a text that show a decoder whether a blank is due


def prompt_ids(tokenizer: Any, messages: Sequence[Message], *, raw: bool) -> list[int]:
    """What a model reads before the reply: through its chat template, or the contents as plain text where `raw`."""
    if not raw:
        if not tokenizer.chat_template:
            raise ConfigError(
                f"tokenizer {tokenizer.name_or_path!r} has no chat template. Give prompts that are plain text to go on "
                "with, and --raw; or set tokenizer.chat_template."
            )
        return [int(id_) for id_ in render_prompt(tokenizer, messages)]
    ids: list[int] = tokenizer("".join(message.content for message in messages))["input_ids"]
    if ids and ids[-1] == tokenizer.eos_token_id:  # the prompt goes on
        ids = ids[:-1]
    if not ids:
        raise DataError("the prompt is empty. Give at least one token.")
    return ids


def same_vocabulary(first: Any, second: Any) -> bool:
    """Whether every token has the same id with both tokenizers."""
    return first is second or first.get_vocab() == second.get_vocab()


class Speaker:
    """Replies of one model as text, a chunk at a time."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.before = list(prompt[-CONTEXT:])

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def go_on(self, text: str, spoken: int, ids: Sequence[int]) -> tuple[str, int]:
        """`text`, which says the first `spoken` of `ids`, with what the others add; and how many are said then.

        The first bytes of a character stay unsaid until the rest of it is there.
        """
        said = [*self.before, *ids[:spoken]][-CONTEXT:]
        base = self.decode(said)
        for held in range(min(LONGEST_CHARACTER, len(ids) - spoken)):
            whole = self.decode([*said, *ids[spoken : len(ids) - held]])
            if not whole.endswith(UNFINISHED):
                return text + whole[len(base) :], len(ids) - held
        if len(ids) - spoken < LONGEST_CHARACTER:
            return text, spoken
        return text + self.decode([*said, *ids[spoken:]])[len(base) :], len(ids)  # no character: bytes that are none


class Retokenizer:
    """A reply's text as another model's tokens, after that model's prompt.

    Text and prompt meet as one string, so that a tokenizer may join what stands on either side of the seam.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], *, whole: str | None = None) -> None:
        self.tokenizer, self.prompt = tokenizer, list(prompt)
        self.seam, self.head = ("", self.prompt) if whole is None else (whole, [])
        if whole is None:
            for tokens in range(1, min(LONGEST_CHARACTER * 2, len(self.prompt)) + 1):
                seam = tokenizer.decode(self.prompt[-tokens:], clean_up_tokenization_spaces=False)
                if seam and self._ids(seam) == self.prompt[-tokens:]:
                    self.seam, self.head = seam, self.prompt[:-tokens]
                    break

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def __call__(self, reply: str) -> list[int]:
        """The ids of prompt and reply; of the prompt's tokens the first is always one of them."""
        ids = [*self.head, *self._ids(self.seam + reply)]
        return ids if ids[:1] == self.prompt[:1] else [*self.prompt, *self._ids(reply)]
