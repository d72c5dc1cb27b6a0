"""Weak-to-strong search: a frozen large model, made better by a small pair, tuned and untuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.search.chunks import Proposer, Search, Searches, search
    from consilience.search.forward import TreeModel
    from consilience.search.guide import Guide
    from consilience.search.methods import METHODS, Models
    from consilience.search.sampling import LargeModel, Wanted
    from consilience.search.settings import Finish, Hypothesis, Prompt, Reply, Result, SearchSettings, Update

__all__ = [
    "METHODS",
    "Finish",
    "Guide",
    "Hypothesis",
    "LargeModel",
    "Models",
    "Prompt",
    "Proposer",
    "Reply",
    "Result",
    "Search",
    "SearchSettings",
    "Searches",
    "TreeModel",
    "Update",
    "Wanted",
    "search",
]


def __getattr__(name: str) -> Any:
    """What searches is imported when it is asked for: a door that shows defaults in its help loads no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from consilience.search import chunks, forward, guide, methods, sampling, settings

    modules = (chunks, forward, guide, methods, sampling, settings)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
