"""W2S-AlignTree (Ding et al., AAAI 2026, arXiv 2511.11518): Monte Carlo tree search with the same small pair as value.

Every iteration goes down from the prompt by an entropy-aware PUCT, samples K continuations of L tokens of the leaf it
comes to, scores them by the pair, and hands the best child's score up. Where chunk-level beam search drops a hypothesis
for ever, this one can come back to it.

As published: the rule, the mean probability of a chunk's tokens as its prior, values that are the maximum of the
children's, finished texts never chosen again. Otherwise: a child's first token is drawn with replacement, and equal
children are one; the best finished text of the whole tree is returned, where the published code looks at those below
the ten most promising nodes; a tree without any goes on until it has one.

Shapes: M children.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from consilience.search.chunks import open_both, refuse_doubled, result_of
from consilience.search.guide import Guide
from consilience.search.sampling import LargeModel, Wanted
from consilience.search.selection import promise
from consilience.search.settings import Hypothesis, Prompt, SearchSettings, Update


@dataclass(eq=False)
class _State:
    """A hypothesis in the search tree."""

    hypothesis: Hypothesis
    prior: float = 1.0
    value: float = -math.inf
    visits: int = 0
    entropy: float = 0.0  # of the token after it, in bits
    children: list[_State] = field(default_factory=list)


@dataclass
class _TreeSearch:
    prompt: Prompt
    settings: SearchSettings
    opened: Any
    guided: Any
    root: _State
    iterations: int = 0
    finished: list[Hypothesis] = field(default_factory=list)


class AlignTree:
    """Searches under way, each for its own prompt; the interface is that of `chunks.Search`."""

    def __init__(self, large: LargeModel, guide: Guide) -> None:
        self.large, self.guide = large, guide
        self.under_way: dict[str, _TreeSearch] = {}
        large.speaks = not guide.by_ids

    def add(self, prompt: Prompt, settings: SearchSettings) -> None:
        """Reads the prompt. Raises `DataError` when it does not fit a model or its template."""
        refuse_doubled(self.under_way, prompt)
        opened, guided = open_both(self.large, self.guide, prompt, settings)
        root = _State(self.large.root(opened))
        self.under_way[prompt.id] = _TreeSearch(prompt, settings, opened, guided, root)

    def cancel(self, id_: str) -> None:
        """Forgets a prompt; nothing happens when it is not under way."""
        one = self.under_way.pop(id_, None)
        if one is not None:
            self.large.close(one.opened)
            self.guide.close(one.guided)

    def advance(self) -> list[Update]:
        """One iteration for every prompt under way. Nothing is settled before a search is over."""
        searches = list(self.under_way.values())
        paths = [_descend(one) for one in searches]
        candidates = self.large.extend(
            [
                Wanted(one.opened, [path[-1].hypothesis] * one.settings.successors, one.settings.chunk)
                for one, path in zip(searches, paths)
            ]
        )
        self.guide.score([(one.guided, found) for one, found in zip(searches, candidates)])
        return [self._hand_up(one, path, found) for one, path, found in zip(searches, paths, candidates)]

    def _hand_up(self, one: _TreeSearch, path: list[_State], candidates: list[Hypothesis]) -> Update:
        leaf = path[-1]
        leaf.entropy = candidates[0].entropy
        leaf.children = list(_children(leaf.hypothesis, candidates))
        one.finished += [child.hypothesis for child in leaf.children if child.hypothesis.finish]
        for state in reversed(path):
            state.visits += 1
            state.value = max(child.value for child in state.children)
        one.iterations += 1
        exhausted = one.root.value == -math.inf  # every text in the tree is finished
        if not exhausted and (one.iterations < one.settings.iterations or not one.finished):
            return Update(one.prompt.id, "")
        self.cancel(one.prompt.id)
        best = sorted(one.finished, key=lambda each: -each.score)[: one.settings.width]
        return result_of(one.prompt, one.settings, one.opened, self.large, best, chunks=one.iterations, guided=True)


def _descend(one: _TreeSearch) -> list[_State]:
    """The way from the root to a leaf: at every state the most promising child."""
    settings = one.settings
    path = [one.root]
    while path[-1].children:
        state = path[-1]
        promises = promise(
            [child.value for child in state.children],
            [child.prior for child in state.children],
            [child.visits for child in state.children],
            parent_visits=state.visits,
            entropy=state.entropy,
            c=settings.exploration,
            w=settings.entropy_weight,
        )
        path.append(state.children[int(promises.argmax())])
    return path


def _children(parent: Hypothesis, candidates: list[Hypothesis]) -> Iterator[_State]:
    """Equal continuations once; a finished one has nothing below it, and is never gone down to."""
    seen = set()
    for each in candidates:
        identity = (each.ids, each.end)
        if identity in seen:
            continue
        seen.add(identity)
        drawn = len(each.ids) - len(parent.ids) + (each.end is not None)
        prior = math.exp((each.logprob - parent.logprob) / drawn)
        yield _State(each, prior, -math.inf if each.finish else each.score, visits=1)
