"""Messages -> text by a chat template, and where in that text the contents lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from consilience.errors import ConfigError, DataError
from consilience.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Place(NamedTuple):
    """Where a message's content lies, in characters: text[start:end] == content[skipped:skipped + end - start]."""

    message: int
    start: int
    end: int
    skipped: int


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template together with the tokenizer whose special tokens it writes."""

    tokenizer: PreTrainedTokenizerBase
    jinja: str

    def text(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The conversation as text. Raises `DataError` with the template's words when the template refuses it."""
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self.tokenizer.apply_chat_template(
                turns, chat_template=self.jinja, tokenize=False, add_generation_prompt=generation_prompt
            )
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"the chat template of {self.tokenizer.name_or_path!r} is not Jinja: line {error.lineno}, {error}."
            ) from None
        except TemplateError as error:
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"the chat template of {self.tokenizer.name_or_path!r} refuses the roles {roles}: {error}. "
                "Change the conversation, or give another chat template."
            ) from None
        return str(text)

    def places(
        self, messages: Sequence[Message], text: str, marked: Sequence[int], *, generation_prompt: bool = False
    ) -> list[Place]:
        """Where in `text`, which is `messages` rendered, the contents of the messages `marked` lie, in order.

        A second rendering with each of them replaced by a word of its own shows what the template writes between them.
        Raises `DataError` when a content cannot be found because the template rewrites it.
        """
        found = self._by_sentinels(messages, text, marked, generation_prompt)
        return self._by_prefixes(messages, text, marked) if found is None else found

    def prompt_end(self, messages: Sequence[Message], text: str, reply: int) -> int | None:
        """Where in `text` the prompt for message `reply` ends: what a model has before it when it samples that reply.

        None when `text`, which is `messages` rendered, does not begin with that prompt.
        """
        try:
            prompt = self.text(messages[:reply], generation_prompt=True) if reply else ""
        except DataError:  # a template may want the whole conversation
            return None
        return len(prompt) if text.startswith(prompt) else None

    def _by_sentinels(
        self, messages: Sequence[Message], text: str, marked: Sequence[int], generation_prompt: bool
    ) -> list[Place] | None:
        word = next(word for n in count() if (word := f"Qz{n}zQ") not in text)
        sentinels = {i: f"{word}x{i}x" for i in marked}
        masked = [replace(message, content=sentinels.get(i, message.content)) for i, message in enumerate(messages)]
        rest = self.text(masked, generation_prompt=generation_prompt)
        literals = []
        for i in marked:
            before, found, rest = rest.partition(sentinels[i])
            if not found:
                return None
            literals.append(before)
        literals.append(rest)
        if not text.startswith(literals[0]) or any(word in literal for literal in literals):
            return None
        places = []
        position = len(literals[0])
        for i, after in zip(marked, literals[1:]):
            place = next(
                (
                    Place(i, position, position + len(shown), skipped)
                    for skipped, shown in _readings(messages[i].content)
                    if text.startswith(shown + after, position)
                ),
                None,
            )
            if place is None:
                return None
            places.append(place)
            position = place.end + len(after)
        return places if position == len(text) else None

    def _by_prefixes(self, messages: Sequence[Message], text: str, marked: Sequence[int]) -> list[Place]:
        """A reply begins where the text of the messages before it, with generation prompt, ends."""
        places: list[Place] = []
        cursor = 0
        for i in marked:
            content = messages[i].content
            if messages[i].role == "assistant":
                begin = self.prompt_end(messages, text, i)
                place = _reading_at(text, begin, i, content) if begin is not None else None
            else:
                start = text.find(content.strip(), cursor)
                place = _reading_at(text, start, i, content) if start >= 0 else None
            if place is None or place.start < cursor:
                raise DataError(
                    f"the chat template of {self.tokenizer.name_or_path!r} rewrites message {i} "
                    f"({messages[i].role}: {content[:40]!r}), so its tokens cannot be found. Give another template."
                )
            places.append(place)
            cursor = place.end
        return places


def template_of(tokenizer: PreTrainedTokenizerBase, chat_template: str | None) -> Template:
    """`chat_template`, or the tokenizer's own. Raises `ConfigError` when there is none."""
    own = tokenizer.chat_template
    jinja = chat_template or (own.get("default") if isinstance(own, dict) else own)
    if not jinja:
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path!r} has no chat template. Set `template: pivot` to use the pivot's, "
            "or set tokenizer.chat_template."
        )
    return Template(tokenizer, jinja)


def _readings(content: str) -> Iterator[tuple[int, str]]:
    """`(characters skipped, what is left)` of the ways templates show a content: as it is, or trimmed at either end.

    Templates of reasoning models show only what follows `</think>` in earlier turns.
    """
    reasoning = content.rfind("</think>")
    for skipped in (0, reasoning + len("</think>")) if reasoning >= 0 else (0,):
        body = content[skipped:]
        for head in (body, body.lstrip("\n"), body.lstrip()):
            for shown in (head, head.rstrip("\n"), head.rstrip()):
                yield skipped + len(body) - len(head), shown


def _reading_at(text: str, position: int, message: int, content: str) -> Place | None:
    """The first reading of `content` that `text` goes on with at `position`, or after the blanks there."""
    after_blanks = len(text) - len(text[position:].lstrip())
    for start in (position, after_blanks):
        for skipped, shown in _readings(content):
            if text.startswith(shown, start) and (shown or not content.strip()):
                return Place(message, start, start + len(shown), skipped)
    return None
