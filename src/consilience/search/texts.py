"""Between the large model's tokens and the guide's: prompts as ids, replies as text and back, half characters held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from consilience.chat import render_prompt
from consilience.errors import ConfigError, DataError
from consilience.records import Message

UNFINISHED = "\ufffd"  # what decoders write for the first bytes of a character
BYTES_OF_A_CHARACTER = 4  # at most, and each may be a token of its own
JUNK = 32  # tokens without the end of a character among them: bytes that are none
CONTEXT = 6  # tokens before a text that show a decoder whether a blank is due
SEAM = 8  # tokens of a prompt that may have to be tokenized again with the reply, at most, if they begin a word


class Said(NamedTuple):
    """How far a reply is decoded: its first `ids` tokens, which end with a character, are its first `characters`."""

    ids: int = 0
    characters: int = 0


NOTHING = Said()


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


def completes_stop(show: Callable[[Sequence[int]], str], stop: Sequence[str], ids: Sequence[int]) -> bool:
    """Whether the newest of `ids` completed a text of `stop`."""
    if not stop:
        return False
    newest = show(ids[-BYTES_OF_A_CHARACTER * max(map(len, stop)) - CONTEXT :])
    return any(text in newest for text in stop)


def shown(tokenizer: Any, ids: Sequence[int]) -> str:
    """Tokens as a reader sees them."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class Speaker:
    """Replies of one model as text, a chunk at a time."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.before = list(prompt[-CONTEXT:])

    def go_on(self, text: str, said: Said, ids: Sequence[int]) -> tuple[str, Said]:
        """`text`, whose first part says the first of `ids` as `said` has it, up to their end; and how far it is said.

        The first bytes of a character stay unsaid until the rest of it is there; a token may hold the end of one
        character and the beginning of the next.
        """
        known = [*self.before, *ids[: said.ids]][-CONTEXT:]
        whole = shown(self.tokenizer, [*known, *ids[said.ids :]])[len(shown(self.tokenizer, known)) :]
        clean = whole.rstrip(UNFINISHED)
        if clean == whole or len(ids) - said.ids > JUNK:
            text = text[: said.characters] + whole
            return text, Said(len(ids), len(text))
        return text[: said.characters] + clean, said

    def show(self, ids: Sequence[int]) -> str:
        """The whole of `ids` behind the prompt: alone, many decoders drop the blank of a text's first token."""
        return shown(self.tokenizer, [*self.before, *ids])[len(shown(self.tokenizer, self.before)) :]


class Retokenizer:
    """A reply's text as another model's tokens, after that model's prompt.

    Text and prompt meet as one string, so that a tokenizer may join what stands on either side of the seam. Where the
    prompt's last tokens begin a word, and give themselves when they are read alone, only they are read again;
    otherwise `whole`, the prompt's text, is, or reply and prompt stay apart where there is none.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int], *, whole: str | None = None) -> None:
        self.tokenizer, self.prompt = tokenizer, list(prompt)
        self.seam, self.head = ("", self.prompt) if whole is None else (whole, [])
        if whole is None:
            tails = range(1, min(SEAM, len(self.prompt)) + 1)
            found = next((tokens for tokens in tails if self._is_a_seam(tokens)), 0)
            if found:
                self.seam, self.head = self._text(self.prompt[-found:]), self.prompt[:-found]

    def _is_a_seam(self, tokens: int) -> bool:
        """Whether the prompt's last `tokens` can be read apart from those before, whatever follows them."""
        head, tail = self.prompt[:-tokens], self.prompt[-tokens:]
        seam = self._text(tail)
        if not seam or self._ids(seam) != tail:
            return False
        marked = self.tokenizer.convert_ids_to_tokens(tail[0]).startswith("▁")
        after_control = not head or head[-1] in self.tokenizer.all_special_ids
        begins_word = seam[0].isspace() and not self._text(head[-1:])[-1:].isspace()
        return marked or after_control or begins_word

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def __call__(self, reply: str) -> list[int]:
        """The ids of prompt and reply; of the prompt's tokens the first is always one of them."""
        ids = [*self.head, *self._ids(self.seam + reply)]
        return ids if ids[:1] == self.prompt[:1] else [*self.prompt, *self._ids(reply)]
