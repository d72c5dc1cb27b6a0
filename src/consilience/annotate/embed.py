"""Texts as vectors: the mean of a model's last hidden states over a text's tokens, of length 1.

Shapes: N texts, B texts of a batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from consilience.errors import BackendError
from consilience.models.load import context_of, load_tokenizer

BATCH_TOKENS = 4096  # with padding


@dataclass(frozen=True)
class Embedder:
    """A sentence encoder or any language model of a local folder; `prefix` is what it wants before every text."""

    model: Any
    tokenizer: Any
    prefix: str = ""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors [N, D]; what is longer than the model's context is cut off."""
        ids_N = [self.tokenizer(self.prefix + text)["input_ids"] for text in texts]
        ids_N = [ids[: context_of(self.model, len(ids))] or [self.tokenizer.eos_token_id or 0] for ids in ids_N]
        found: dict[int, NDArray[np.float64]] = {}
        for batch in _of_like_length([len(ids) for ids in ids_N]):
            for place, vector_D in zip(batch, self._means([ids_N[i] for i in batch]), strict=True):
                found[place] = vector_D / max(float(np.linalg.norm(vector_D)), 1e-300)
        return np.array([found[place] for place in range(len(texts))])

    @torch.inference_mode()
    def _means(self, ids_B: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The mean of the last hidden states over every text's own tokens [B, D]; padding stands behind them."""
        device = next(self.model.parameters()).device
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in ids_B], batch_first=True).to(device)
        tokens_B = torch.tensor([len(ids) for ids in ids_B], device=device)
        mask_BT = (torch.arange(ids_BT.shape[1], device=device) < tokens_B[:, None]).long()
        states_BTD = self.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state.float()
        sums_BD = (states_BTD * mask_BT[..., None]).sum(1)
        found: NDArray[np.float64] = (sums_BD / tokens_B[:, None]).double().cpu().numpy()
        return found


def _of_like_length(tokens_N: Sequence[int]) -> Iterator[list[int]]:
    """The places of all texts, the shortest first, in batches of at most `BATCH_TOKENS` tokens with padding."""
    batch: list[int] = []
    for place in sorted(range(len(tokens_N)), key=tokens_N.__getitem__):
        if batch and tokens_N[place] * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def load_embedder(path: Path, prefix: str = "") -> Embedder:
    """The encoder in the folder `path`. Raises `BackendError` where there is none; nothing is fetched."""
    if not path.is_dir():
        raise BackendError(f"embedding: no folder {path}. Annotation fetches nothing: download the model first.")
    try:
        model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BackendError(f"embedding: cannot load {path}: {reason}") from None
    if torch.cuda.is_available():
        model.to("cuda")
    return Embedder(model.eval(), load_tokenizer(path), prefix)
