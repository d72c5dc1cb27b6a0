"""Learn: a copy of the pivot trained on its targets; the examples, the batches and the objective.

Shapes: B conversations, T tokens, N reply positions of the batch, J candidates, V vocabulary, C chunks, M of the N.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from consilience.align.pieces import SharedPieces
from consilience.chat import Rendered
from consilience.errors import pick
from consilience.fuse.losses import LOSSES, Outcomes, after, chunk_loss, outcomes
from consilience.fuse.select import GOLD, NO_CHUNK, Targets, load_targets
from consilience.fuse.teach import MERGED, TOKENS, UNTAUGHT
from consilience.models.packed import Tree, pack
from consilience.train import Objective, loss_through_head

SPACES = 8  # more than there are spaces of `teach`
UNFUSED = -1
ROWS = (
    "target_ids",
    "target_probs",
    "gold_weight",
    "fusion_weight",
    "teacher",
    "space",
    "chunk",
    "chunk_logprob",
)
Pieces = Callable[[int], Mapping[int, SharedPieces]]  # by teacher, by space

IGNORED = -100
SHARDS_HELD = 4


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation as the pivot reads it, and what is learnt at its N reply tokens."""

    name: str
    ids_T: NDArray[np.int32]
    position_N: NDArray[np.integer[Any]]
    ids_NJ: NDArray[np.int32]
    probs_NJ: NDArray[np.float32]
    gold_weight_N: NDArray[np.float32]
    fusion_weight_N: NDArray[np.float32]
    teacher_N: NDArray[np.int8]
    space_N: NDArray[np.int8]
    chunk_N: NDArray[np.int32]
    chunk_logprob_N: NDArray[np.float32]


class FusionExamples(Dataset[Example]):
    """The examples of one target: rendered on demand, targets read shard by shard."""

    def __init__(
        self,
        names: Sequence[str],
        rendered: Callable[[int], Rendered],
        targets: Path,
        shard_conversations: int,
        indices: Sequence[int],
    ) -> None:
        self.names, self.rendered, self.targets = names, rendered, targets
        self.shard_conversations, self.indices = shard_conversations, indices
        self._shards: OrderedDict[int, Targets] = OrderedDict()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> Example:
        index = self.indices[item]
        shard = self._shard(index // self.shard_conversations)
        at = slice(*np.searchsorted(shard.conversation_N, [index, index + 1]))
        return Example(
            self.names[index],
            self.rendered(index).ids_T,
            shard.position_N[at],
            shard.ids_NJ[at],
            shard.probs_NJ[at],
            shard.gold_weight_N[at],
            shard.fusion_weight_N[at],
            shard.teacher_N[at],
            shard.space_N[at],
            shard.chunk_N[at],
            shard.chunk_logprob_N[at],
        )

    def _shard(self, number: int) -> Targets:
        if number not in self._shards:
            if len(self._shards) >= SHARDS_HELD:
                self._shards.popitem(last=False)
            self._shards[number] = load_targets(self.targets, number)
        return self._shards[number]


class SupervisedExamples(Dataset[Example]):
    """The examples of plain supervised fine-tuning: every reply token is learnt at full weight."""

    def __init__(self, names: Sequence[str], rendered: Sequence[Rendered]) -> None:
        self.names, self.rendered = names, rendered

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, item: int) -> Example:
        one = self.rendered[item]
        positions = one.reply_positions
        count = len(positions)
        return Example(
            self.names[item],
            one.ids_T,
            positions,
            ids_NJ=np.zeros((count, 1), dtype=np.int32),
            probs_NJ=np.zeros((count, 1), dtype=np.float32),
            gold_weight_N=np.ones(count, dtype=np.float32),
            fusion_weight_N=np.zeros(count, dtype=np.float32),
            teacher_N=np.full(count, GOLD, dtype=np.int8),
            space_N=np.full(count, TOKENS, dtype=np.int8),
            chunk_N=np.full(count, NO_CHUNK, dtype=np.int32),
            chunk_logprob_N=np.full(count, UNTAUGHT),
        )


@dataclass(slots=True)
class Batches:
    """The collator of a training; counts the tokens of its batches, and the positions that they take when padded."""

    packed: bool
    tokens: int = 0
    padded: int = 0

    def __call__(self, examples: Sequence[Example]) -> dict[str, Any]:
        sizes = [len(example.ids_T) for example in examples]
        self.tokens += sum(sizes)
        self.padded += len(sizes) * max(sizes)
        return collate(examples, packed=self.packed)


def collate(examples: Sequence[Example], *, packed: bool = False) -> dict[str, Any]:
    """A batch: what the model reads, and the targets of all reply positions in one list, conversation by conversation.

    `inputs` are the conversations one after another in a single row (`packed`, for a model under `packed_attention`),
    or a row each, padded on the right. `shift_labels`, of the shape of the ids, holds at the place that predicts it
    every token that is learnt, and IGNORED elsewhere.
    """
    inputs, places_of = _packed(examples) if packed else _padded(examples)
    shift_labels = torch.full_like(inputs["input_ids"], IGNORED)
    for example, places_T in zip(examples, places_of, strict=True):
        learnt = torch.from_numpy(example.ids_T[example.position_N].astype(np.int64))
        shift_labels.view(-1)[torch.from_numpy(places_T[example.position_N - 1])] = learnt
    return {
        "inputs": inputs,
        "shift_labels": shift_labels,
        "labels": shift_labels,  # Trainer counts `shift_labels` only in a batch that has `labels`
        "target_ids": torch.from_numpy(np.concatenate([e.ids_NJ for e in examples]).astype(np.int64)),
        "target_probs": torch.from_numpy(np.concatenate([e.probs_NJ for e in examples])),
        "gold_weight": torch.from_numpy(np.concatenate([e.gold_weight_N for e in examples])),
        "fusion_weight": torch.from_numpy(np.concatenate([e.fusion_weight_N for e in examples])),
        "teacher": torch.from_numpy(np.concatenate([e.teacher_N for e in examples])),
        "space": torch.from_numpy(np.concatenate([e.space_N for e in examples])),
        "chunk": torch.from_numpy(_renumbered([e.chunk_N for e in examples])),
        "chunk_logprob": torch.from_numpy(np.concatenate([e.chunk_logprob_N for e in examples])),
        "names": [example.name for example in examples],
    }


Placed = tuple[dict[str, Any], list[NDArray[np.int64]]]  # a model's inputs; by example, the place of every token


def _packed(examples: Sequence[Example]) -> Placed:
    """One row; the conversations share no beginning."""
    row = pack([Tree(np.zeros(0, dtype=np.int32), tuple(example.ids_T for example in examples))])
    return row.inputs, row.places_of[0]


def _padded(examples: Sequence[Example]) -> Placed:
    width = max(len(example.ids_T) for example in examples)
    ids_BT = torch.zeros(len(examples), width, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, example in enumerate(examples):
        ids_BT[row, : len(example.ids_T)] = torch.from_numpy(example.ids_T.astype(np.int64))
        mask_BT[row, : len(example.ids_T)] = 1
    places_of = [row * width + np.arange(len(example.ids_T)) for row, example in enumerate(examples)]
    return {"input_ids": ids_BT, "attention_mask": mask_BT}, places_of


def _renumbered(chunk_N_of: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """The chunks of a batch numbered 0, 1, ... through all its conversations; NO_CHUNK stays."""
    parts, first = [], 0
    for chunk_N in chunk_N_of:
        inside = chunk_N != NO_CHUNK
        numbers, renumbered = np.unique(chunk_N[inside], return_inverse=True)
        part = np.full(len(chunk_N), NO_CHUNK, dtype=np.int64)
        part[inside] = renumbered + first
        parts.append(part)
        first += len(numbers)
    return np.concatenate(parts)


def fusion_objective(loss: str, pieces: Pieces | None = None, *, chunk_temperature: float = 1.0) -> Objective:
    """`sum_n gold_weight_n · CLM_n + fusion_weight_n · loss_n + sum_c fusion_weight_c · chunk_loss_c`, in nats.

    Over a batch's reply positions n and taught chunks c. `pieces(teacher)` are those of the `Link` to a source, by its
    number in the targets; they are asked for where a target's rows are in pieces.
    """
    sparse_loss = pick(LOSSES, loss, "fusion loss")

    @functools.cache
    def shared(teacher: int, space: int, device: torch.device) -> tuple[Tensor, int]:
        """The piece of every pivot token, and how many pieces there are."""
        assert pieces is not None, "targets in pieces need the pieces"
        found = pieces(teacher)[space]
        return torch.from_numpy(found.of_pivot.astype(np.int64)).to(device), len(found.texts)

    def students(
        logits_NV: Tensor, rows: Mapping[str, Tensor], kind_N: Tensor
    ) -> Iterator[tuple[int, Tensor, Outcomes]]:
        """`(kind, places_M, outcomes)` of the rows of every kind; of one without rows where there are none at all."""
        kinds, counts = kind_N.unique(return_counts=True)
        order_N = kind_N.argsort(stable=True)
        logits_NV = logits_NV[order_N] if len(kinds) > 1 else logits_NV  # one copy, not one per kind
        sizes = counts.tolist() or [0]
        parts = zip(kinds.tolist() or [UNFUSED], order_N.split(sizes), logits_NV.split(sizes), strict=True)
        for kind, places_M, logits_MV in parts:
            ids_MJ, probs_MJ = rows["target_ids"][places_M], rows["target_probs"][places_M]
            if kind == UNFUSED:
                ids_MJ, probs_MJ = ids_MJ[:, :0], probs_MJ[:, :0]
            in_pieces = kind != UNFUSED and kind % SPACES not in (TOKENS, MERGED)
            groups = shared(kind // SPACES, kind % SPACES, logits_NV.device) if in_pieces else (None, 0)
            yield kind, places_M, outcomes(logits_MV, rows["gold"][places_M], ids_MJ, probs_MJ, *groups)

    def sums_of(logits_NV: Tensor, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums over positions whose targets are `rows`; no chunk of text begins before or ends after them."""
        weight_N = rows["fusion_weight"]
        fused_N = (weight_N > 0) & rows["target_probs"].gt(0).any(-1)
        found = [*students(logits_NV, rows, _kinds(rows, fused_N))]
        sorted_back = torch.cat([places_M for _, places_M, _ in found]).argsort()
        gold_nll_N = -torch.cat([student.gold_N for *_, student in found])[sorted_back]
        total = (rows["gold_weight"] * gold_nll_N).sum()
        sums = {"gold": gold_nll_N.sum()}
        ahead_N = _ahead(-gold_nll_N, rows["chunk"])
        for kind, places_M, student in found:
            if kind == UNFUSED:
                continue
            seen = after(student, ahead_N[places_M]) if kind % SPACES == MERGED else student
            fusion_M = torch.where(fused_N[places_M], sparse_loss(seen, rows["target_probs"][places_M]), 0.0)
            total = total + (weight_N[places_M] * fusion_M).sum()
            sums["fusion"] = sums.get("fusion", 0) + fusion_M.sum()
        chunked_N = (weight_N > 0) & rows["chunk_logprob"].isfinite()
        if chunked_N.any():
            chunk_M = rows["chunk"][chunked_N].unique(return_inverse=True)[1]
            first_C = _first_places(chunk_M)
            student_C = torch.zeros(len(first_C), device=chunk_M.device).index_add(0, chunk_M, -gold_nll_N[chunked_N])
            loss_C = chunk_loss(student_C, rows["chunk_logprob"][chunked_N][first_C], chunk_temperature)
            total = total + (weight_N[chunked_N][first_C] * loss_C).sum()
            sums["chunk"] = loss_C.sum()
        return {"loss": total} | sums

    def objective(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        learnt_BT = batch["shift_labels"] != IGNORED
        rows = {name: batch[name] for name in ROWS} | {"gold": batch["shift_labels"][learnt_BT]}
        return loss_through_head(
            model,
            batch["inputs"],
            learnt_BT,
            lambda logits_MV, block: sums_of(logits_MV, {name: row_N[block] for name, row_N in rows.items()}),
            cuts=_between_chunks(rows["chunk"]),
        )

    return objective


def _kinds(rows: Mapping[str, Tensor], fused_N: Tensor) -> Tensor:
    """What the rows' candidates are: a number per teacher and space, UNFUSED where there are none.

    Where all that are fused are of one kind the others count to it, so that nothing is sorted; no loss counts them.
    """
    kind_N = rows["teacher"].long() * SPACES + rows["space"]
    of_fused = kind_N[fused_N].unique()
    return of_fused.expand_as(kind_N) if len(of_fused) == 1 else torch.where(fused_N, kind_N, UNFUSED)


def _between_chunks(chunk_N: Tensor) -> Tensor:
    """Before which positions no chunk is open; chunks are numbered in the order of the text."""
    numbers_N = torch.where(chunk_N == NO_CHUNK, len(chunk_N), chunk_N)
    opens_next_N = numbers_N.flip(0).cummin(0).values.flip(0)
    opened_N = torch.cat([chunk_N.new_full((1,), NO_CHUNK), chunk_N.cummax(0).values[:-1]])
    return opened_N < opens_next_N


def _ahead(gold_logprob_N: Tensor, chunk_N: Tensor) -> Tensor:
    """Log-probability (nats) of the tokens of its chunk that stand before each position; 0 outside of chunks."""
    inside_N = chunk_N != NO_CHUNK
    ahead_N = torch.zeros_like(gold_logprob_N)
    if inside_N.any():
        chunk_M = chunk_N[inside_N].unique(return_inverse=True)[1]
        logprob_M = gold_logprob_N[inside_N].double()  # small differences of long sums
        before_M = logprob_M.cumsum(0) - logprob_M
        ahead_M = before_M - before_M[_first_places(chunk_M)][chunk_M]
        ahead_N = ahead_N.masked_scatter(inside_N, ahead_M.to(ahead_N.dtype))
    return ahead_N


def _first_places(chunk_M: Tensor) -> Tensor:
    """Where each of the chunks 0, 1, ... stands first, shape [C]."""
    places_M = torch.arange(len(chunk_M), device=chunk_M.device)
    first_C = torch.full((int(chunk_M.max()) + 1,), len(chunk_M), dtype=torch.long, device=chunk_M.device)
    return first_C.scatter_reduce(0, chunk_M, places_M, "amin")
