"""The small pair: what a reply gains by having been tuned, log π_tuned − log π_untuned, from the prompt's end on.

Each side reads a tree of its own tokens, so what hypotheses share is read once, and a chunk costs its new tokens only.
Where its tokenizer is not the large model's, a reply comes as text: it is tokenized again after every chunk, keeps the
nodes of the tokens that stayed, and leaves the tree where they did not.

Shapes: N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from consilience.errors import ConfigError, DataError
from consilience.models import context_of
from consilience.search.forward import LOGITS_HELD, TreeModel, blocks
from consilience.search.settings import Finish, Hypothesis, Prompt
from consilience.search.texts import Retokenizer, prompt_ids, same_vocabulary
from consilience.search.tree import Node, Tree

AT_ONCE = 512  # new tokens of a prompt in one pass of the pair


@dataclass
class Reading:
    """One prompt before one side of the pair."""

    tree: Tree
    after_prompt_V: Tensor  # log-probabilities
    retokenize: Retokenizer
    prompt_tokens: int


class Side:
    """One model of the pair."""

    def __init__(self, model: TreeModel, *, raw: bool, published: bool, temperature: float) -> None:
        self.model, self.raw, self.published, self.temperature = model, raw, published, temperature
        self.tokenizer = model.chat_model.tokenizer
        self.eos: int | None = self.tokenizer.eos_token_id  # transformers looks it up anew each time
        self.context = context_of(model.model)

    def open(self, prompt: Prompt) -> Reading:
        whole = None
        if self.published and self.raw:  # the published scorer adds no special tokens
            whole = "".join(message.content for message in prompt.messages)
            ids = self.tokenizer(whole, add_special_tokens=False)["input_ids"]
        else:
            ids = prompt_ids(self.tokenizer, prompt.messages, raw=self.raw)
        if len(ids) >= self.context:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens for {self.model.chat_model.name}, which reads "
                f"{self.context}. Shorten the prompt, or take a guide with a longer context."
            )
        tree, logits_V = self.model.plant(ids)
        after_prompt_V = self._cooled(logits_V).log_softmax(-1)
        return Reading(tree, after_prompt_V, Retokenizer(self.tokenizer, ids, whole=whole), len(ids))

    def _cooled(self, logits: Tensor) -> Tensor:
        return logits if self.temperature == 1 else logits / self.temperature

    def read(self, asked: Sequence[tuple[Reading, Sequence[Node]]]) -> None:
        """Sets `logprob` of new nodes, given parents first, by reading each parent once."""
        own: dict[Node, float] = {}  # of the token alone
        children: dict[Node, list[Node]] = {}
        wanted: list[tuple[Tree, Sequence[Node]]] = []
        for reading, new in asked:
            parents: dict[Node, None] = {}
            first = [node for node in new if node.parent is reading.tree.tip]  # what follows the prompt is known
            own |= zip(first, reading.after_prompt_V[[node.token for node in first]].tolist())
            for node in new:
                if node.parent is not None and node not in own:
                    children.setdefault(node.parent, []).append(node)
                    parents[node.parent] = None
            if parents:
                wanted.append((reading.tree, list(parents)))
        most = LOGITS_HELD // self.model.chat_model.vocabulary_size // max(1, len(wanted))
        for block in blocks(wanted, max(1, most)):
            logits_NV = self._cooled(self.model.forward(block))
            norm_N = logits_NV.logsumexp(-1)
            self.model.refuse_nan(norm_N)
            read = [node for _, nodes in block for node in nodes]
            rows, tokens = zip(*((n, child.token) for n, node in enumerate(read) for child in children[node]))
            at = list(rows)
            found = (logits_NV[at, list(tokens)] - norm_N[at]).tolist()
            own |= zip((child for node in read for child in children[node]), found)
        for _, new in asked:
            for node in new:
                assert node.parent is not None
                node.logprob = node.parent.logprob + own[node]  # the prompt's own nodes have 0


class Mark(NamedTuple):
    """How far the pair has read a hypothesis."""

    nodes: dict[Side, Node]  # the last one in each side's tree
    ids: int  # so many of the hypothesis's
    is_final: bool  # the hypothesis is finished, and its score holds


Guided = dict[Side, Reading]  # one prompt before the pair


def _parts(hypotheses: Sequence[Hypothesis]) -> list[list[Hypothesis]]:
    """`hypotheses` in parts of at most AT_ONCE new tokens, or of one."""
    parts: list[list[Hypothesis]] = []
    left = 0
    for each in hypotheses:
        new = len(each.ids) - (each.mark.ids if each.mark else 0) if each.ids else len(each.text) // 4
        if not parts or new > left:
            parts.append([])
            left = AT_ONCE
        parts[-1].append(each)
        left -= new
    return parts


def _is_scored(hypothesis: Hypothesis) -> bool:
    """Whether its score holds for good."""
    return hypothesis.mark is not None and bool(hypothesis.mark.is_final)


class Guide:
    """The pair as a scorer of hypotheses."""

    def __init__(
        self,
        tuned: TreeModel,
        untuned: TreeModel,
        *,
        tokenizer: Any = None,
        raw: bool = False,
        published: bool = False,
        temperature: float = 1.0,
        per_token: bool = False,
    ) -> None:
        """`tokenizer` is the large model's, None where it only gives text. Raises `ConfigError` for an unlike pair."""
        ours, theirs = tuned.chat_model.tokenizer, untuned.chat_model.tokenizer
        if not same_vocabulary(ours, theirs):
            raise ConfigError(
                f"{tuned.chat_model.name} and {untuned.chat_model.name} have different tokenizers, so their scores are "
                "of different tokens and cannot be subtracted. Give the model that the tuned one was tuned from."
            )
        self.tuned, self.untuned = (
            Side(model, raw=raw, published=published, temperature=temperature) for model in (tuned, untuned)
        )
        self.sides = (self.tuned, self.untuned)
        self.by_ids = not published and tokenizer is not None and same_vocabulary(ours, tokenizer)
        self.per_token, self.published = per_token, published

    def open(self, prompt: Prompt) -> Guided:
        """Raises `DataError` when the prompt does not fit, or a template refuses it."""
        guided: Guided = {}
        try:
            for side in self.sides:
                guided[side] = side.open(prompt)
        except Exception:
            self.close(guided)
            raise
        return guided

    def room(self, guided: Guided) -> int:
        """How many tokens of a reply the pair has positions for."""
        return min(side.context - reading.prompt_tokens for side, reading in guided.items())

    def score(self, asked: Sequence[tuple[Guided, Sequence[Hypothesis]]]) -> None:
        """Sets `score` of hypotheses, in nats. One that runs out of the pair's positions is finished there.

        Long ones are read some at a time, and what is finished is forgotten before the next: whole replies of best-of-n
        have little in common, and a pass takes time and memory for every two tokens of a tree.
        """
        parts = [(guided, _parts([each for each in several if not _is_scored(each)])) for guided, several in asked]
        for turn in range(max((len(several) for _, several in parts), default=0)):
            now = [(guided, several[turn]) for guided, several in parts if turn < len(several)]
            self._score(now)
            for guided, several in parts:
                if turn + 1 < len(several) and any(_is_scored(each) for each in several[turn]):
                    self._keep(guided, [each.mark for part in several for each in part if not _is_scored(each)])

    def _score(self, asked: Sequence[tuple[Guided, Sequence[Hypothesis]]]) -> None:
        ends = {
            side: self._read(side, [(guided[side], hypotheses) for guided, hypotheses in asked]) for side in self.sides
        }
        hypotheses = [(guided, hypothesis) for guided, several in asked for hypothesis in several]
        for (guided, hypothesis), tuned, untuned in zip(hypotheses, ends[self.tuned], ends[self.untuned]):
            hypothesis.score = tuned.logprob - untuned.logprob
            if self.per_token:
                hypothesis.score /= max(1, tuned.depth - guided[self.tuned].tree.tip.depth)
            nodes = {self.tuned: tuned, self.untuned: untuned}
            hypothesis.mark = Mark(nodes, len(hypothesis.ids), hypothesis.finish is not None)

    def _read(self, side: Side, asked: Sequence[tuple[Reading, Sequence[Hypothesis]]]) -> list[Node]:
        """The last node of every hypothesis in its tree of that side, with its log-probability."""
        ends, wanted = [], []
        for reading, hypotheses in asked:
            new: list[Node] = []
            for hypothesis in hypotheses:
                ends.append(self._follow(side, reading, hypothesis, new))
            wanted.append((reading, new))
        side.read(wanted)
        return ends

    def _follow(self, side: Side, reading: Reading, hypothesis: Hypothesis, new: list[Node]) -> Node:
        """Walks a hypothesis down the side's tree; nodes that had to be made are added to `new`."""
        tree, mark = reading.tree, hypothesis.mark
        if self.by_ids:
            node = mark.nodes[side] if mark else tree.tip
            ids = list(hypothesis.ids[mark.ids if mark else 0 :])
        else:
            node, ids = tree.root, reading.retokenize(hypothesis.text)[1:]
        end = self._end(side, hypothesis)
        for token in ids if end is None else [*ids, end]:
            if node.depth + 1 >= side.context:
                hypothesis.finish = hypothesis.finish or Finish.LENGTH
                break
            node, made = tree.after(node, token)
            if made:
                new.append(node)
        return node

    def _end(self, side: Side, hypothesis: Hypothesis) -> int | None:
        """The end-of-text token that counts: the one that was sampled. As published, every ending counts one."""
        if self.published:
            return side.eos if hypothesis.finish is not None else None
        if hypothesis.end is None:
            return None
        return hypothesis.end if self.by_ids else side.eos

    def keep(self, guided: Guided, hypotheses: Sequence[Hypothesis]) -> None:
        """Forgets what no unfinished one of `hypotheses` goes on from."""
        self._keep(guided, [hypothesis.mark for hypothesis in hypotheses if hypothesis.finish is None])

    def _keep(self, guided: Guided, marks: Sequence[Mark | None]) -> None:
        known = [mark for mark in marks if mark is not None]
        for side, reading in guided.items():
            reading.tree.keep(mark.nodes[side] for mark in known)

    def close(self, guided: Guided) -> None:
        for side, reading in guided.items():
            side.model.fell(reading.tree)
