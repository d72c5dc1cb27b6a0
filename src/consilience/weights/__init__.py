"""Model weights on disk: read lazily, written as a stream. No whole model is ever in memory."""

from consilience.weights.checkpoint import Checkpoint, holds_checkpoint, write_checkpoint
from consilience.weights.companions import copy_companions

__all__ = ["Checkpoint", "copy_companions", "holds_checkpoint", "write_checkpoint"]
