"""Beam search by the large model's own probabilities: a baseline, no guide. Ids equal transformers' `num_beams`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from consilience.search.chunks import refuse_doubled, result_of
from consilience.search.sampling import LargeModel, Opened, Place
from consilience.search.settings import Finish, Hypothesis, Prompt, SearchSettings, Update


@dataclass
class _TokenSearch:
    prompt: Prompt
    settings: SearchSettings
    opened: Opened
    beams: list[Hypothesis]
    finished: list[Hypothesis] = field(default_factory=list)  # best first, at most W; `score` is per token
    tokens: int = 0


class BeamSearch:
    """Searches under way, each for its own prompt; the interface is that of `chunks.Search`. A step is a token."""

    def __init__(self, large: LargeModel) -> None:
        self.large = large
        self.under_way: dict[str, _TokenSearch] = {}
        large.speaks = False

    def add(self, prompt: Prompt, settings: SearchSettings) -> None:
        """Reads the prompt. Raises `DataError` when it does not fit the model or its template."""
        refuse_doubled(self.under_way, prompt)
        opened = self.large.open(prompt, settings)
        self.under_way[prompt.id] = _TokenSearch(prompt, settings, opened, [self.large.root(opened)])

    def cancel(self, id_: str) -> None:
        """Forgets a prompt; nothing happens when it is not under way."""
        one = self.under_way.pop(id_, None)
        if one is not None:
            self.large.close(one.opened)

    def advance(self) -> list[Update]:
        """One token for every prompt under way. Nothing is settled before a search is over."""
        searches = list(self.under_way.values())
        logits_NV, at = self.large.logits([(one.opened, [beam.place.nodes for beam in one.beams]) for one in searches])
        logprobs_NV = logits_NV.log_softmax(-1)
        self.large.models[0].refuse_nan(logprobs_NV[:, 0])
        return [self._step(one, logprobs_NV[[at[beam.place.nodes[0]] for beam in one.beams]]) for one in searches]

    def _step(self, one: _TokenSearch, logprobs_WV: Tensor) -> Update:
        settings, width = one.settings, one.settings.width
        one.tokens += 1
        so_far_W = torch.tensor([beam.logprob for beam in one.beams], device=logprobs_WV.device)
        total_WV = logprobs_WV + so_far_W[:, None]
        # Enough that W go on even if every beam's endings are all among the best.
        best = total_WV.flatten().topk(min((len(self.large.ends) + 1) * width, total_WV.numel()))
        vocabulary = total_WV.shape[1]
        candidates = [
            self._child(one.opened, one.beams[place // vocabulary], place % vocabulary, logprob)
            for logprob, place in zip(best.values.tolist(), best.indices.tolist())
        ]
        ended = [each for each in candidates[:width] if each.finish]
        for each in ended:
            each.score = each.logprob / one.tokens**settings.length_penalty
        one.finished = sorted([*one.finished, *ended], key=lambda each: -each.score)[:width]
        one.beams = [each for each in candidates if each.finish is None][:width]
        if one.beams and not self._is_settled(one):
            self.large.keep(one.opened, one.beams)
            return Update(one.prompt.id, "")
        self.cancel(one.prompt.id)
        return result_of(one.prompt, settings, one.opened, self.large, one.finished, chunks=one.tokens, guided=False)

    def _child(self, opened: Opened, parent: Hypothesis, token: int, logprob: float) -> Hypothesis:
        if token in self.large.ends:
            return replace(parent, finish=Finish.STOP, end=token, logprob=logprob)
        ids = (*parent.ids, token)
        nodes = tuple(tree.after(node, token)[0] for tree, node in zip(opened.trees, parent.place.nodes))
        stops = self.large.has_stopped(opened, ids)
        finish = Finish.STOP if stops else Finish.LENGTH if len(ids) == opened.limit else None
        return Hypothesis(ids=ids, text="", finish=finish, logprob=logprob, place=Place(nodes))

    def _is_settled(self, one: _TokenSearch) -> bool:
        """transformers' rule: no beam, ended now, would be better than the worst of W endings."""
        if len(one.finished) < one.settings.width:
            return False
        possible = one.beams[0].logprob / one.tokens**one.settings.length_penalty
        return possible <= one.finished[-1].score
