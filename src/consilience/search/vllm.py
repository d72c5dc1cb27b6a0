"""The frozen large model under vLLM: chunks by its own scheduler; what beginnings share, its prefix cache has read.

It tells no logits of the whole vocabulary while it writes, so the methods are those that need none (`corners`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from consilience.errors import DataError
from consilience.models import Sampling
from consilience.models.vllm import Continued, GoOn, VllmModel
from consilience.rng import seed_of
from consilience.search.sampling import Wanted
from consilience.search.settings import Finish, Hypothesis, Prompt, SearchSettings
from consilience.search.texts import NOTHING, Speaker, completes_stop, prompt_ids, shown


@dataclass
class Opened:
    """One prompt before the large model."""

    prompt: Prompt
    settings: SearchSettings
    ids: list[int]
    speaker: Speaker
    limit: int  # tokens of the reply

    @property
    def prompt_tokens(self) -> int:
        """Of the prompt under the model's own template."""
        return len(self.ids)


class VllmLarge:
    """A `Proposer`. A beginning's continuations have a seed of its own, whatever else is under way beside it."""

    speaks = True

    def __init__(self, model: VllmModel, *, raw: bool = False) -> None:
        self.model, self.raw = model, raw
        self.tokenizer = model.tokenizer

    def open(self, prompt: Prompt, settings: SearchSettings) -> Opened:
        """Raises `DataError` when the prompt leaves no room, or when the chat template refuses it."""
        ids = prompt_ids(self.tokenizer, prompt.messages, raw=self.raw)
        room = self.model.positions - len(ids)
        if room < 1:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, but {self.model.name} reads {self.model.positions}. "
                "Shorten the prompt, or give a longer max_model_len."
            )
        return Opened(prompt, settings, ids, Speaker(self.tokenizer, ids), min(settings.max_new_tokens, room))

    def root(self, opened: Opened) -> Hypothesis:
        """The empty reply."""
        return Hypothesis(ids=(), text="", place=NOTHING)

    def extend(self, wanted: Sequence[Wanted]) -> list[list[Hypothesis]]:
        """The continuations, in the order of the parents; of one parent all in one request."""
        asked: list[GoOn] = []
        meant: list[tuple[Opened, Hypothesis]] = []
        for want in wanted:
            opened: Opened = want.opened  # type: ignore[assignment]  # ours, not transformers'
            live = {id(parent): parent for parent in want.parents if parent.finish is None}
            counts = Counter(map(id, want.parents))
            for key, parent in live.items():
                left = opened.limit - len(parent.ids)
                asked.append(_go_on(opened, parent, counts[key], min(want.tokens or left, left)))
                meant.append((opened, parent))
        found: dict[int, list[Hypothesis]] = {}
        for (opened, parent), several in zip(meant, self.model.go_on(asked), strict=True):
            found[id(parent)] = [self._hypothesis(opened, parent, each) for each in several]
        return [[parent if parent.finish else found[id(parent)].pop(0) for parent in want.parents] for want in wanted]

    def _hypothesis(self, opened: Opened, parent: Hypothesis, continued: Continued) -> Hypothesis:
        ids, stop = list(parent.ids), opened.settings.stop
        finish, end = (Finish.STOP, continued.end) if continued.stopped else (None, None)
        for token in continued.ids:
            ids.append(token)
            if completes_stop(partial(self.show, opened), stop, ids):  # across two chunks vLLM does not see it
                finish, end = Finish.STOP, None
                break
        if finish is None and len(ids) >= opened.limit:
            finish = Finish.LENGTH
        text, said = opened.speaker.go_on(parent.text, parent.place, ids) if self.speaks else ("", NOTHING)
        return Hypothesis(
            ids=tuple(ids),
            text=text,
            finish=finish,
            end=end,
            logprob=parent.logprob + continued.logprob,
            place=said,
            mark=parent.mark,
        )

    def keep(self, opened: Opened, hypotheses: Sequence[Hypothesis]) -> None:
        """vLLM's cache forgets what has not been used for longest."""

    def close(self, opened: Opened) -> None:
        """Nothing to do either."""

    def show(self, opened: Opened, ids: Sequence[int]) -> str:
        """A reply as its reader sees it; one that goes on with plain text keeps the blank it may begin with."""
        return opened.speaker.show(ids) if self.raw else shown(self.tokenizer, ids)


def _go_on(opened: Opened, parent: Hypothesis, count: int, tokens: int) -> GoOn:
    prompt, settings = opened.prompt, opened.settings
    sampling = Sampling(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p, stop=settings.stop
    )
    written = " ".join(map(str, parent.ids))
    seed = seed_of(prompt.seed, "search", prompt.stream or prompt.id, written)
    return GoOn(np.array([*opened.ids, *parent.ids], dtype=np.int32), count, tokens, sampling, seed)
