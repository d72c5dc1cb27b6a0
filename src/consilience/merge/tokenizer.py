"""One vocabulary for a merge of models with several: the result's tokenizer, and which row of a matrix goes where.

Every model's embeddings and head are put into the result's order before they are merged. A token that a model lacks
gets the base's row; else that of the only model that has it; else the mean over those that have it; zeros where none
has. A row without a token (padding) stays: each model's own, else the base's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError, ConfigError
from consilience.merge.inputs import Input, as_json, read_json
from consilience.merge.layers import place_of
from consilience.merge.plan import Rows
from consilience.merge.recipe import UNION, ModelRef, Recipe, TokenRow
from consilience.weights.companions import COMPANIONS

FILE = "tokenizer.json"
NOT_BY_TOKEN = re.compile(r"pos(ition)?_?emb|wpe|norm")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "sep_token_id", "cls_token_id")
NONE = -1


@dataclass(frozen=True)
class Vocabularies:
    """The result's vocabulary: `size` rows, `files` of its tokenizer, and `rows_of[model][other]`.

    `rows_of[model][other][i]` is the row of `other`'s matrix that the `model`'s matrix has at row i, -1 for none.
    """

    size: int
    files: Mapping[str, Path | bytes]
    rows_of: Mapping[ModelRef, Mapping[ModelRef, NDArray[np.int64]]]
    new_id: Mapping[int, int | None] = field(default_factory=dict)  # of the donor's token ids

    def covers(self, name: str, shape: Sequence[int], given: Input) -> bool:
        """Whether a tensor has a row per token: it is outside the layers and as long as the vocabulary."""
        if place_of(name) is not None or not shape or shape[0] != given.vocabulary_rows or NOT_BY_TOKEN.search(name):
            return False
        return len(shape) == 2 or name.endswith(".bias")

    def rows(self, ref: ModelRef, name: str, inputs: Mapping[ModelRef, Input]) -> Rows:
        """The tensor `name` of the model `ref` in the result's order of tokens."""
        parts = []
        for other, rows in self.rows_of[ref].items():
            part = inputs[other].parts.get(name)
            if part is None:
                raise BackendError(f"{inputs[other].label} has tokens that others lack, and no tensor {name} for them.")
            is_whole = len(rows) == part.tensor.shape[0] and np.array_equal(rows, np.arange(len(rows)))
            parts.append(part if is_whole else replace(part, rows=rows))
        width = inputs[ref].parts[name].tensor.shape[1:]
        if any(part.tensor.shape[1:] != width for part in parts):
            widths = ", ".join(f"{list(part.tensor.shape)}" for part in parts)
            raise BackendError(f"tensor {name} has shapes {widths}. Merge models of one architecture.")
        return Rows(inputs[ref].label, (self.size, *width), tuple(parts))

    def remapped(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration's token ids in the result's vocabulary. An id without a token there becomes null."""
        changed = dict(settings)
        for key in TOKEN_IDS:
            ids = changed.get(key)
            if isinstance(ids, list):
                changed[key] = [self.new_id.get(one, one) for one in ids]
            elif isinstance(ids, int) and not isinstance(ids, bool):
                changed[key] = self.new_id.get(ids, ids)
        return changed


def merge_vocabularies(
    recipe: Recipe,
    merged: Mapping[ModelRef, Input],
    donor: ModelRef,
    inputs: Mapping[ModelRef, Input],
    note: Callable[[str], None],
) -> Vocabularies | None:
    """The vocabulary that the recipe asks for; None where it asks for none: matrices must then agree as they are."""
    asked = recipe.vocabulary
    if asked is None:
        return None
    for given in inputs.values():
        if given.embeddings is None:
            raise BackendError(f"{given.label} has no one embedding matrix of tokens, which 'tokenizer' puts in order.")
    base = recipe.base or donor
    own = asked.source if isinstance(asked.source, ModelRef) else base
    tokenizer = _tokenizer_of(inputs[own])
    tokens = _vocabulary(tokenizer, inputs[own])
    extra = _extra_tokens(asked.source, own, merged) | {
        token: _added(token) for token in asked.rows if token not in tokens
    }
    files: dict[str, Path | bytes] = dict(_tokenizer_files(inputs[own]))
    # A new token may take the place of a row that no token used so far: padding is what it is for.
    size = max(tokens.values(), default=NONE) + 1
    for token, entry in extra.items():
        if token not in tokens:
            tokens[token] = size
            tokenizer["added_tokens"].append(entry | {"id": size})
            size += 1
    if extra:
        files |= _with_tokens(files, tokenizer)
        ordinary = sum(not entry["special"] for entry in extra.values())
        note(f"{len(extra)} tokens were added to the tokenizer of {inputs[own].label} ({ordinary} of them not special)")
    size = max(size, inputs[own].vocabulary_rows or 0)
    if asked.pad_to_multiple_of:
        size = -(-size // asked.pad_to_multiple_of) * asked.pad_to_multiple_of
    vocabularies = {ref: _used(_vocabulary(_tokenizer_of(given), given), given) for ref, given in inputs.items()}
    rows_of = _Assignment(tokens, size, vocabularies, merged, inputs, recipe.base, own, asked.rows, note).rows_of()
    by_id = {index: token for token, index in vocabularies[donor].items()}
    return Vocabularies(size, files, rows_of, {index: tokens.get(token) for index, token in by_id.items()})


class _Assignment:
    """Which row of whose matrix stands where in each model's."""

    def __init__(
        self,
        tokens: Mapping[str, int],
        size: int,
        vocabularies: Mapping[ModelRef, Mapping[str, int]],
        merged: Mapping[ModelRef, Input],
        inputs: Mapping[ModelRef, Input],
        base: ModelRef | None,
        own: ModelRef,
        asked: Mapping[str, TokenRow],
        note: Callable[[str], None],
    ) -> None:
        self.size, self.vocabularies, self.merged, self.inputs = size, vocabularies, merged, inputs
        self.base = base if base in merged else None
        self.own, self.asked, self.note, self.tokens = own, asked, note, tokens
        self.has = {ref: self._column(vocabularies[ref]) for ref in inputs}

    def _column(self, vocabulary: Mapping[str, int]) -> NDArray[np.int64]:
        """At every row of the result, the row that a model has for its token; -1 where it has none."""
        column = np.full(self.size, NONE, np.int64)
        for token, place in self.tokens.items():
            column[place] = vocabulary.get(token, NONE)
        return column

    def rows_of(self) -> dict[ModelRef, dict[ModelRef, NDArray[np.int64]]]:
        padding = np.ones(self.size, bool)
        padding[list(self.tokens.values())] = False
        fallback = self._fallback(padding)
        every = {}
        for ref in self.merged:
            columns = {other: np.where(self.has[ref] >= 0, NONE, column) for other, column in fallback.items()}
            columns[ref] = np.where(self.has[ref] >= 0, self.has[ref], columns.get(ref, NONE))
            self._fill_padding(ref, columns, padding)
            for token, row in self.asked.items():
                self._place_asked(ref, columns, token, row)
            every[ref] = {other: column for other, column in columns.items() if other == ref or (column >= 0).any()}
            every[ref] = dict(sorted(every[ref].items(), key=lambda item: item[0] != ref))
        return every

    def _fallback(self, padding: NDArray[np.bool_]) -> dict[ModelRef, NDArray[np.int64]]:
        """The rows for models without a token: the base's, or all that there are."""
        counts = np.sum([self.has[ref] >= 0 for ref in self.merged], axis=0)
        alone = int(((counts == 0) & ~padding).sum()) - sum(
            counts[self.tokens[token]] == 0 for token in self.asked if token in self.tokens
        )
        if alone > 0:
            self.note(f"{alone} tokens of the result are in no model's vocabulary; their rows are zero")
        columns = {ref: self.has[ref].copy() for ref in self.merged}
        if self.base is not None:
            by_base = self.has[self.base] >= 0
            for ref, column in columns.items():
                if ref != self.base:
                    column[by_base] = NONE
        return columns

    def _fill_padding(
        self, ref: ModelRef, columns: dict[ModelRef, NDArray[np.int64]], padding: NDArray[np.bool_]
    ) -> None:
        free = padding.copy()
        for other in dict.fromkeys([ref, self.own, *self.merged]):
            if other not in self.merged:
                continue
            rows = self.inputs[other].vocabulary_rows or 0
            unused = np.zeros(self.size, bool)
            unused[: min(rows, self.size)] = True
            taken = [index for index in self.vocabularies[other].values() if index < self.size]
            unused[taken] = False
            places = np.flatnonzero(free & unused)
            column = columns.setdefault(other, np.full(self.size, NONE, np.int64))
            column[places] = places
            free[places] = False

    def _place_asked(
        self, ref: ModelRef, columns: dict[ModelRef, NDArray[np.int64]], token: str, row: TokenRow
    ) -> None:
        place = self.tokens[token]
        if self.has[ref][place] >= 0 and not row.force:
            return
        for column in columns.values():
            column[place] = NONE
        if row.model is None:
            return
        index = row.token_id
        if index is None:
            wanted = row.token or token
            index = self.vocabularies[row.model].get(wanted, NONE)
            if index < 0:
                raise ConfigError(f"tokenizer.tokens.{token}: {self.inputs[row.model].label} has no token {wanted!r}.")
        rows = self.inputs[row.model].vocabulary_rows or 0
        if not 0 <= index < rows:
            raise ConfigError(
                f"tokenizer.tokens.{token}: token_id {index}; {self.inputs[row.model].label} has {rows} rows."
            )
        columns.setdefault(row.model, np.full(self.size, NONE, np.int64))[place] = index


def _tokenizer_of(given: Input) -> dict[str, Any]:
    """tokenizer.json of a model. Raises `BackendError` where it has none."""
    found = dict(read_json(given.file(FILE)))
    if not found:
        raise BackendError(
            f"{given.label} has no {FILE}, which 'tokenizer' needs. transformers' "
            "AutoTokenizer.from_pretrained(OLD).save_pretrained(NEW) writes one."
        )
    return found | {"added_tokens": list(found.get("added_tokens") or [])}


def _vocabulary(tokenizer: Mapping[str, Any], given: Input) -> dict[str, int]:
    model = tokenizer.get("model") or {}
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, list):  # Unigram: pairs of a token and its log-probability
        tokens = {str(token): index for index, (token, _) in enumerate(vocabulary)}
    elif isinstance(vocabulary, Mapping):
        tokens = {str(token): int(index) for token, index in vocabulary.items()}
    else:
        raise BackendError(
            f"{given.label}: {FILE} has a model of kind {model.get('type')!r}, whose tokens are not read."
        )
    return tokens | {str(entry["content"]): int(entry["id"]) for entry in tokenizer["added_tokens"]}


def _used(vocabulary: Mapping[str, int], given: Input) -> dict[str, int]:
    """Tokens that have a row: some tokenizers have tokens past the matrix."""
    rows = given.vocabulary_rows or 0
    return {token: index for token, index in vocabulary.items() if index < rows}


def _extra_tokens(source: str | ModelRef, own: ModelRef, merged: Mapping[ModelRef, Input]) -> dict[str, dict[str, Any]]:
    """Tokens of the union that the first tokenizer lacks, ordinary ones before added ones, in the models' order."""
    if source != UNION:
        return {}
    ordinary: dict[str, dict[str, Any]] = {}
    added: dict[str, dict[str, Any]] = {}
    there: set[str] = set()
    for ref, given in sorted(merged.items(), key=lambda item: item[0] != own):
        tokenizer = _tokenizer_of(given)
        entries = {str(entry["content"]): dict(entry) for entry in tokenizer["added_tokens"]}
        tokens = _used(_vocabulary(tokenizer, given), given)
        if ref == own:
            there = set(_vocabulary(tokenizer, given))
            continue
        for token in sorted(tokens, key=lambda token: tokens[token]):
            if token not in there:
                (added if token in entries else ordinary).setdefault(token, entries.get(token) or _added(token))
    return {token: entry for token, entry in ordinary.items() if token not in added} | added


def _added(token: str) -> dict[str, Any]:
    return {
        "id": NONE, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
        "special": False,
    }  # fmt: skip


def _tokenizer_files(given: Input) -> list[tuple[str, Path]]:
    """The files beside a model's weights that belong to its tokenizer, with its chat template."""
    others = ("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json")
    names = [
        str(path.relative_to(folder))
        for folder in filter(None, (given.folder, given.adapter))
        for pattern in COMPANIONS
        if pattern not in others and not pattern.endswith("_*.py")
        for path in sorted(folder.glob(pattern))
    ]
    return [(name, given.file(name)) for name in dict.fromkeys(names)]


def _with_tokens(files: Mapping[str, Path | bytes], tokenizer: Mapping[str, Any]) -> dict[str, bytes]:
    """The files that name added tokens, with those of `tokenizer`."""
    changed = {FILE: as_json(tokenizer)}
    settings = files.get("tokenizer_config.json")
    if isinstance(settings, Path):
        found = dict(read_json(settings))
        if "added_tokens_decoder" in found:
            entries = {
                str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in tokenizer["added_tokens"]
            }
            found["added_tokens_decoder"] = entries
            changed["tokenizer_config.json"] = as_json(found)
    legacy = files.get("added_tokens.json")
    if isinstance(legacy, Path):
        changed["added_tokens.json"] = as_json({entry["content"]: entry["id"] for entry in tokenizer["added_tokens"]})
    return changed
