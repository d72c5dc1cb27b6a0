"""Stands in for vLLM where it cannot be installed: the classes, signatures and outputs of vLLM that are used, on CPU.

Written against the interface of vLLM 0.33.0. What it answers is computed by transformers, one text at a time, so it
tells whether the engine asks rightly and reads rightly what it is told, and nothing of vLLM's own arithmetic.
"""

from vllm.arg_utils import EngineArgs
from vllm.llm import LLM
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams, StructuredOutputsParams

__version__ = "0.33.0"
__all__ = ["LLM", "CompletionOutput", "EngineArgs", "RequestOutput", "SamplingParams", "StructuredOutputsParams"]
