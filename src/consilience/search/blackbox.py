"""A large model that can only be asked for text: chunks sampled by any OpenAI-compatible server.

A beginning of a reply is continued in one of three ways: as plain text through /completions, with the chat template
applied here; or as a last message of the assistant's, which servers go on with when told to by `continue_final_message`
(vLLM, SGLang, ours) or by `prefix` in the message (Mistral, DeepSeek).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from consilience.chat.template import template_of
from consilience.errors import BackendError, pick
from consilience.models.endpoint import Answer, Endpoint, Request, Status, samples
from consilience.models.endpoint.answer import NOT_ASKED
from consilience.records import Message
from consilience.rng import seed_of
from consilience.search.chunks import NoReply, Unanswered
from consilience.search.sampling import Wanted
from consilience.search.settings import Finish, Hypothesis, Prompt, SearchSettings
from consilience.search.texts import UNFINISHED

SEED_BITS = 31  # servers hold 32, or 31
PROBE = (Message("user", "Count to five."), Message("assistant", "One, two, three"))
ALIKE, ALIKE_TOKENS = 4, 8  # so many samples of so many tokens are hardly ever the same
ANSWERED = (Status.OK, Status.TRUNCATED)
NATURAL_END = -1  # an end of text whose token only the server knows


class Continuation(StrEnum):
    """How a beginning of a reply is sent."""

    COMPLETIONS = "completions"
    FLAG = "continue_final_message"
    PREFIX = "prefix"


WAYS: Mapping[str, Continuation | None] = {"auto": None} | {str(way): way for way in Continuation}


@dataclass
class Opened:
    """One prompt before the server."""

    prompt: Prompt
    settings: SearchSettings
    text: str  # the prompt through the chat template, or as it is; "" where the server applies its own
    limit: int  # tokens of the reply
    prompt_tokens: int | None = None  # as the server counts them, once it has


class EndpointModel:
    """A `Proposer` behind a server. Hypotheses are known by their text; the server counts their tokens."""

    speaks = True

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        tokenizer: Any = None,
        raw: bool = False,
        way: str = "auto",
    ) -> None:
        """`tokenizer` is the large model's: its chat template is applied here, and texts go to /completions.

        What the server does otherwise is among the notes of `endpoint`.
        Raises `ConfigError` for an unknown way, or for a tokenizer without a chat template.
        """
        chosen = pick(WAYS, way, "way to continue a reply")
        if chosen is None and (tokenizer is not None or raw):
            chosen = Continuation.COMPLETIONS
        self.endpoint, self.way, self.raw = endpoint, chosen, raw
        self.sends_top_k, self.all_alike = True, False
        self.template = None if tokenizer is None or raw else template_of(tokenizer, None)
        if chosen is Continuation.COMPLETIONS and self.template is None and not raw:
            raise BackendError(
                "to continue replies by /completions the chat template must be known. Give --tokenizer, the folder or "
                "hub name of the large model's tokenizer; or --raw."
            )

    def open(self, prompt: Prompt, settings: SearchSettings) -> Opened:
        """Raises `DataError` when the chat template refuses the prompt, `NoReply` where the server is gone."""
        if self.endpoint.gone:
            raise NoReply(str(Status.API_ERROR), f"{NOT_ASKED}{self.endpoint.gone}")
        text = ""
        if self.raw:
            text = "".join(message.content for message in prompt.messages)
        elif self.template and self.way is Continuation.COMPLETIONS:
            text = self.template.text(prompt.messages, generation_prompt=True)
            # Servers put the token that begins a text in front of every prompt.
            text = text.removeprefix(self.template.tokenizer.bos_token or "")
        return Opened(prompt, settings, text, settings.max_new_tokens)

    def root(self, opened: Opened) -> Hypothesis:
        return Hypothesis(ids=(), text="")

    def extend(self, wanted: Sequence[Wanted]) -> list[list[Hypothesis]]:
        """Raises `Unanswered` for prompts whose requests did not all bring a reply. The answers to the others are in
        the endpoint's cache, so that asking once more for what is left costs nothing."""
        asked = [asked for want in wanted for asked in _asked(want)]
        if any(one.parent.text for one in asked) and self.way is None:
            try:
                self.way = self._find_way()
            except NoReply as why:
                raise Unanswered({one.opened.prompt.id: why for one in asked if one.parent.text}) from None
        answers = iter(self._ask(asked))
        unanswered: dict[str, NoReply] = {}
        found: dict[int, list[Hypothesis]] = {}
        for one in asked:
            mine = [next(answers) for _ in range(one.count)]
            lost = [answer for answer in mine if answer.status not in ANSWERED]
            if lost:
                unanswered[one.opened.prompt.id] = NoReply(str(lost[0].status), lost[0].reason)
                continue
            self._look_alike(one, mine)
            one.opened.prompt_tokens = one.opened.prompt_tokens or mine[0].prompt_tokens
            found[id(one.parent)] = _continued(one, mine)
        if unanswered:
            raise Unanswered(unanswered)
        return [[parent if parent.finish else found[id(parent)].pop(0) for parent in want.parents] for want in wanted]

    def keep(self, opened: Opened, hypotheses: Sequence[Hypothesis]) -> None:
        """There is nothing to keep: a server remembers nothing that it can be relied on for."""

    def close(self, opened: Opened) -> None:
        """Nothing to do either."""

    def show(self, opened: Opened, ids: Sequence[int]) -> str:
        raise AssertionError("the tokens of a model behind a server are not known")

    def _ask(self, asked: Sequence[_Asked]) -> list[Answer]:
        answers = self.endpoint.ask([request for one in asked for request in samples(self._request(one), one.count)])
        if self.sends_top_k and any(
            answer.status is Status.API_ERROR and "top_k" in answer.reason for answer in answers
        ):
            self.sends_top_k = False  # it is not OpenAI's
            self.endpoint.note("the server refuses top_k: it draws among all tokens")
            return self._ask(asked)
        return answers

    def _look_alike(self, one: _Asked, answers: Sequence[Answer]) -> None:
        """Notes, once, samples that are one and the same: some servers take no temperature and say nothing."""
        drawn = one.opened.settings.temperature > 0 and one.count >= ALIKE and one.tokens >= ALIKE_TOKENS
        if drawn and not self.all_alike and len({answer.text for answer in answers}) == 1:
            self.all_alike = True
            self.endpoint.note(
                f"{one.count} samples of the same beginning are all alike: the server may ignore the temperature"
            )

    def _request(self, one: _Asked) -> Request:
        settings, prompt, reply = one.opened.settings, one.opened.prompt, one.parent.text
        greedy = settings.temperature == 0
        # Each beginning of a reply has a seed of its own, whatever else is asked for beside it.
        seed = seed_of(prompt.seed, "search", prompt.stream or prompt.id, reply)
        extra: dict[str, Any] = {}
        if settings.top_k and self.sends_top_k and not greedy:
            extra["top_k"] = settings.top_k
        messages: tuple[Message, ...] = ()
        if self.way is not Continuation.COMPLETIONS:
            messages = prompt.messages
            if reply:
                messages = (*messages, Message("assistant", reply))
                extra |= going_on(messages, self.way)
        return Request(
            messages=messages,
            prompt=None if messages else one.opened.text + reply,
            max_tokens=one.tokens,
            temperature=settings.temperature,
            top_p=None if greedy or settings.top_p == 1 else settings.top_p,
            stop=settings.stop,
            seed=None if greedy else seed % 2**SEED_BITS,
            extra=extra,
        )

    def _find_way(self) -> Continuation:
        """Which way the server goes on with a reply, found out by a question of one token.

        A server that does not know `continue_final_message` may also ignore it, and begin a new reply; then its prompt
        is as long with it as without it. One that does not state how long its prompts are is not believed; one that
        refuses a reply at the end, except to go on with, is.

        Raises `NoReply` where the server cannot be asked, `BackendError` where there is no way.
        """
        plain = self._probe(None)
        if self.endpoint.gone or plain.status is Status.OVER_BUDGET:
            raise NoReply(str(plain.status), plain.reason)
        for way in (Continuation.FLAG, Continuation.PREFIX):
            answer = self._probe(way)
            if answer.status not in ANSWERED:
                continue
            if plain.status not in ANSWERED:
                return way
            if answer.prompt_tokens is None or plain.prompt_tokens is None:
                raise BackendError(
                    f"{self.endpoint.name} states no usage, so it cannot be told whether it goes on with the beginning "
                    f"of a reply or begins anew. Give --continue-by {way}, if you know that it goes on; or "
                    "--tokenizer, the large model's, whose chat template is then used with /completions; or --chunk 0."
                )
            if answer.prompt_tokens != plain.prompt_tokens:
                return way
        raise BackendError(
            f"{self.endpoint.name} does not go on with the beginning of a reply: it knows neither "
            "continue_final_message nor prefix. Give --tokenizer, the large model's, whose chat template is then used "
            "with /completions; or --continue-by, if you know better; or --chunk 0, which needs no beginnings."
        )

    def _probe(self, way: Continuation | None) -> Answer:
        request = Request(messages=PROBE, max_tokens=1, temperature=0.0, extra=going_on(PROBE, way))
        return self.endpoint.ask([request])[0]


def going_on(messages: Sequence[Message], way: Continuation | None) -> dict[str, Any]:
    """The fields of a chat's body that make a server go on with the last message."""
    if way is Continuation.FLAG:
        return {"continue_final_message": True, "add_generation_prompt": False}
    if way is Continuation.PREFIX:
        turns: list[dict[str, Any]] = [{"role": message.role, "content": message.content} for message in messages]
        return {"messages": [*turns[:-1], turns[-1] | {"prefix": True}]}
    return {}


@dataclass(frozen=True, slots=True)
class _Asked:
    """One beginning of a reply, and what is wanted of it."""

    opened: Opened
    parent: Hypothesis
    count: int  # continuations
    tokens: int  # each, at most


def _asked(want: Wanted) -> list[_Asked]:
    opened: Any = want.opened  # ours, not the local model's
    live = {id(parent): parent for parent in want.parents if parent.finish is None}
    counts = Counter(map(id, want.parents))
    found = []
    for key, parent in live.items():
        assert parent.tokens is not None  # what goes on was cut off, at a number of tokens that was asked for
        left = opened.limit - parent.tokens
        found.append(_Asked(opened, parent, counts[key], left if want.tokens is None else min(want.tokens, left)))
    return found


def _continued(one: _Asked, answers: Sequence[Answer]) -> list[Hypothesis]:
    """What the answers make of the beginning."""
    hypotheses = []
    for answer, written in zip(answers, _tokens(one, answers), strict=True):
        cut_off = answer.status is Status.TRUNCATED
        text = one.parent.text + (answer.text.rstrip(UNFINISHED) if cut_off else answer.text)
        tokens = None if written is None or one.parent.tokens is None else one.parent.tokens + written
        stopped = any(stop in text for stop in one.opened.settings.stop)  # across two chunks it is for us to find
        finish = Finish.STOP if stopped or not cut_off else None
        if finish is None and tokens is not None and tokens >= one.opened.limit:
            finish = Finish.LENGTH
        end = None if cut_off or stopped or _by_stop_text(answer) else NATURAL_END
        hypotheses.append(Hypothesis(ids=(), text=text, finish=finish, end=end, tokens=tokens))
    return hypotheses


def _tokens(one: _Asked, answers: Sequence[Answer]) -> list[int | None]:
    """The tokens of each answer. A server counts those of a call, which begins with the index 0: replies that were cut
    off have as many as they could, and those that ended are taken to share the rest; None where it counts none."""
    calls: list[list[Answer]] = []
    for answer in answers:
        if not calls or answer.raw.get("index", 0) == 0:
            calls.append([])
        calls[-1].append(answer)
    found: list[int | None] = []
    for call in calls:
        ended = sum(answer.status is Status.OK for answer in call)
        stated, each = call[0].completion_tokens, None
        if stated is not None and ended:
            rest = max(0, stated - one.tokens * (len(call) - ended))
            each = min(one.tokens, round(rest / ended))
        found += [each if answer.status is Status.OK else one.tokens for answer in call]
    return found


def _by_stop_text(answer: Answer) -> bool:
    """Whether a stop text ended it, as far as the server says (vLLM and SGLang do)."""
    return isinstance(answer.raw.get("stop_reason", answer.raw.get("matched_stop")), str)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a search asks of a server at most: replies that end early cost less."""

    calls: int  # with n in one call; a server without n is asked for every sample
    input_tokens: int
    output_tokens: int
    rounds: int  # calls that wait for one another, of one prompt


def cost_of(settings: SearchSettings, prompt_tokens: Sequence[int]) -> Cost:
    """Of prompts with so many tokens: C = T/L chunks, in each of them W beginnings that have grown by L.

    Input P + Σ_c W·(P + c·L) for c = 1 .. C−1, where the first chunk has the bare prompt only; output W·K·T.
    """
    reply, width = settings.max_new_tokens, settings.width
    chunk = min(settings.chunk or reply, reply)
    chunks = -(-reply // chunk)
    grown = chunk * chunks * (chunks - 1) // 2
    return Cost(
        calls=len(prompt_tokens) * (1 + width * (chunks - 1)),
        input_tokens=sum(tokens + width * ((chunks - 1) * tokens + grown) for tokens in prompt_tokens),
        output_tokens=len(prompt_tokens) * width * settings.successors * reply,
        rounds=chunks,
    )
