"""Model weights on disk: read lazily, written as a stream or in place. No whole model is ever in memory.

`headers`, `mapped` and `planned` need numpy alone. What reads and writes torch's tensors loads torch when it is first
used, so that merging starts without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consilience.weights.companions import copy_companions
from consilience.weights.headers import holds_checkpoint, read_model

if TYPE_CHECKING:
    from consilience.weights.checkpoint import Checkpoint, write_checkpoint

__all__ = ["Checkpoint", "copy_companions", "holds_checkpoint", "read_model", "write_checkpoint"]


def __getattr__(name: str) -> Any:
    if name in ("Checkpoint", "write_checkpoint"):
        from consilience.weights import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
