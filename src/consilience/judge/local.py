"""A language model in this process as a judge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from consilience.models import load_model
from consilience.models.local import LocalAnswerer
from consilience.run import fingerprint

if TYPE_CHECKING:
    from consilience.judge.table import JudgeSettings


def local_answerer(model: str, settings: JudgeSettings, cache: Path | None) -> LocalAnswerer:
    """The model loaded, its answers kept under its files' fingerprint (under its name, where it comes from a hub)."""
    chat_model = load_model(model, dtype=settings.dtype, code=settings.code)
    digest = fingerprint(Path(model)) if Path(model).exists() else model
    return LocalAnswerer(chat_model, digest=f"{digest}/{settings.dtype}", cache=cache)
