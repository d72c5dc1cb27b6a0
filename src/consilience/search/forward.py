"""A causal language model that reads many token trees at once, each prefix once.

Every tree has a row of one cache, allocated ahead; new nodes are the queries of one forward pass, and a mask shows
each of them the slots of its own ancestors. This is transformers' public interface alone: a `Cache` whose `update`
writes into slots, four-dimensional attention masks, explicit positions, a registered attention function. A model that
does not take these (recurrent layers, attention of its own) is noticed when it is loaded, and then reads whole texts
again for every token.

Shapes: B trees (rows of the cache), N nodes of a tree in one pass, S slots, H heads of keys, G heads of queries to
each, D size of a head, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from consilience.errors import BackendError
from consilience.models import ChatModel
from consilience.models.linear import lay_out
from consilience.search.tree import UNSEEN, Node, Tree

LOGITS_HELD = 1 << 27  # half a gigabyte in float32
MASK_HELD = 1 << 26  # a quarter of a gigabyte in float32
GROWTH = 1.125  # of the cache: what is allocated and not used stays below an eighth


ATTENTION = "consilience_tree"


def tree_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **settings: Any
) -> tuple[Tensor, Any]:
    """`sdpa`, except that query heads that share keys become further queries: `sdpa` would copy the whole cache."""
    B, heads, N, _ = query.shape
    H = key.shape[1]
    if heads == H or attention_mask is None:
        attended, weights = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return attended, weights
    found = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(B, H, heads // H * N, -1),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, heads // H, 1),
        scale=settings.get("scaling"),
    )
    return found.reshape(B, heads, N, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, tree_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


@dataclass
class Places:
    """Where the pass under way writes, and how much of the cache it reads; shared by all layers."""

    first: int = 0  # rows [first, last) of the cache are in the pass
    last: int = 0
    slots: int = 0  # so many slots are read
    flat: Tensor | None = None  # row · capacity + slot of each new node, [B · N]; None while a prompt is read
    prompt: int = 0  # tokens of the prompt that is read
    rows: int = 0
    capacity: int = 0


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer in slots, [B, S, H, D]; a pass reads what its new nodes need as a view."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places
        self.keys: Any
        self.values: Any

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys, self.values = self._empty(key_states), self._empty(value_states)
        self.is_initialized = True

    def _empty(self, states: Tensor) -> Tensor:
        _, heads, _, size = states.shape
        # Zeros: a slot that nobody sees has the weight zero, and zero times NaN is NaN.
        return states.new_zeros(self.places.rows, self.places.capacity, heads, size)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        places = self.places
        if places.flat is None:
            self.keys[places.first, : places.prompt] = key_states[0].transpose(0, 1)
            self.values[places.first, : places.prompt] = value_states[0].transpose(0, 1)
            return key_states, value_states
        return self._through(self.keys, key_states), self._through(self.values, value_states)

    def _through(self, buffer_BSHD: Tensor, states_BHND: Tensor) -> Tensor:
        places = self.places
        assert places.flat is not None
        buffer_BSHD.flatten(0, 1).index_copy_(0, places.flat, states_BHND.transpose(1, 2).flatten(0, 1))
        return buffer_BSHD[places.first : places.last, : places.slots].transpose(1, 2)

    def resize(self) -> None:
        """Copies what is there into a buffer of the rows and slots that are wanted now."""
        if self.is_initialized:
            for name in ("keys", "values"):
                old = getattr(self, name)
                new = old.new_zeros(self.places.rows, self.places.capacity, *old.shape[2:])
                rows, slots = min(len(old), len(new)), min(old.shape[1], new.shape[1])
                new[:rows, :slots] = old[:rows, :slots]
                setattr(self, name, new)

    def move(self, source: int, target: int) -> None:
        if self.is_initialized:
            self.keys[target], self.values[target] = self.keys[source], self.values[source]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0  # asked while a prompt is read; afterwards masks are handed in

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


@dataclass
class Counts:
    """What a model has been asked to do."""

    positions: int = 0  # tokens read
    padding: int = 0  # read beside them because the trees of a pass have different numbers of new nodes
    passes: int = 0
    peak_slots: int = 0  # most tokens whose keys and values were held at once
    peak_bytes: int = 0  # most that was allocated for them


class TreeModel:
    """A chat model that reads token trees. `cached` says whether it keeps keys and values of them."""

    def __init__(self, chat_model: ChatModel, *, cached: bool = True) -> None:
        self.chat_model, self.model = chat_model, chat_model.model
        self.device = next(self.model.parameters()).device
        self.counts = Counts()
        self.trees: list[Tree] = []  # by row of the cache
        self.masks = _mask_kinds(self.model)
        self._takes_logits_to_keep = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        if self.model.config.get_text_config()._attn_implementation == "sdpa":
            self.model.set_attn_implementation(ATTENTION)
        lay_out(self.model)
        self.reset()
        self.cached = cached and self._agrees_with_plain_reading()
        self.reset()

    def reset(self) -> None:
        """Forgets all trees, gives their memory back and counts anew."""
        self.counts = Counts()
        self.trees.clear()
        self._empty_cache()

    def _empty_cache(self) -> None:
        """Gives the memory back: one long prompt must not set the size of all that come after it."""
        self.places = Places()
        layers = self.model.config.get_text_config().num_hidden_layers
        self.cache = Cache(layers=[SlotLayer(self.places) for _ in range(layers)])

    # -- trees -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def plant(self, prompt: Sequence[int]) -> tuple[Tree, Tensor]:
        """A new tree of `prompt`, at least one token, and the logits [V] of what comes after it, in float32."""
        tree = Tree(prompt)
        if not self.cached:
            return tree, self.forward([(tree, [tree.tip])])[0]
        tree.row = len(self.trees)
        self.trees.append(tree)
        self._reserve()
        self.places.first, self.places.flat, self.places.prompt = tree.row, None, len(prompt)
        logits = self._run(torch.tensor([list(prompt)]), torch.arange(len(prompt))[None], None, last_only=True)
        self._count(len(prompt), 0)
        return tree, logits[0, -1].float()

    @torch.inference_mode()
    def fell(self, tree: Tree) -> None:
        """Forgets `tree`; its row goes to the last tree, so that the rows in use stay together."""
        if tree.row == UNSEEN:
            return
        last = self.trees.pop()
        if last is not tree:
            for layer in self._layers():
                layer.move(last.row, tree.row)
            last.row = tree.row
            self.trees[last.row] = last
        tree.row = UNSEEN
        if not self.trees:
            self._empty_cache()

    def _layers(self) -> Iterator[SlotLayer]:
        for layer in self.cache.layers:
            assert isinstance(layer, SlotLayer)
            yield layer

    def _reserve(self) -> None:
        """Grows the cache until every tree has a row with slots enough; a spare slot takes the padding."""
        slots = max(tree.slots for tree in self.trees) + 1
        places = self.places
        if len(self.trees) > places.rows or slots > places.capacity:
            if slots > places.capacity:
                places.capacity = max(slots, int(places.capacity * GROWTH))
            if len(self.trees) > places.rows:
                places.rows = max(len(self.trees), int(places.rows * GROWTH))
            for layer in self._layers():
                layer.resize()

    # -- reading ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def forward(self, wanted: Sequence[tuple[Tree, Sequence[Node]]]) -> Tensor:
        """The logits [sum of N, V] after each of the nodes, in float32; a node's ancestors are read or among them.

        A node that has been read before may be asked for again. NaN is for the caller to find (`refuse_nan`), who
        looks at every number anyway.
        """
        read = self._read_cached if self.cached else self._read_plainly
        most = max(1, MASK_HELD // sum(tree.slots + len(nodes) for tree, nodes in wanted))
        parts = blocks(wanted, most)
        if len(parts) == 1:
            return read(wanted)
        logits: dict[Node, Tensor] = {}
        for part in parts:
            logits |= zip((node for _, nodes in part for node in nodes), read(part))
        return torch.stack([logits[node] for _, nodes in wanted for node in nodes])

    def refuse_nan(self, numbers: Tensor) -> None:
        """Raises `BackendError` when there is NaN among numbers that follow from this model's logits."""
        if bool(torch.isnan(numbers).any()):
            raise BackendError(
                f"model {self.chat_model.name} answers NaN. Its weights may be damaged, or need another --dtype."
            )

    def _read_cached(self, wanted: Sequence[tuple[Tree, Sequence[Node]]]) -> Tensor:
        for tree, nodes in wanted:
            for node in sorted(nodes, key=lambda node: node.depth):
                tree.place(node)
        self._reserve()
        rows = [tree.row for tree, _ in wanted]
        places = self.places
        places.first, places.last = min(rows), max(rows) + 1
        places.slots = min(-(-max(tree.slots for tree, _ in wanted) // 8) * 8, places.capacity)  # aligned for kernels
        B, N = places.last - places.first, max(len(nodes) for _, nodes in wanted)
        ids_BN = np.zeros((B, N), np.int64)
        depth_BN = np.zeros((B, N), np.int64)
        slot_BN = np.full((B, N), places.capacity - 1)
        visible_BNS = np.zeros((B, N, places.slots), np.bool_)
        visible_BNS[:, :, 0] = True  # padding must see something
        depth_BS = np.zeros((B, places.slots), np.int64)
        real_BN = np.zeros((B, N), np.bool_)
        order = np.zeros((B, N), np.int64)
        begin = 0
        for tree, nodes in wanted:
            row = tree.row - places.first
            for n, node in enumerate(nodes):
                assert node.visible_S is not None
                ids_BN[row, n], depth_BN[row, n], slot_BN[row, n] = node.token, node.depth, node.slot
                visible_BNS[row, n, : len(node.visible_S)] = node.visible_S[: places.slots]
            depth = tree.depth_S[: places.slots]
            depth_BS[row, : len(depth)] = depth
            real_BN[row, : len(nodes)] = True
            order[row, : len(nodes)] = np.arange(begin, begin + len(nodes))
            begin += len(nodes)
        flat = slot_BN + np.arange(places.first, places.last)[:, None] * places.capacity
        places.flat = torch.from_numpy(flat.ravel()).to(self.device)
        masks = self._attention_mask(visible_BNS, depth_BN, depth_BS)
        logits_BNV = self._run(torch.from_numpy(ids_BN), torch.from_numpy(depth_BN), masks)
        self._count(begin, B * N - begin)
        if begin == B * N and rows == sorted(rows):
            return logits_BNV.flatten(0, 1).float()
        # Back into the order of `wanted`, without the padding.
        at = np.empty(begin, np.int64)
        at[order[real_BN]] = np.flatnonzero(real_BN)
        return logits_BNV.flatten(0, 1)[torch.from_numpy(at).to(self.device)].float()

    def _attention_mask(self, visible_BNS: Any, depth_BN: Any, depth_BS: Any) -> Any:
        """0 where a node sees a slot, else minus infinity, [B, 1, N, S]; by kind of layer where there are several."""
        visible = torch.from_numpy(visible_BNS).to(self.device)
        made = {}
        for kind, window in self.masks.items():
            seen = visible
            if window is not None:
                distance = torch.from_numpy(depth_BN[:, :, None] - depth_BS[:, None, :]).to(self.device)
                seen = visible & (distance < window)
            mask = torch.zeros(seen.shape, dtype=self.model.dtype, device=self.device)
            made[kind] = mask.masked_fill_(~seen, -torch.inf)[:, None]
        return made.get("", made)

    def _run(self, ids_BN: Tensor, depth_BN: Tensor, mask: Any, *, last_only: bool = False) -> Tensor:
        extra = {"logits_to_keep": 1} if last_only and self._takes_logits_to_keep else {}
        logits: Tensor = self.model(
            input_ids=ids_BN.to(self.device),
            position_ids=depth_BN.to(self.device),
            attention_mask=mask,
            past_key_values=self.cache,
            use_cache=True,
            **extra,
        ).logits
        return logits

    def _read_plainly(self, wanted: Sequence[tuple[Tree, Sequence[Node]]]) -> Tensor:
        """Every node's whole text through the model, padded on the right: what any causal model takes."""
        texts = [_ids_to(node) for _, nodes in wanted for node in nodes]
        ids_BN = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
        mask_BN = torch.zeros_like(ids_BN)
        for row, ids in enumerate(texts):
            ids_BN[row, : len(ids)] = torch.tensor(ids)
            mask_BN[row, : len(ids)] = 1
        logits_BNV = self.model(
            input_ids=ids_BN.to(self.device), attention_mask=mask_BN.to(self.device), use_cache=False
        ).logits
        for tree, nodes in wanted:
            for node in nodes:
                tree.place(node)
        read = sum(map(len, texts))
        self._count(read, ids_BN.numel() - read)
        last = torch.tensor([len(ids) - 1 for ids in texts], device=self.device)
        return logits_BNV[torch.arange(len(texts), device=self.device), last].float()

    def _count(self, positions: int, padding: int) -> None:
        counts = self.counts
        counts.positions += positions
        counts.padding += padding
        counts.passes += 1
        if self.cached:
            counts.peak_slots = max(counts.peak_slots, sum(tree.used for tree in self.trees))
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers() if layer.is_initialized)
            counts.peak_bytes = max(counts.peak_bytes, held)

    def _agrees_with_plain_reading(self) -> bool:
        """Whether two branches after a short prompt, read as a tree, get the logits that plain reading gives them."""
        words = min(self.chat_model.vocabulary_size, 50)
        prompt, branches = [3 % words, 5 % words, 7 % words], ([11 % words, 2 % words], [11 % words, 4 % words])
        self.cached = False
        tree, after_prompt = self.plant(prompt)
        plain = [after_prompt, *self.forward([(tree, _walk(tree, branches))])]
        self.cached = True
        try:
            tree, after_prompt = self.plant(prompt)
            nodes = _walk(tree, branches)
            self.forward([(tree, nodes[:1])])
            found = [after_prompt, *self.forward([(tree, nodes)])]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError):
            return False  # its layers want something of a cache that this one has not
        finally:
            self.trees.clear()
        close = {torch.float32: 1e-3}.get(self.model.dtype, 5e-2)
        expected, got = torch.stack(plain), torch.stack(found)
        return bool(((got - expected).abs() <= close * expected.abs().amax(-1, keepdim=True)).all())


def blocks(wanted: Sequence[tuple[Tree, Sequence[Node]]], each: int) -> list[list[tuple[Tree, Sequence[Node]]]]:
    """`wanted` cut so that a pass reads at most `each` nodes of a tree, those above first."""
    most = max((len(nodes) for _, nodes in wanted), default=0)
    return [
        [(tree, nodes[begin : begin + each]) for tree, nodes in wanted if nodes[begin : begin + each]]
        for begin in range(0, most, each)
    ]


def _walk(tree: Tree, branches: Sequence[Sequence[int]]) -> list[Node]:
    """The distinct nodes of `branches` after the prompt of `tree`, parents first."""
    nodes: dict[Node, None] = {}
    for branch in branches:
        node = tree.tip
        for token in branch:
            node, _ = tree.after(node, token)
            nodes[node] = None
    return list(nodes)


def _ids_to(node: Node | None) -> list[int]:
    ids = []
    while node is not None:
        ids.append(node.token)
        node = node.parent
    return ids[::-1]


def _mask_kinds(model: Any) -> dict[str, int | None]:
    """Kind of attention layer -> how many positions it looks back, None for all; "" is the one kind that there is."""
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return {"": window}
    return {kind: window if kind == "sliding_attention" else None for kind in {*kinds, "full_attention"}}
