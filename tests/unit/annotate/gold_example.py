"""A gold sample of six short texts, two of them for two coders, and codebooks of every level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from consilience.annotate.codebook import Codebook
from consilience.annotate.coding.store import CODED, GoldStore, GoldText

NOMINAL = Codebook(
    variable="mood",
    question="Which mood?",
    labels=({"name": "glad", "code": 1}, {"name": "sad", "code": 2}, {"name": "angry", "code": 3}),  # type: ignore[arg-type]
    unclear="Take the stronger one.",
)
ORDINAL = Codebook(variable="heat", question="How hot?", level="ordinal", labels=("cold", "warm", "hot"))  # type: ignore[arg-type]
MULTI = Codebook(variable="topics", question="Which topics?", level="multi-label", labels=("work", "home", "play"))  # type: ignore[arg-type]
INTERVAL = Codebook(variable="score", question="How much?", level="interval", range=(0, 10))  # type: ignore[arg-type]
SPAN = Codebook(variable="claims", question="Where?", level="span", labels=("claim", "blame"))  # type: ignore[arg-type]
FREE = Codebook(variable="gist", question="In a sentence?", level="free text")  # type: ignore[arg-type]


def gold_texts(count: int = 6, twice: int = 2, **changes: Any) -> list[GoldText]:
    """Texts t0, t1, ...: of strata odd and even, with probabilities 0.2 and 0.4; the first `twice` for two coders."""
    return [
        GoldText(
            **{
                "item": f"t{i}",
                "text": f"Text number {i}.",
                "wanted": 2 if i < twice else 1,
                "stratum": "odd" if i % 2 else "even",
                "cluster": "",
                "part": "test",
                "probability": 0.4,
                "part_probability": 0.2 if i % 2 else 0.4,
            }
            | changes
        )
        for i in range(count)
    ]


def gold_store(folder: Path, codebook: Codebook = NOMINAL, texts: list[GoldText] | None = None) -> GoldStore:
    """A store with coders anna and ben."""
    about = {"codebook": {"variable": codebook.variable, "level": str(codebook.level)}}
    store = GoldStore.create(folder / "gold.sqlite", about, gold_texts() if texts is None else texts)
    store.add_coder("anna")
    store.add_coder("ben")
    return store


def code(store: GoldStore, coder: str, item: str, value: str, **more: Any) -> int:
    return store.code(item, coder, **{"status": CODED, "value": value} | more)
