"""Learn: a copy of the pivot trained on its targets; the examples, the batches and the objective.

Shapes: B conversations, T tokens, N reply positions of the batch, J candidates, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from consilience.chat import Rendered
from consilience.errors import pick
from consilience.fuse.losses import LOSSES, gold_nll
from consilience.fuse.select import Targets, load_targets
from consilience.train import Objective

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
        none = np.zeros((len(positions), 1))
        ones = np.ones(len(positions), dtype=np.float32)
        return Example(
            self.names[item], one.ids_T, positions, none.astype(np.int32), none.astype(np.float32), ones, 0 * ones
        )


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch: ids padded on the right, and the targets of all reply positions in one list, row by row.

    `shift_labels` [B, T] holds, at the place that predicts it, every token that is learnt, and IGNORED elsewhere.
    """
    width = max(len(example.ids_T) for example in examples)
    input_ids_BT = torch.zeros(len(examples), width, dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    shift_labels_BT = torch.full_like(input_ids_BT, IGNORED)
    for row, example in enumerate(examples):
        ids = torch.from_numpy(example.ids_T.astype(np.int64))
        positions = torch.from_numpy(example.position_N.astype(np.int64))
        input_ids_BT[row, : len(ids)] = ids
        mask_BT[row, : len(ids)] = 1
        shift_labels_BT[row, positions - 1] = ids[positions]
    return {
        "input_ids": input_ids_BT,
        "attention_mask": mask_BT,
        "shift_labels": shift_labels_BT,
        "labels": shift_labels_BT,  # Trainer counts `shift_labels` only in a batch that has `labels`
        "target_ids": torch.from_numpy(np.concatenate([e.ids_NJ for e in examples]).astype(np.int64)),
        "target_probs": torch.from_numpy(np.concatenate([e.probs_NJ for e in examples])),
        "gold_weight": torch.from_numpy(np.concatenate([e.gold_weight_N for e in examples])),
        "fusion_weight": torch.from_numpy(np.concatenate([e.fusion_weight_N for e in examples])),
        "names": [example.name for example in examples],
    }


def fusion_objective(loss: str) -> Objective:
    """`sum_n gold_weight_n · CLM_n + fusion_weight_n · loss_n` over a batch's reply positions, in nats."""
    sparse_loss = pick(LOSSES, loss, "fusion loss")

    def objective(model: torch.nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits_BTV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        learnt_BT = batch["shift_labels"] != IGNORED
        logits_NV, gold_N = logits_BTV[learnt_BT], batch["shift_labels"][learnt_BT]
        gold_nll_N = gold_nll(logits_NV, gold_N)
        total = (batch["gold_weight"] * gold_nll_N).sum()
        sums = {"gold": gold_nll_N.sum()}
        fused_N = batch["fusion_weight"] > 0
        if fused_N.any():
            fusion_M = sparse_loss(logits_NV[fused_N], batch["target_ids"][fused_N], batch["target_probs"][fused_N])
            total = total + (batch["fusion_weight"][fused_N] * fusion_M).sum()
            sums["fusion"] = fusion_M.sum()
        return {"loss": total} | sums

    return objective
