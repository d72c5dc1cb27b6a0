"""Two models' tokens over the same text: which positions match, which token is which, and what a distribution becomes.

Pure functions on arrays: no file, no torch. `published` has what FuseLLM and FuseChat do after their alignments.
"""

from consilience.align.counting import PairCounter, count_pairs
from consilience.align.pieces import END
from consilience.align.project import SparseRows, project
from consilience.align.quality import (
    CHUNK_TYPES,
    ONE_TO_ONE,
    ChunkCount,
    TokenCount,
    chunk_types,
    likeliest_partner,
    most_frequent,
    side_by_side,
)
from consilience.align.sequence import SEQUENCE_ALIGNMENTS, SequenceAlignment, Spelling, TokenText
from consilience.align.spans import Alignment, align_spans, text_keys
from consilience.align.vocabulary import VOCABULARY_MAPPINGS, Vocabularies, VocabularyMapping, exact_matches
from consilience.align.warping import WARPINGS, Marks, Warping

__all__ = [
    "CHUNK_TYPES",
    "END",
    "ONE_TO_ONE",
    "SEQUENCE_ALIGNMENTS",
    "VOCABULARY_MAPPINGS",
    "WARPINGS",
    "Alignment",
    "ChunkCount",
    "Marks",
    "PairCounter",
    "SequenceAlignment",
    "SparseRows",
    "Spelling",
    "TokenCount",
    "TokenText",
    "Vocabularies",
    "VocabularyMapping",
    "Warping",
    "align_spans",
    "chunk_types",
    "count_pairs",
    "exact_matches",
    "likeliest_partner",
    "most_frequent",
    "project",
    "side_by_side",
    "text_keys",
]
