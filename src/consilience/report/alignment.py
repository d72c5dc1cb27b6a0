"""The page of `consilience align`: how well tokenizers meet, with examples side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.report.page import environment, write_page


def write_alignment_report(result: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`, from `AlignResult.to_json` and `examples` by source. All is escaped."""
    sources = [*result["sources"]]
    aligned = _short(sources[0]) if len(sources) == 1 else f"{len(sources)} sources"
    title = f"{aligned} aligned to {_short(result['pivot'])}"
    write_page(environment().get_template("alignment.html.j2").render(result=result, title=title), path)


def _short(name: str) -> str:
    """The last part of a folder's path or of a hub name."""
    return name.rstrip("/").rpartition("/")[2] or name
