"""Chunk-level beam search with other numbers: methods for any large model that can go on with a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from consilience.search.settings import SearchSettings

Corner = Callable[[SearchSettings], SearchSettings]


def cbs(settings: SearchSettings) -> SearchSettings:
    """W hypotheses, K continuations of each, L tokens at a time: the search itself."""
    return settings


def best_of_n(settings: SearchSettings) -> SearchSettings:
    """N = W·K whole replies; the pair picks one."""
    n = settings.width * settings.successors
    return settings.model_copy(update={"width": 1, "successors": n, "chunk": None})


def sample(settings: SearchSettings) -> SearchSettings:
    """One reply of the large model alone."""
    return settings.model_copy(update={"width": 1, "successors": 1, "chunk": None})


CORNERS: Mapping[str, Corner] = {"cbs": cbs, "best-of-n": best_of_n, "sample": sample}
