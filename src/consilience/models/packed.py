"""Texts that share a beginning in one row without padding: the beginning is read once, every ending on its own.

A row holds, one after another, a beginning and its endings, then the next beginning and its endings. Positions go on
from the beginning in every ending, and an ending's tokens see the beginning and their own text only; so every token is
computed exactly as in a text of its own, once.

Shapes: T tokens of the row, S stretches of a group, Q queries and K keys of a stretch, H heads, D width of a head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "consilience_packed"
WASTE = 1.3  # padded over real size of a group of stretches that go through one attention call
SMALL = 1 << 15  # queries times keys up to which a call costs more than its padding


@dataclass(frozen=True, slots=True)
class Tree:
    """A beginning and its endings, as token ids; a text is the beginning and one ending."""

    beginning: NDArray[np.integer[Any]]
    endings: tuple[NDArray[np.integer[Any]], ...]


def tree_of(texts_T: Sequence[NDArray[np.integer[Any]]], shared: int) -> Tree:
    """Token ids of texts, as a tree whose beginning is what they have in common, at most `shared` tokens."""
    first, shortest = texts_T[0], min(map(len, texts_T))
    common = min(shared, shortest)
    for ids in texts_T[1:]:
        unlike = np.flatnonzero(ids[:common] != first[:common])
        common = int(unlike[0]) if len(unlike) else common
    return Tree(first[:common], tuple(ids[common:] for ids in texts_T))


@dataclass(frozen=True, slots=True)
class PackedRow:
    """What a model is given: `inputs` for its forward pass, and where each text's tokens lie in the row."""

    inputs: dict[str, Any]
    places_of: list[list[NDArray[np.int64]]]  # per tree, per ending: the place of every token of the whole text


def pack(trees: Sequence[Tree]) -> PackedRow:
    """The row of `trees`, for a model under `packed_attention`."""
    ids: list[NDArray[np.integer[Any]]] = []
    positions: list[NDArray[np.int64]] = []
    stretches: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []  # places of its queries, of its keys
    places_of: list[list[NDArray[np.int64]]] = []
    end = 0
    for tree in trees:
        shared = np.arange(end, end + len(tree.beginning))
        if len(shared):
            ids.append(tree.beginning)
            positions.append(np.arange(len(shared)))
            stretches.append((shared, shared))
            end += len(shared)
        places_of.append([])
        for ending in tree.endings:
            own = np.arange(end, end + len(ending))
            whole = np.concatenate([shared, own])
            places_of[-1].append(whole)
            if len(own):
                ids.append(ending)
                positions.append(len(shared) + np.arange(len(own)))
                stretches.append((own, whole))
                end += len(own)
    inputs = {
        "input_ids": torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        "position_ids": torch.from_numpy(np.concatenate(positions))[None],
        "stretches": _grouped(stretches, end),
    }
    return PackedRow(inputs, places_of)


def _grouped(stretches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], tokens: int) -> dict[str, Any]:
    """Stretches of like size together: places of queries and keys, who sees whom, and the way back to the row."""
    order = sorted(range(len(stretches)), key=lambda i: (len(stretches[i][1]), len(stretches[i][0])))
    groups: list[list[int]] = []
    for i in order:
        if groups and _fits([stretches[j] for j in (*groups[-1], i)]):
            groups[-1].append(i)
        else:
            groups.append([i])
    back_T = np.zeros(tokens, dtype=np.int64)
    made: list[dict[str, Tensor]] = []
    done = 0
    for group in groups:
        wide = max(len(stretches[i][0]) for i in group)
        long = max(len(stretches[i][1]) for i in group)
        query_SQ, key_SK = np.zeros((len(group), wide), dtype=np.int64), np.zeros((len(group), long), dtype=np.int64)
        sees_SQK = np.zeros((len(group), wide, long), dtype=bool)
        sees_SQK[:, :, 0] = True  # a row of the padding must see something: a softmax over nothing is NaN
        for row, i in enumerate(group):
            query, key = stretches[i]
            query_SQ[row, : len(query)], key_SK[row, : len(key)] = query, key
            sees_SQK[row, : len(query), : len(key)] = np.tri(len(query), len(key), len(key) - len(query), dtype=bool)
            back_T[query] = done + row * wide + np.arange(len(query))
        done += len(group) * wide
        made.append({"query": torch.from_numpy(query_SQ), "key": torch.from_numpy(key_SK)})
        if len(group) > 1 or wide < long:  # else one text alone: causal
            made[-1]["sees"] = torch.from_numpy(sees_SQK)[:, None]
    return {"groups": made, "back": torch.from_numpy(back_T)}


def _fits(stretches: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> bool:
    sizes = [(len(query), len(key)) for query, key in stretches]
    padded = len(sizes) * max(q for q, _ in sizes) * max(k for _, k in sizes)
    return padded <= max(SMALL, WASTE * sum(q * k for q, k in sizes))


def packed_attention_forward(
    module: Any,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    stretches: dict[str, Any],
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention over the stretches of a packed row, each on its own; [1, T, H, D]."""
    found: list[Tensor] = []
    for group in stretches["groups"]:
        query, key, value = (
            states_1HTD[0].index_select(1, places.flatten()).unflatten(1, places.shape).transpose(0, 1)
            for states_1HTD, places in (
                (query_1HTD, group["query"]),
                (key_1HTD, group["key"]),
                (value_1HTD, group["key"]),
            )
        )
        out_SQHD, _ = sdpa_attention_forward(module, query, key, value, group.get("sees"), **options)
        found.append(out_SQHD.flatten(0, 1))
    return torch.cat(found).index_select(0, stretches["back"])[None], None


AttentionInterface.register(NAME, packed_attention_forward)


@contextlib.contextmanager
def packed_attention(model: Any, packs: bool = True) -> Iterator[None]:
    """While it lasts, `model` takes rows of `pack` and nothing else; it stays as it is unless it `packs`."""
    if not packs:
        yield
        return
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def can_pack(model: Any, longest: int) -> bool:
    """Whether `model` computes a packed row of texts of at most `longest` tokens as it computes the texts alone.

    Tried out on made-up texts, because soft caps and states that run on are not read off a configuration. To be asked
    of a model in evaluation mode.
    """
    config = model.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    if min((window for window in windows if window), default=longest) < longest:
        return False
    embeddings = model.get_input_embeddings()
    size = min(embeddings.num_embeddings, 1000)
    limit = getattr(config, "max_position_embeddings", None) or 64
    draw = np.random.default_rng(0)
    shared, own = min(12, limit // 3), min(9, limit // 3)
    trees = [
        Tree(draw.integers(0, size, shared + i), tuple(draw.integers(0, size, own - j) for j in range(2)))
        for i in range(2)
    ]
    row = pack(trees)
    device = embeddings.weight.device
    try:
        with packed_attention(model):
            together = model(**moved(row.inputs, device), use_cache=False).logits[0]
    except (TypeError, ValueError, RuntimeError):  # a forward pass that takes no options, an attention of its own
        return False
    for tree, places in zip(trees, row.places_of, strict=True):
        for ending, place in zip(tree.endings, places, strict=True):
            ids = torch.from_numpy(np.concatenate([tree.beginning, ending]))[None].to(device)
            alone = model(input_ids=ids, use_cache=False).logits[0]
            apart = (together[torch.from_numpy(place).to(device)] - alone).float().abs().max()
            if not apart <= (1e-4 if alone.dtype == torch.float32 else 0.05) * alone.float().abs().max():  # nor NaN
                return False
    return True


def moved(tree: Any, device: torch.device) -> Any:
    """Every tensor of nested mappings and lists on `device`."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: moved(value, device) for key, value in tree.items()}
    return [moved(value, device) for value in tree] if isinstance(tree, list) else tree
