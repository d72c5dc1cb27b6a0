"""Knowledge fusion: represent -> match -> select -> learn, one target per source.

FuseLLM (arXiv 2401.10491), FuseChat (arXiv 2402.16107, 2408.07990); departures are in docs/papers.md.
"""

from consilience.fuse.learn import Batches, FusionExamples, SupervisedExamples, collate, fusion_objective
from consilience.fuse.losses import LOSSES
from consilience.fuse.match import AlignSettings, Match, match
from consilience.fuse.represent import Representation, RepresentSettings, refuse_top_k, represent
from consilience.fuse.select import FUSION_FUNCTIONS, SelectSettings, select
from consilience.fuse.teach import TEACHINGS

__all__ = [
    "FUSION_FUNCTIONS",
    "LOSSES",
    "TEACHINGS",
    "AlignSettings",
    "Batches",
    "FusionExamples",
    "Match",
    "RepresentSettings",
    "Representation",
    "SelectSettings",
    "SupervisedExamples",
    "collate",
    "fusion_objective",
    "match",
    "refuse_top_k",
    "represent",
    "select",
]
