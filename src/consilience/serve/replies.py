"""Pieces of replies -> OpenAI's response objects, whole or in chunks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from consilience.serve.generate import Piece, TokenLogprob

Json = dict[str, Any]
Spell = Callable[[int], bytes]  # a token's bytes


@dataclass(slots=True)
class Answer:
    """One response in the making. `chat` decides its format; a choice's index counts over the prompts' replies."""

    model: str
    chat: bool
    spell: Spell
    prompt_tokens: int = 0
    reply_tokens: int = 0
    id: str = field(default_factory=lambda: uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: dict[int, int] = field(default_factory=dict)  # characters of each choice that have been shown

    def whole(self, choices: int, pieces: Iterable[tuple[int, Piece]]) -> Json:
        """The response to a request that does not stream; `pieces` of each choice are in order."""
        texts, ends, logprobs = [""] * choices, ["length"] * choices, [[] for _ in range(choices)]  # type: ignore[var-annotated]
        for index, piece in pieces:
            self.reply_tokens += piece.tokens
            texts[index] += piece.text
            logprobs[index] += piece.logprobs
            ends[index] = piece.finish or ends[index]
        shown = [
            {"index": i, "finish_reason": ends[i], "logprobs": self._logprobs(i, logprobs[i])}
            | (
                {"message": {"role": "assistant", "content": texts[i], "refusal": None}}
                if self.chat
                else {"text": texts[i]}
            )
            for i in range(choices)
        ]
        return self._frame("chat.completion" if self.chat else "text_completion", shown) | {"usage": self.usage}

    def opening(self, choices: int) -> list[Json]:
        """What a chat's stream begins with: whose turn it is."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(i, {"delta": delta}, None, None) for i in range(choices)] if self.chat else []

    def chunk(self, index: int, piece: Piece) -> Json:
        self.reply_tokens += piece.tokens
        shown = {"delta": {"content": piece.text} if piece.text else {}} if self.chat else {"text": piece.text}
        return self._chunk(index, shown, piece.finish, self._logprobs(index, piece.logprobs))

    def last(self) -> Json:
        """The chunk that counts what was used."""
        return self._frame(self._chunk_kind, []) | {"usage": self.usage}

    @property
    def usage(self) -> Json:
        total = self.prompt_tokens + self.reply_tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.reply_tokens, "total_tokens": total}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index: int, shown: Json, finish: str | None, logprobs: Json | None) -> Json:
        choice = {"index": index, **shown, "finish_reason": finish, "logprobs": logprobs}
        return self._frame(self._chunk_kind, [choice])

    def _frame(self, kind: str, choices: Sequence[Json]) -> Json:
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> Json | None:
        if not tokens:
            return None
        if self.chat:
            rows = [
                self._token(token.token_id, token.logprob)
                | {"top_logprobs": [self._token(*likely) for likely in token.likeliest]}
                for token in tokens
            ]
            return {"content": rows, "refusal": None}
        texts = [self._text(token.token_id) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(id_): logprob for id_, logprob in token.likeliest} for token in tokens],
            "text_offset": offsets,
        }

    def _token(self, token_id: int, logprob: float) -> Json:
        return {"token": self._text(token_id), "logprob": logprob, "bytes": [*self.spell(token_id)]}

    def _text(self, token_id: int) -> str:
        return self.spell(token_id).decode(errors="replace")


def written(tree: Json) -> bytes:
    """JSON as bytes; half a surrogate pair, which only a caller's own words can hold, is written as JSON's escape."""
    text = json.dumps(tree, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="backslashreplace")


def event(tree: Json) -> bytes:
    """One server-sent event."""
    return b"data: " + written(tree) + b"\n\n"
