"""Evaluation of a chat model: held-out likelihood in nats per byte, tasks whose answers can be checked; and, without
torch, the reading of evaluation logs (`evaluate.logs`) and the comparison of models on the same items
(`evaluate.comparison`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consilience.evaluate.likelihood import ReplyLikelihood, held_out_likelihood
    from consilience.evaluate.tasks import (
        MATCHES,
        Answer,
        Outcome,
        Question,
        TaskSettings,
        answer_questions,
        read_questions,
    )

__all__ = [
    "MATCHES",
    "Answer",
    "Outcome",
    "Question",
    "ReplyLikelihood",
    "TaskSettings",
    "answer_questions",
    "held_out_likelihood",
    "read_questions",
]


def __getattr__(name: str) -> Any:
    """What runs a model is imported when it is asked for: `consilience compare` must not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from consilience.evaluate import likelihood, tasks

    return getattr(likelihood if hasattr(likelihood, name) else tasks, name)
