"""FuseAI's own alignment functions, read from a clone of github.com/fanqiwan/FuseAI and run on tables of tokens.

Nothing of theirs is kept here: the functions are taken out of the clone's history at the commits that the reference
outputs were made with. They need the package `editdistance`. A table of tokens in the place of a tokenizer makes them
a little faster than they are: most of FuseChat's mapping time goes to `decode`.
"""

from __future__ import annotations
import __future__

import ast
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

FUSECHAT = "FuseChat/train/align_token_and_vocab.py"
ORIGINS = {
    "fusellm": ("7d9a307", "FuseLLM/src/utils/others.py"),
    "v1": ("562c7b0", FUSECHAT),
    "v2": ("7d9a307", FUSECHAT),
}
TAKEN = {"softmax", "dtw", "transform_step_token", "transform_step_logits"}


class TokenTable:
    """The part of a tokenizer that the published functions use, as lookups."""

    name_or_path = ""

    def __init__(self, vocabulary: Sequence[str], ids: Sequence[int], decoded: Sequence[str]) -> None:
        """`decoded` are the texts of the tokens `ids`, each by itself."""
        self.vocabulary = vocabulary
        self.decoded = dict(zip(ids, decoded, strict=True))

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [self.vocabulary[id_] for id_ in ids]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.decoded[id_] for id_ in ids)


class PivotTable(TokenTable):
    """Their code knows a tokenizer's mark by its class."""


class SourceTable(TokenTable):
    """As PivotTable."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of the published code: CPU seconds of one core, and its rows."""

    warping_s: float
    mapping_s: float
    logits: list[list[float]]
    ids: list[list[int]]


def published(clone: Path, implementation: str) -> dict[str, Any]:
    """The functions of `implementation` (a key of ORIGINS) from a clone, working tree or bare."""
    import editdistance

    commit, path = ORIGINS[implementation]
    shown = subprocess.run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True, text=True, check=True)
    tree = ast.parse(shown.stdout)
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in TAKEN]
    names: dict[str, Any] = {
        "np": np,
        "editdistance": editdistance,
        "transformers": SimpleNamespace(GPTNeoXTokenizerFast=SourceTable, GPT2TokenizerFast=SourceTable),
        "TOKENIZER_TO_SPECIAL_TOKEN": {PivotTable: "▁", SourceTable: "Ġ"},
    }
    # Annotations name packages that are not needed to run.
    exec(compile(tree, path, "exec", flags=__future__.annotations.compiler_flag), names)
    return names


def run(
    names: dict[str, Any],
    pivot: PivotTable,
    source: SourceTable,
    arrays: Mapping[str, np.ndarray],
    **settings: Any,
) -> Ran:
    """Aligns one text and maps the source's top-k; `settings` are the implementation's own keywords."""
    took = [0.0]
    warp = names["dtw"]

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        found = warp(*args, **kwargs)
        took[0] += time.process_time() - began
        return found

    align: Callable[..., Any] = names["transform_step_logits"]
    given = (
        {token: id_ for id_, token in enumerate(pivot.vocabulary)},
        arrays["base_ids"].tolist(),
        arrays["blend_ids"].tolist(),
        arrays["blend_topk_logits"].tolist(),
        arrays["blend_topk_indices"].tolist(),
    )
    names["dtw"] = timed
    began = time.process_time()
    logits, ids = align(pivot, source, *given, **settings)
    whole = time.process_time() - began
    names["dtw"] = warp
    return Ran(took[0], whole - took[0], logits, ids)
