"""Two models' tokens over the same text: which positions match, which token is which, and what a distribution becomes.

Pure functions on arrays: no file, no torch.
"""

from consilience.align.project import SparseRows, project
from consilience.align.spans import Alignment, align_spans, text_keys
from consilience.align.vocabulary import VOCABULARY_MAPPINGS, VocabularyMapping, count_pairs, exact_matches

__all__ = [
    "VOCABULARY_MAPPINGS",
    "Alignment",
    "SparseRows",
    "VocabularyMapping",
    "align_spans",
    "count_pairs",
    "exact_matches",
    "project",
    "text_keys",
]
