"""Chat models: open them on this machine (transformers, vLLM), score the replies of a text, sample replies.

`Sampler` is what answers chats, in this process or on a server; it and its settings load no torch, and neither does
`models.endpoint`, the client of any OpenAI-compatible server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.models.engine import EngineSettings, open_model, refuse_engine
from consilience.models.protocols import Model, Prompt, Reply, ReplyStatus, Sampler, Sampling

if TYPE_CHECKING:
    from consilience.models.load import ChatModel, context_of, load_model, load_tokenizer, vocabulary_size
    from consilience.models.sample import LocalSampler, sample_greedily, sample_replies
    from consilience.models.score import ReplyScores, score_replies

__all__ = [
    "ChatModel",
    "EngineSettings",
    "LocalSampler",
    "Model",
    "Prompt",
    "Reply",
    "ReplyScores",
    "ReplyStatus",
    "Sampler",
    "Sampling",
    "context_of",
    "load_model",
    "load_tokenizer",
    "open_model",
    "refuse_engine",
    "sample_greedily",
    "sample_replies",
    "score_replies",
    "vocabulary_size",
]


def __getattr__(name: str) -> Any:
    """What runs a model is imported when it is asked for: whoever asks a server must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from consilience.models import load, sample, score

    return next(getattr(module, name) for module in (load, sample, score) if hasattr(module, name))
