"""Plain sampling of one transformers model: requests join and leave a common batch between any two tokens.

Shapes: B replies written at once, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from consilience.errors import BackendError
from consilience.models import ChatModel
from consilience.models.sample import end_ids
from consilience.rng import seed_of
from consilience.serve.draw import draw
from consilience.serve.generate import Job, Piece, TokenLogprob
from consilience.serve.rows import Rows
from consilience.serve.text import Stops, TextStream

PREFILL_TOKENS = 512  # of prompts between two tokens of the replies in progress: a long prompt holds nobody up
CONTEXT_TOKENS = 8  # of a prompt that a completion's first token is decoded behind
ATTENDED = {"full_attention", "sliding_attention", "chunked_attention"}


@dataclass(slots=True)
class _Reply:
    """One reply in progress; its place in the list is its row in the batch."""

    job: Job
    choice: int
    generator: torch.Generator
    text: TextStream
    stops: Stops
    last_id: int = -1
    tokens: int = 0
    counts: Counter[int] = field(default_factory=Counter)  # how often it has each token


@dataclass(slots=True)
class _Prompts:
    """Prompts being read together, padded on the left."""

    jobs: list[Job]
    ids_BT: Tensor
    mask_BT: Tensor
    done: int = 0  # columns
    cache: DynamicCache = field(default_factory=DynamicCache)


class PlainSampling:
    """A `Generator`: every reply is drawn from the model's own distribution, token by token."""

    def __init__(self, chat_model: ChatModel, *, max_replies: int) -> None:
        """Raises `BackendError` for a model whose layers keep something else than keys and values."""
        layers = set(getattr(chat_model.model.config.get_text_config(), "layer_types", None) or ())
        if unknown := layers - ATTENDED:
            raise BackendError(
                f"model {chat_model.name} has layers of kind {', '.join(sorted(unknown))}, whose state this server "
                "cannot batch. Serve it with vLLM; `consilience search --endpoint` can guide it there."
            )
        self.chat_model = chat_model
        self.max_replies = max_replies
        self.ends = frozenset(end_ids(chat_model))
        self.device = next(chat_model.model.parameters()).device
        self.last_only = "logits_to_keep" in inspect.signature(chat_model.model.forward).parameters
        self.clear()

    def clear(self) -> None:
        self.rows = Rows()
        self.replies: list[_Reply] = []
        self.waiting: deque[Job] = deque()
        self.prompts: _Prompts | None = None

    def fits(self, job: Job) -> bool:
        reading = self.prompts.jobs if self.prompts else []
        return len(self.replies) + sum(j.choices for j in (*reading, *self.waiting, job)) <= self.max_replies

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    @torch.inference_mode()
    def drop(self, job_id: str) -> None:
        self.waiting = deque(job for job in self.waiting if job.id != job_id)
        self._leave([row for row, reply in enumerate(self.replies) if reply.job.id == job_id])
        if self.prompts:  # read to the end with the others of its batch, and then left out
            self.prompts.jobs = [job if job.id != job_id else _dropped(job) for job in self.prompts.jobs]
            if not any(job.choices for job in self.prompts.jobs):
                self.prompts = None

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        pieces = []
        if self.prompts is None and self.waiting:
            self.prompts = self._next_prompts()
        if self.prompts:
            pieces += self._read_on(self.prompts)
        if self.replies:
            pieces += self._write_on()
        return pieces

    def _next_prompts(self) -> _Prompts:
        """The prompts that are waiting, first come first served, as many as one step reads."""
        jobs: list[Job] = []
        width = 0
        while self.waiting:
            wider = max(width, len(self.waiting[0].prompt_ids))
            if jobs and wider * (len(jobs) + 1) > PREFILL_TOKENS:
                break
            jobs.append(self.waiting.popleft())
            width = wider
        ids_BT = torch.zeros(len(jobs), width, dtype=torch.long)
        mask_BT = torch.zeros_like(ids_BT)
        for row, job in enumerate(jobs):
            begin = width - len(job.prompt_ids)
            ids_BT[row, begin:] = torch.tensor(job.prompt_ids)
            mask_BT[row, begin:] = 1
        return _Prompts(jobs, ids_BT.to(self.device), mask_BT.to(self.device))

    def _read_on(self, prompts: _Prompts) -> list[Piece]:
        rows, width = prompts.ids_BT.shape
        upto = min(width, prompts.done + max(1, PREFILL_TOKENS // rows))
        position_BT = (prompts.mask_BT.cumsum(-1) - 1).clamp_min(0)
        last_BV = self._forward(
            input_ids=prompts.ids_BT[:, prompts.done : upto],
            position_ids=position_BT[:, prompts.done : upto],
            attention_mask=prompts.mask_BT[:, :upto],
            past_key_values=prompts.cache,
        )
        prompts.done = upto
        if upto < width:
            return []
        self.prompts = None
        sources = [row for row, job in enumerate(prompts.jobs) for _ in range(job.choices)]
        if not sources:
            return []
        self.rows.add(prompts.cache, sources, [len(prompts.jobs[row].prompt_ids) for row in sources])
        fresh = [self._reply(job, choice) for job in prompts.jobs for choice in range(job.choices)]
        self.replies += fresh
        return self._draw(fresh, last_BV[torch.tensor(sources, device=last_BV.device)])

    def _reply(self, job: Job, choice: int) -> _Reply:
        generator = torch.Generator(self.device).manual_seed(seed_of(job.sampling.seed, "serve", str(choice)))
        context = job.prompt_ids[-CONTEXT_TOKENS:] if job.goes_on else ()
        stops = Stops(job.sampling.stop, keep=job.sampling.keep_stop)
        return _Reply(job, choice, generator, TextStream(self.chat_model.tokenizer, context), stops)

    def _write_on(self) -> list[Piece]:
        ids_B1 = torch.tensor([[reply.last_id] for reply in self.replies], device=self.device)
        last_BV = self._forward(input_ids=ids_B1, **self.rows.next_inputs(self.device))
        self.rows.grown()
        return self._draw(self.replies, last_BV)

    def _forward(self, **inputs: Any) -> Tensor:
        """Logits behind the last column, in float32."""
        if self.last_only:
            inputs["logits_to_keep"] = 1
        logits_BTV: Tensor = self.chat_model.model(use_cache=True, **inputs).logits
        return logits_BTV[:, -1].float()

    def _draw(self, replies: Sequence[_Reply], logits_BV: Tensor) -> list[Piece]:
        """The next token of each of `replies`, which are the last ones of the batch or all of them."""
        broken = (~logits_BV.amax(-1).isfinite()).tolist()  # NaN anywhere in a row is its maximum, too
        raw_BV = logits_BV
        changed = [row for row, reply in enumerate(replies) if self._changes_logits(reply)]
        if changed:
            logits_BV = logits_BV.clone()
            for row in changed:
                self._change(logits_BV[row], replies[row])
        ids = draw(logits_BV, [reply.job.sampling for reply in replies], [reply.generator for reply in replies])
        logprobs = self._logprobs(replies, raw_BV, ids)
        pieces = []
        first = len(self.replies) - len(replies)
        over = []
        for row, (reply, id_) in enumerate(zip(replies, ids, strict=True)):
            if broken[row]:
                piece = Piece(reply.job.id, reply.choice, "", error=f"model {self.chat_model.name} gives NaN")
            else:
                piece = self._advance(reply, id_, logprobs[row])
            if piece.finish or piece.error:
                over.append(first + row)
            if piece.text or piece.tokens or piece.finish or piece.error:
                pieces.append(piece)
        self._leave(over)
        if any(broken):
            self.rows.wipe()
        return pieces

    def _changes_logits(self, reply: _Reply) -> bool:
        own = reply.job.sampling
        penalties = own.presence_penalty or own.frequency_penalty or own.repetition_penalty != 1
        return bool(penalties or own.logit_bias or reply.tokens < own.min_tokens)

    def _change(self, logits_V: Tensor, reply: _Reply) -> None:
        """What a request wants of the logits before a token is drawn from them, in place."""
        own, device = reply.job.sampling, logits_V.device
        if own.logit_bias:
            ids, biases = zip(*own.logit_bias)
            logits_V[torch.tensor(ids, device=device)] += torch.tensor(biases, device=device)
        if reply.tokens < own.min_tokens:
            logits_V[[*self.ends | own.stop_ids]] = -torch.inf
        if own.repetition_penalty != 1:
            seen = torch.tensor([*{*reply.job.prompt_ids, *reply.counts}], device=device)
            logits = logits_V[seen]
            logits_V[seen] = torch.where(logits > 0, logits / own.repetition_penalty, logits * own.repetition_penalty)
        if reply.counts and (own.presence_penalty or own.frequency_penalty):
            written = torch.tensor([*reply.counts], device=device)
            times = torch.tensor([*reply.counts.values()], device=device)
            logits_V[written] -= own.presence_penalty + own.frequency_penalty * times

    def _advance(self, reply: _Reply, id_: int, logprob: TokenLogprob | None) -> Piece:
        sampling = reply.job.sampling
        reply.tokens += 1
        reply.last_id = id_
        reply.counts[id_] += 1
        ended = (id_ in self.ends and not sampling.ignore_end) or id_ in sampling.stop_ids
        text = reply.stops.push("" if ended else reply.text.push([id_]))
        finish = "stop" if ended or reply.stops.found else "length" if reply.tokens >= sampling.max_tokens else None
        if finish and not reply.stops.found:
            text += reply.stops.push(reply.text.finish())
            if reply.stops.found:
                finish = "stop"
            text += reply.stops.finish()
        shown = (logprob,) if logprob and not ended else ()
        return Piece(reply.job.id, reply.choice, text, 1, shown, finish)

    def _logprobs(self, replies: Sequence[_Reply], logits_BV: Tensor, ids: Sequence[int]) -> list[TokenLogprob | None]:
        found: list[TokenLogprob | None] = [None] * len(replies)
        for row, reply in enumerate(replies):
            if (wanted := reply.job.sampling.logprobs) is not None:
                logprobs_V = logits_BV[row].log_softmax(-1)
                best = logprobs_V.topk(min(wanted, len(logprobs_V)))
                pairs = zip(best.indices.tolist(), best.values.tolist())
                likeliest = tuple(pair for pair in pairs if pair[1] > -torch.inf)  # JSON has no infinity
                found[row] = TokenLogprob(ids[row], float(logprobs_V[ids[row]]), likeliest)
        return found

    def _leave(self, rows: Sequence[int]) -> None:
        if rows:
            self.replies = [self.replies[row] for row in self.rows.remove(rows)]


def _dropped(job: Job) -> Job:
    return Job(id=job.id, prompt_ids=job.prompt_ids, choices=0, sampling=job.sampling)
