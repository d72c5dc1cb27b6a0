"""No template says a verdict word."""

from __future__ import annotations

from pathlib import Path

import pytest

from verdict_words import VERDICT_WORDS

TEMPLATES = sorted((Path(__file__).parents[3] / "src" / "consilience" / "report").glob("*.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_verdict_words(template: Path) -> None:
    found = VERDICT_WORDS.search(template.read_text(encoding="utf-8"))
    assert found is None


def test_the_words_are_found() -> None:
    for text in ("a significant gain", "p-value", "<strong>5</strong>", "it passed", "FAIL", "the winner", "★"):
        assert VERDICT_WORDS.search(text)
    assert not VERDICT_WORDS.search("passage, failure rate, compass")
