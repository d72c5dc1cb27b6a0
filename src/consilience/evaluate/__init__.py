"""Evaluation of a chat model: held-out likelihood in nats per byte, and tasks whose answers can be checked."""

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
