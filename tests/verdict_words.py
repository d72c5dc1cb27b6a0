"""What no page and no table of ours may say: an estimate has an interval, and nobody wins."""

import re

VERDICT_WORDS = re.compile(r"significan|p-value|p value|\bpass(ed)?\b|\bfail(ed)?\b|winner|★|<strong", re.IGNORECASE)


def spoken(page: str) -> str:
    """A page without its style sheet, whose words nobody reads."""
    return re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
