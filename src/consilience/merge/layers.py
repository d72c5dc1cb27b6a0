"""Which layer a tensor belongs to, by its name: no table of architectures."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass

NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")

# What lies before and what behind the layers, for stacks whose first and last slice come from different models.
BEFORE = re.compile(r"embed(?!_out)|wte|wpe|tok_embeddings|word_embeddings|patch")
BEHIND = re.compile(r"lm_head|embed_out|(^|\.)(norm|final_?norm|final_layer_?norm|ln_f|output|score|classifier)\b")


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor in a stack of layers: `stack` is the name before the layer's number, `rest` what follows it."""

    stack: str
    layer: int
    rest: str

    def named(self, layer: int) -> str:
        """The name of the same tensor in another layer."""
        return f"{self.stack}{layer}{self.rest}"


@functools.cache
def place_of(name: str) -> Place | None:
    """Where a tensor lies by the first number in its name: `model.layers.3.mlp.up_proj.weight` is in layer 3.

    None for a tensor outside the layers. Experts have a second number, which is part of `rest`.
    """
    found = NUMBER.search(name)
    if found is None:
        return None
    return Place(name[: found.start(1)], int(found[1]), name[found.end(1) :])


def stack_sizes(names: Iterable[str]) -> dict[str, int]:
    """Number of layers of every stack among the tensors' names."""
    sizes: dict[str, int] = {}
    for place in filter(None, map(place_of, names)):
        sizes[place.stack] = max(sizes.get(place.stack, 0), place.layer + 1)
    return sizes


def depth_of(layer: int, layers: int) -> float:
    """0 in the first of `layers` layers, 1 in the last; 1 where there is only one, as mergekit has it."""
    return layer / (layers - 1) if layers > 1 else 1.0
