"""The next token of several replies, each under its own settings and with random numbers of its own.

Shapes: B replies, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from consilience.models.nucleus import keep_likeliest
from consilience.serve.generate import Sampling


def draw(logits_BV: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """One token per row of `logits_BV` (float32). A row's token depends on nothing in the other rows.

    The draw is the likeliest token after Gumbel noise on each, so rounding in the model's arithmetic, which differs
    from batch to batch, changes it only where the two best are within rounding of one another.
    """

    def cut(row: int) -> tuple[float, int, float, float]:
        own = samplings[row]
        return own.temperature, own.top_k, own.top_p, own.min_p

    ids = [0] * len(samplings)
    for (temperature, top_k, top_p, min_p), alike in groupby(sorted(range(len(samplings)), key=cut), key=cut):
        rows = list(alike)
        scores_BV = logits_BV[torch.tensor(rows, device=logits_BV.device)]
        if temperature:
            scores_BV = keep_likeliest(scores_BV / temperature, top_k=top_k, top_p=top_p)
            if min_p:
                least_B1 = scores_BV.amax(-1, keepdim=True) + torch.log(torch.tensor(min_p))
                scores_BV = scores_BV.masked_fill(scores_BV < least_B1, -torch.inf)
            noise_BV = torch.stack(
                [torch.empty_like(scores_BV[0]).exponential_(generator=generators[row]) for row in rows]
            )
            scores_BV = scores_BV - noise_BV.log()
        for row, id_ in zip(rows, scores_BV.argmax(-1).tolist(), strict=True):
            ids[row] = id_
    return ids
