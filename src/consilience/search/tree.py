"""The texts of one search as a tree of tokens: what hypotheses have in common is there once.

A node's keys and values lie in a slot of the cache. A slot is given back when no survivor comes after its node, and
taken again by the next node: nothing is ever moved, and attention finds its way by masks.

Shapes: S slots.
"""

from __future__ import annotations

import gc
import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

OBJECTS = 50_000  # new ones between two looks for cycles
UNSEEN = -1  # the slot of a node that the model has not read yet


@dataclass(slots=True, eq=False)
class Node:
    """A token after all tokens above it."""

    token: int
    depth: int  # its position in the model's sequence
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)
    slot: int = UNSEEN
    logprob: float = 0.0  # of the tokens from the prompt's end to here, in nats, where somebody works it out
    visible_S: NDArray[np.bool_] | None = None  # the slots of itself and of those above; kept for the newest only


class Tree:
    """The prompt, a chain of nodes in the first slots, and everything that was sampled after it and is still of use."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.root = node = Node(prompt[0], 0, None, slot=0)
        for token in prompt[1:]:
            node.children[token] = node = Node(token, node.depth + 1, node, slot=node.depth + 1)
        self.tip = node  # the prompt's last token
        self.row = UNSEEN  # of the cache
        self.slots = len(prompt)  # the first so many are the prompt's and the nodes'
        self.free: list[int] = []  # those of them that no node has any more; a heap
        self.depth_S = np.arange(len(prompt))  # the position of the node in each slot
        self.reply: set[Node] = set()  # the nodes after the prompt

    @property
    def used(self) -> int:
        """Slots that hold a node."""
        return self.slots - len(self.free)

    def in_prompt(self, node: Node) -> bool:
        return 0 <= node.slot <= self.tip.depth

    def after(self, node: Node, token: int) -> tuple[Node, bool]:
        """The node of `token` after `node`, and whether it was made by this call."""
        found = node.children.get(token)
        if found is not None:
            return found, False
        node.children[token] = found = Node(token, node.depth + 1, node)
        self.reply.add(found)
        return found, True

    def place(self, node: Node) -> None:
        """Gives `node` a slot if it has none, and works out what it sees; those above it have theirs."""
        if node.slot == UNSEEN:
            if self.free:
                node.slot = heapq.heappop(self.free)
            else:
                node.slot, self.slots = self.slots, self.slots + 1
            if node.slot >= len(self.depth_S):
                self.depth_S = np.concatenate([self.depth_S, np.zeros(64 + len(self.depth_S) // 4, np.intp)])
            self.depth_S[node.slot] = node.depth
        if node.visible_S is None:
            node.visible_S = self._visible(node)

    def _visible(self, node: Node) -> NDArray[np.bool_]:
        slots = []
        above: Node | None = node
        while above is not None and above.visible_S is None:
            slots.append(above.slot)
            above = above.parent
        seen = above.visible_S if above is not None and above.visible_S is not None else np.zeros(0, np.bool_)
        visible_S = np.zeros(max(len(seen), max(slots) + 1), np.bool_)
        visible_S[: len(seen)] = seen
        visible_S[slots] = True
        return visible_S

    def keep(self, tips: Iterable[Node]) -> None:
        """Forgets every node after the prompt that is neither one of `tips` nor above one of them."""
        kept: set[Node] = set()
        newest: set[Node | None] = set()
        for tip in tips:
            newest |= {tip, tip.parent}  # what comes next is placed below them
            node: Node | None = tip
            while node is not None and node not in kept and not self.in_prompt(node):
                kept.add(node)
                node = node.parent
        for node in self.reply - kept:
            if node.parent is not None and (node.parent in kept or self.in_prompt(node.parent)):
                del node.parent.children[node.token]
            if node.slot != UNSEEN:
                self.free.append(node.slot)
        for node in kept - newest:
            node.visible_S = None
        self.reply = kept
        self.free.sort()  # a sorted list is a heap
        while self.free and self.free[-1] == self.slots - 1:  # attention reads up to the last slot in use
            self.free.pop()
            self.slots -= 1


@contextmanager
def rare_collections() -> Iterator[None]:
    """Until the end Python looks for dead cycles of objects more rarely: nodes know one another, and going through
    all of them after every few hundred new ones is a tenth of a search of small models. For programs, not libraries.
    """
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
