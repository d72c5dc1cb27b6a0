"""`vllm.EngineArgs`: the names of the options that tests give."""

from dataclasses import dataclass
from typing import Any


@dataclass
class EngineArgs:
    model: str
    tokenizer: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    seed: int = 0
    max_model_len: int | None = None
    max_logprobs: int = 20
    logprobs_mode: str = "raw_logprobs"
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    gpu_memory_utilization: float = 0.92
    quantization: str | None = None
    enable_prefix_caching: bool | None = None
    enforce_eager: bool = False
    enable_lora: bool = False
    max_lora_rank: int = 16
    skip_tokenizer_init: bool = False
    hf_overrides: Any = None
