"""Two models' tokens over the same text: which positions match, which token is which, and what a distribution becomes.

Pure functions on arrays: no file, no torch. `published` has what FuseLLM and FuseChat do after their alignments.
"""

from consilience.align.project import SparseRows, project
from consilience.align.spans import Alignment, align_spans, text_keys
from consilience.align.vocabulary import VOCABULARY_MAPPINGS, VocabularyMapping, count_pairs, exact_matches
from consilience.align.warping import SEQUENCE_ALIGNMENTS, Marks, Warping

__all__ = [
    "SEQUENCE_ALIGNMENTS",
    "VOCABULARY_MAPPINGS",
    "Alignment",
    "Marks",
    "SparseRows",
    "VocabularyMapping",
    "Warping",
    "align_spans",
    "count_pairs",
    "exact_matches",
    "project",
    "text_keys",
]
