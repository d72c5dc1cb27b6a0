"""Keys and values of many replies at once, in buffers that stay where they are.

Shapes: B rows in use, H key heads, T columns, D head width. Rows end in the same column and begin where their length
says, so that one forward pass of one column serves all of them; the columns before a row's beginning are masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer


class _Extent:
    """Which part of the buffers is in use; all layers share it."""

    def __init__(self) -> None:
        self.rows = self.begin = self.end = 0


class _Layer(DynamicLayer):
    def __init__(self, extent: _Extent) -> None:
        super().__init__()
        self.extent = extent

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys: Any = self.keys
        values: Any = self.values
        rows, begin, end = self.extent.rows, self.extent.begin, self.extent.end
        more = key_states.shape[-2]
        keys[:rows, :, end : end + more] = key_states
        values[:rows, :, end : end + more] = value_states
        return keys[:rows, :, begin : end + more], values[:rows, :, begin : end + more]

    def get_seq_length(self) -> int:
        return self.extent.end - self.extent.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class Rows:
    """A transformers cache whose rows come and go."""

    def __init__(self) -> None:
        self.lengths: list[int] = []  # tokens of each row
        self.extent = _Extent()
        self.layers: list[Any] = []
        self.cache: Cache | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, prefilled: DynamicCache, source_rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Takes over rows of a cache whose prompts were padded on the left; a source row may be taken several times."""
        width = max(lengths)
        self._make_room(len(self) + len(lengths), max(width, self._width()) + 1, prefilled)
        first, end = len(self), self.extent.end
        chosen = torch.tensor(source_rows)
        sources: list[Any] = prefilled.layers
        for layer, source in zip(self.layers, sources, strict=True):
            for mine, theirs in ((layer.keys, source.keys), (layer.values, source.values)):
                mine[first : first + len(chosen), :, end - width : end] = theirs[chosen.to(theirs.device), :, -width:]
        self.lengths += lengths
        self._measure()

    def remove(self, rows: Sequence[int]) -> list[int]:
        """Lets `rows` go. Returns which old row each row now is: the last ones move into the places that come free."""
        order = [*range(len(self))]
        for row in sorted(rows, reverse=True):
            last = order.pop()
            if row < len(order):
                order[row] = last
        moved = [(place, row) for place, row in enumerate(order) if place != row]
        for layer in self.layers:
            for place, row in moved:
                layer.keys[place, :, : self.extent.end] = layer.keys[row, :, : self.extent.end]
                layer.values[place, :, : self.extent.end] = layer.values[row, :, : self.extent.end]
        self.lengths = [self.lengths[row] for row in order]
        self._measure()
        return order

    def next_inputs(self, device: torch.device) -> dict[str, Any]:
        """What a forward pass of one more token per row needs beside the ids."""
        self._make_room(len(self), self._width() + 1)
        end, begin = self.extent.end, self.extent.begin
        lengths_B1 = torch.tensor(self.lengths)[:, None]
        mask_BT = torch.arange(begin, end + 1)[None] >= end - lengths_B1
        return {
            "position_ids": lengths_B1.to(device),
            "attention_mask": mask_BT.long().to(device),
            "past_key_values": self.cache,
        }

    def grown(self) -> None:
        """A forward pass has added one token to every row."""
        self.lengths = [length + 1 for length in self.lengths]
        self.extent.end += 1

    def wipe(self) -> None:
        """Zeroes what no row uses: a masked NaN is still NaN once it is multiplied by nothing."""
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[len(self) :] = 0
                buffer[:, :, self.extent.end :] = 0

    def _width(self) -> int:
        return max(self.lengths, default=0)

    def _measure(self) -> None:
        self.extent.rows = len(self)
        self.extent.begin = self.extent.end - self._width()

    def _make_room(self, rows: int, width: int, like: DynamicCache | None = None) -> None:
        """Buffers of at least `rows` rows, in use up to a column behind which one more fits, with `width` before it.

        Columns move to the front when the end of the buffers is reached; buffers grow by doubling.
        """
        if self.cache is None:
            assert like is not None
            sources: list[Any] = like.layers
            self.layers = [_Layer(self.extent) for _ in sources]
            self.cache = Cache(layers=self.layers)
            for layer, source in zip(self.layers, sources, strict=True):
                layer.keys = source.keys.new_zeros((0, source.keys.shape[1], 0, source.keys.shape[3]))
                layer.values = source.values.new_zeros((0, source.values.shape[1], 0, source.values.shape[3]))
                layer.is_initialized = True
        held_rows, _, held_columns, _ = self.layers[0].keys.shape
        begin, end = self.extent.begin, self.extent.end
        needed = width - 1  # columns in use before the next one
        if rows <= held_rows and end + 1 <= held_columns and end >= needed:
            return
        grown_rows = held_rows if rows <= held_rows else max(rows, 2 * held_rows)
        spare = width + max(64, width // 4)  # a column moves to the front once in so many steps
        grown_columns = held_columns if spare <= held_columns else spare
        new_end = max(needed, end - begin)
        place = slice(new_end - (end - begin), new_end)
        for layer in self.layers:
            for name in ("keys", "values"):
                old = getattr(layer, name)
                used = old[: len(self), :, begin:end].clone()
                if (grown_rows, grown_columns) != (held_rows, held_columns):
                    old = old.new_zeros((grown_rows, old.shape[1], grown_columns, old.shape[3]))
                    setattr(layer, name, old)
                old[: len(self), :, place] = used
        self.extent.end = new_end
        self._measure()
