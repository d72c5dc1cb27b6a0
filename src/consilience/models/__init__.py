"""Chat models in this process (transformers): load, score the replies of a text, sample a reply."""

from consilience.models.load import ChatModel, context_of, load_model, load_tokenizer, vocabulary_size
from consilience.models.sample import sample_greedily
from consilience.models.score import ReplyScores, score_replies

__all__ = [
    "ChatModel",
    "ReplyScores",
    "context_of",
    "load_model",
    "load_tokenizer",
    "sample_greedily",
    "score_replies",
    "vocabulary_size",
]
