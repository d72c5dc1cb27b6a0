"""Loading a chat model: a local folder or a hub name, any `AutoModelForCausalLM`."""

from __future__ import annotations

import gc
import importlib.util
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from consilience.errors import BackendError, pick
from consilience.weights import Checkpoint

if TYPE_CHECKING:
    from consilience.models.options import OptionScorer
    from consilience.models.protocols import Ids, Reply, Sampling
    from consilience.models.score import ReplyScores

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
REACHABLE = (
    "Expected a local Hugging Face folder or a hub name that this machine can reach; "
    "the same command goes on with a download that broke off."
)
# The last ones: of the HTTP client beneath huggingface_hub, where a connection breaks.
UNLOADABLE: Any = (OSError, ValueError, KeyError, SafetensorError, *HfHubHTTPError.__bases__)
TOKENIZER_FILES = (
    "Its files are tokenizer.json, tokenizer.model or tekken.json (the last two need the packages sentencepiece, "
    "protobuf and tiktoken), and tokenizer_config.json if there is one."
)
FAR = 1 << 30  # positions


def context_of(model: Any, tokens: int = FAR) -> int:
    """`tokens`, or the positions that the model has where they are fewer; FAR for a model that states no limit."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(tokens, positions) if positions else tokens


@dataclass(frozen=True)
class ChatModel:
    """A causal language model, ready to score and to sample, and the tokenizer that goes with it."""

    name: str
    model: Any
    tokenizer: Any

    @property
    def vocabulary_size(self) -> int:
        """Rows of the language-model head; may exceed the tokenizer's length (padded vocabularies)."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    # A `Model`, whose other engines are beside this one; each of these is told in the module that does it.

    def context(self, tokens: int) -> int:
        return context_of(self.model, tokens)

    def score(
        self, ids_T_of: Sequence[Ids], positions_N_of: Sequence[NDArray[np.intp]], **how: Any
    ) -> Iterator[tuple[int, ReplyScores]]:
        from consilience.models.score import score_replies

        return score_replies(self, ids_T_of, positions_N_of, **how)

    def replies(self, prompts_T: Sequence[Ids], sampling: Sampling, **how: Any) -> Iterator[Reply]:
        from consilience.models.sample import sample_replies

        return sample_replies(self, prompts_T, sampling, **how)

    def option_scorer(self) -> OptionScorer:
        from consilience.models.options import OptionScorer

        return OptionScorer(self)


def make_room() -> None:
    """Gives back what models that nobody needs any more hold: two may not fit together."""
    gc.collect()  # a finished Trainer, its optimizer and its callbacks hold one another
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_model(
    path: str | Path,
    *,
    name: str = "",
    dtype: str = "float32",
    code: bool = False,
    place: bool = True,
    spread: bool = False,
    bits: int | None = None,
    tokenizer: Any = None,
) -> ChatModel:
    """The chat model at `path` in evaluation mode, on the GPU where there is one; on the CPU unless `place`.

    `spread` puts its layers over all GPUs, the CPU and the disk, as they fit; `bits` (4 or 8) quantises its linear
    layers by bitsandbytes. `code` allows the checkpoint's own Python code to run; a `tokenizer` that is loaded already
    is not loaded again. Raises `BackendError` when it cannot be loaded, lacks weights (which transformers would draw
    at random), or is too large for the GPU.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(path, code=code)
    on_gpu = place and torch.cuda.is_available()
    if on_gpu and not spread and not bits:
        refuse_too_large(path, dtype, torch.cuda.mem_get_info()[0])
    placed: dict[str, Any] = {"device_map": "auto"} if spread or bits else {}
    if bits:
        placed["quantization_config"] = _quantised(bits)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=pick(DTYPES, dtype, "dtype"),
            trust_remote_code=code,
            local_files_only=_is_local(path),
            use_safetensors=True,  # pickled weights can run code
            ignore_mismatched_sizes=True,  # refused below, with the tensor's name
            output_loading_info=True,
            **placed,
        )
    except UNLOADABLE as error:
        raise _cannot_load("model", path, error) from error
    model, found = loaded
    unfit = sorted([*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])])
    if unfit:
        raise BackendError(
            f"cannot load the model {str(path)!r}: of its weights {len(unfit)} are missing or have another shape than "
            f"config.json says, {unfit[0]} among them. Get the model's files again."
        )
    if on_gpu and not placed:
        model.to("cuda")
    return ChatModel(name or str(path), model.eval(), tokenizer)


def refuse_too_large(path: str | Path, dtype: str, free_bytes: int) -> None:
    """Raises `BackendError` when the weights of the checkpoint at `path` take more than `free_bytes` as `dtype`."""
    if not _is_local(path):
        return
    sizes = [math.prod(shape) for shape in Checkpoint(Path(path)).shapes.values()]
    numbers = sum(sizes)
    needed = numbers * DTYPES[dtype].itemsize
    if needed <= free_bytes:
        return
    smaller = {"bfloat16": 2 * numbers, "8 bits": numbers, "4 bits": numbers // 2}
    fits = [f"{name} ({_gb(size)})" for name, size in smaller.items() if size <= free_bytes and size < needed]
    would_fit = ", ".join(fits) or f"a model of {free_bytes / 2e9:.0f} billion parameters in bfloat16"
    raise BackendError(
        f"the weights of {str(path)!r} take {_gb(needed)} in {dtype}, and {_gb(free_bytes)} are free on the GPU. "
        f"What would fit: {would_fit}; or its layers over all GPUs and the CPU (--set represent.spread=true)."
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.0f} GB"


def _quantised(bits: int) -> Any:
    """Settings of bitsandbytes for 4 (NF4, arXiv 2305.14314) or 8 bits (arXiv 2208.07339)."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BackendError(f"{bits} bits need the package bitsandbytes: pip install bitsandbytes.")
    from transformers import BitsAndBytesConfig

    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def load_tokenizer(path: str | Path, *, code: bool = False) -> Any:
    """The tokenizer at `path`. Raises `BackendError` when it cannot be loaded, or there is none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=code, local_files_only=_is_local(path))
    except UNLOADABLE as error:
        raise _cannot_load("tokenizer", path, error, TOKENIZER_FILES if _is_local(path) else REACHABLE) from error
    # For some architectures transformers makes up a tokenizer without pieces where a folder has none: of control
    # tokens, and for some a space.
    if len(tokenizer.get_vocab()) <= len(tokenizer.get_added_vocab()) + 1:
        raise BackendError(f"{str(path)!r} has no tokenizer. {TOKENIZER_FILES}")
    return tokenizer


def vocabulary_size(path: str | Path, *, code: bool = False) -> int:
    """The vocabulary size that the model's configuration states, read without loading weights."""
    return int(read_config(path, code=code).get_text_config().vocab_size)


def architecture(path: str | Path, *, code: bool = False) -> str:
    """The class of the model, as its configuration states it."""
    config = read_config(path, code=code)
    return next(iter(config.architectures or ()), type(config).__name__)


def read_config(path: str | Path, *, code: bool = False) -> Any:
    """The model's configuration. Raises `BackendError` where it has none."""
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=code, local_files_only=_is_local(path))
    except UNLOADABLE as error:
        raise _cannot_load("model", path, error) from error


def _is_local(path: str | Path) -> bool:
    return Path(path).exists()


def _cannot_load(kind: str, path: str | Path, error: Exception, expected: str = REACHABLE) -> BackendError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if reason.startswith("Couldn't instantiate the backend tokenizer"):  # the half of a sentence
        reason = "its files are missing, or a package that reads them is"
    return BackendError(f"cannot load the {kind} {str(path)!r}: {reason.rstrip(' .:')}. {expected}")
