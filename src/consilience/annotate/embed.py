"""Texts as vectors: the mean of a model's last hidden states over a text's tokens, of length 1.

Shapes: N texts, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from consilience.errors import BackendError
from consilience.models.load import context_of, load_tokenizer


@dataclass(frozen=True)
class Embedder:
    """A sentence encoder or any language model of a local folder; `prefix` is what it wants before every text."""

    model: Any
    tokenizer: Any
    prefix: str = ""

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit vectors [N, D]; what is longer than the model's context is cut off. Each text alone: no padding."""
        found = []
        for text in texts:
            ids = self.tokenizer(self.prefix + text)["input_ids"]
            ids = ids[: context_of(self.model, len(ids))] or [self.tokenizer.eos_token_id or 0]
            device = next(self.model.parameters()).device
            states_TD = self.model(input_ids=torch.tensor([ids], device=device)).last_hidden_state[0]
            vector_D = states_TD.float().mean(0).double().cpu().numpy()
            found.append(vector_D / max(float(np.linalg.norm(vector_D)), 1e-300))
        return np.array(found)


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
