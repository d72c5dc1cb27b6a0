"""Weak-to-strong search: a frozen large model, made better by a small pair, tuned and untuned."""

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
