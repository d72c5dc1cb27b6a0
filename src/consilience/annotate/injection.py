"""Texts that speak to the model: flagged, so that a reader of the results can look at them. Nothing is left out."""

from __future__ import annotations

import re

from consilience.annotate.codebook import Codebook

INSTRUCTION = "instruction"
TO_THE_MODEL = re.compile(
    r"\b(ignore|disregard|forget|override)\b.{0,40}\b(above|previous|prior|earlier|instructions?|codebook|prompt|rules?)\b"
    r"|\b(system prompt|you are now|new instructions?|as an? (ai|language model|assistant))\b"
    r"|<\|?(im_start|im_end|system|assistant|user|endoftext)\|?>|\[/?INST\]",
    re.IGNORECASE | re.DOTALL,
)


def flags_of(text: str, codebook: Codebook) -> list[str]:
    """`["instruction"]` where a text gives orders to a model, or dictates one of the codebook's labels; else none."""
    names = "|".join(re.escape(name) for name in codebook.names)
    dictated = (
        rf"\b(answer|respond|reply|output|classify (this|it) as|label (this|it) as)\b[\s:\"']*(with\s+)?({names})\b"
    )
    if TO_THE_MODEL.search(text) or (names and re.search(dictated, text, re.IGNORECASE)):
        return [INSTRUCTION]
    return []
