"""Which engine runs a chat model of this machine: transformers or vLLM. One choice, the same in all recipes. No torch.

models: {large: {path: models/large, engine: vllm, engine_options: {tensor_parallel_size: 2}}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer, model_validator

from consilience.config import DECIDES, Settings
from consilience.errors import ConfigError

if TYPE_CHECKING:
    from consilience.models.protocols import Model

VLLM = "vllm"
# Options of vLLM that say how fast it is, and not what it answers.
PACE = frozenset(
    "gpu_memory_utilization kv_cache_memory_bytes max_num_seqs max_num_batched_tokens disable_log_stats enforce_eager "
    "cpu_offload_gb block_size load_format safetensors_load_strategy".split()
)


class EngineSettings(Settings):
    """The choice, as a part of the block of settings that names a model."""

    engine: Literal["transformers", "vllm"] = "transformers"
    engine_options: dict[str, Any] = Field({}, description="of vllm.LLM: tensor_parallel_size, max_model_len, ...")

    @property
    def chosen(self) -> list[dict[str, Any]]:
        """What decides an outcome beside other settings: nothing where it is the default."""
        choice = EngineSettings(engine=self.engine, engine_options=self.engine_options).decides()
        return [choice] if choice else []

    @model_validator(mode="after")
    def _options_have_an_engine(self) -> Self:
        if self.engine_options and self.engine != VLLM:
            raise ConfigError("engine_options are vLLM's: give engine: vllm, or leave them out")
        return self

    @model_serializer(mode="wrap")
    def _to_json(self, whole: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Of what decides an outcome: the engine where it is not the default, and its options without their pace.

        So that runs from before there was a choice go on, and a run on other GPUs does; by how many copies (`ray`)
        decides nothing.
        """
        tree: dict[str, Any] = whole(self)
        if info.context == DECIDES:
            tree.pop("ray", None)
            options = {name: value for name, value in tree.pop("engine_options").items() if name not in PACE}
            tree |= {"engine_options": options} if options else {}
            if self.engine != VLLM:
                del tree["engine"]
        return tree


def open_model(
    path: str | Path,
    choice: EngineSettings,
    *,
    name: str = "",
    dtype: str = "float32",
    code: bool = False,
    tokenizer: Any = None,
    top_k: int = 0,
    longest: int | None = None,
    adapters: Path | None = None,
    **placed: Any,
) -> Model:
    """The chat model at `path`, ready to score and to sample, run by the engine of `choice`.

    vLLM has to know beforehand how many likeliest tokens will be asked for (`top_k`), the `longest` text, to set aside
    no more memory than that, and the folder of LoRA `adapters` over the model; transformers is told of them by others.
    `placed` are `load_model`'s further options, which vLLM has ones of its own for.
    Raises `ConfigError` or `BackendError` for an engine that is not installed or a model it cannot run.
    """
    if choice.engine == VLLM:
        from consilience.models.vllm import load_vllm

        how: dict[str, Any] = {"name": name, "dtype": dtype, "code": code, "tokenizer": tokenizer}
        how |= {"options": choice.engine_options, "top_k": top_k, "longest": longest, "adapters": adapters}
        return load_vllm(path, **how)
    from consilience.models.load import load_model

    return load_model(path, name=name, dtype=dtype, code=code, tokenizer=tokenizer, **placed)


def refuse_engine(choice: EngineSettings) -> None:
    """Raises `ConfigError` before any work where the engine is not installed, or has no such options."""
    if choice.engine == VLLM:
        from consilience.models.vllm import refuse_options

        refuse_options(choice.engine_options)


def refuse_elsewhere(choice: EngineSettings, path: str | None) -> None:
    """Raises `ConfigError` where an engine is chosen for what is no model of this machine."""
    if choice.engine == VLLM and path is None:
        raise ConfigError("engine: vllm runs a model of this machine: give its path")


def refuse_placement(choice: EngineSettings, placed: Mapping[str, Any]) -> None:
    """Raises `ConfigError` at what transformers alone is told in this way."""
    ours = {"spread": "tensor_parallel_size: the number of GPUs", "bits": "quantization: such as bitsandbytes or fp8"}
    for key, option in ours.items():
        if placed.get(key):
            raise ConfigError(f"{key} is for engine: transformers. With vLLM give engine_options: {{{option}}}.")
