"""`vllm.LLM`, by transformers."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from vllm.arg_utils import EngineArgs
from vllm.logprobs import FlatLogprobs, Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams


class LLM:
    requests: list[SamplingParams] = []  # of all that were ever asked, for tests to look at

    def __init__(self, model: str, **kwargs: Any) -> None:
        self.args = EngineArgs(model, **kwargs)
        dtype = getattr(torch, self.args.dtype)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, local_files_only=True).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        positions = self.model.config.max_position_embeddings
        length = self.args.max_model_len or positions
        if length > positions:
            raise ValueError(f"User-specified max_model_len ({length}) is greater than the derived max_model_len")
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=length))
        ends = GenerationConfig.from_pretrained(model).eos_token_id
        self.ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        self.adapters: Any = None

    def generate(
        self,
        prompts: Sequence[dict[str, Any]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: Any = None,
        priority: Any = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
    ) -> list[RequestOutput]:
        params = sampling_params if isinstance(sampling_params, Sequence) else [sampling_params] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError("The lengths of prompts and params must be the same.")
        if lora_request is not None and self.adapters is None:
            from peft import PeftModel

            if not self.args.enable_lora:
                raise ValueError("Got lora_request but LoRA is not enabled!")
            self.adapters = PeftModel.from_pretrained(self.model, lora_request.lora_path).eval()
        asked = zip(prompts, params, strict=True)
        return [self._answer(str(i), prompt["prompt_token_ids"], each) for i, (prompt, each) in enumerate(asked)]

    def _answer(self, id_: str, prompt: list[int], params: SamplingParams) -> RequestOutput:
        LLM.requests.append(params)
        length = self.llm_engine.model_config.max_model_len
        if len(prompt) >= length:
            raise ValueError(f"The decoder prompt (length {len(prompt)}) leaves no room in max_model_len {length}.")
        for asked in (params.logprobs, params.prompt_logprobs):
            if asked is not None and asked > self.args.max_logprobs:
                raise ValueError(f"Requested logprobs of {asked}, which is greater than max allowed")
        told = None
        if params.prompt_logprobs is not None:
            logprobs_TV = self._logprobs(prompt)
            told = FlatLogprobs() if params.flat_logprobs else [None]
            if params.flat_logprobs:
                told.append(None)
            for token, logprobs_V in zip(prompt[1:], logprobs_TV[:-1], strict=True):
                row = _ranked(logprobs_V, token, params.prompt_logprobs)
                if params.flat_logprobs:
                    told.append_fast(*row)
                else:
                    told.append(_named(row))
        outputs = [
            self._complete(
                index, prompt, replace(params, n=1, seed=None if params.seed is None else params.seed + index)
            )
            for index in range(params.n)
        ]
        return RequestOutput(id_, None, prompt, told, outputs, finished=True)

    @torch.inference_mode()
    def _logprobs(self, ids: Sequence[int]) -> torch.Tensor:
        model = self.adapters or self.model
        return model(torch.tensor([[*ids]])).logits[0].float().log_softmax(-1)

    def _complete(self, index: int, prompt: list[int], params: SamplingParams) -> CompletionOutput:
        length = self.llm_engine.model_config.max_model_len
        allowed = None if params.structured_outputs is None else self._texts(params.structured_outputs)
        generator = torch.Generator().manual_seed(params.seed or 0)
        ends = self.ends | {*(params.stop_token_ids or ())}
        written: list[int] = []
        rows: list[dict[int, Logprob]] = []
        finish: tuple[str, int | str | None] = ("length", None)
        while len(written) < (params.max_tokens or length) and len(prompt) + len(written) < length:
            logprobs_V = self._logprobs([*prompt, *written])[-1]
            token = self._draw(logprobs_V.clone(), params, generator, allowed, written)
            if params.logprob_token_ids is not None:
                listed = params.logprob_token_ids
                row = ([token, *listed], logprobs_V[[token, *listed]].tolist(), [0] * (1 + len(listed)))
            else:
                row = _ranked(logprobs_V, token, params.logprobs or 0)
            rows.append(_named(row))
            written.append(token)
            if token in ends:
                finish = ("stop", None if token == self.tokenizer.eos_token_id else token)
                break
            text = self.tokenizer.decode(written, skip_special_tokens=True)
            stop = next((stop for stop in params.stop or () if stop in text), None)
            if stop is not None:
                finish = ("stop", stop)
                break
        kept = written[:-1] if written and written[-1] in ends else written
        text = self.tokenizer.decode(kept, skip_special_tokens=True) if params.detokenize else ""
        wants = params.logprobs is not None or params.logprob_token_ids is not None
        return CompletionOutput(
            index, text, written, None, rows if wants else None, finish_reason=finish[0], stop_reason=finish[1]
        )

    def _draw(
        self,
        logits_V: torch.Tensor,
        params: SamplingParams,
        generator: torch.Generator,
        allowed: list[list[int]] | None,
        written: list[int],
    ) -> int:
        if allowed is not None:
            next_ = {ids[len(written)] for ids in allowed if ids[: len(written)] == written and len(ids) > len(written)}
            ruled_out = torch.full_like(logits_V, -torch.inf)
            ruled_out[[*next_]] = 0
            logits_V += ruled_out
        if params.temperature < 1e-5:
            return int(logits_V.argmax())
        logits_V /= params.temperature
        order = logits_V.argsort(descending=True, stable=True)
        if params.top_k:
            logits_V[order[params.top_k :]] = -torch.inf
        probs_V = logits_V.softmax(-1)
        before_V = probs_V[order].cumsum(-1) - probs_V[order]
        probs_V[order[before_V >= params.top_p]] = 0
        return int(torch.multinomial(probs_V, 1, generator=generator))

    def _texts(self, constraint: Any) -> list[list[int]]:
        """Every text that fulfils a choice, or a schema of one object whose properties are enumerations."""
        if constraint.choice is not None:
            texts = constraint.choice
        else:
            schema = constraint.json if isinstance(constraint.json, dict) else json.loads(constraint.json)
            texts = [json.dumps(dict(pairs)) for pairs in itertools.product(*_pairs(schema))]
        return [
            [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
            for text in texts
        ]


def _pairs(schema: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    for key, of in schema["properties"].items():
        values = of.get("enum")
        if values is None:  # a list of enumerated things: at most two
            items = of["items"]["enum"]
            values = [[], *([item] for item in items), *map(list, itertools.combinations(items, 2))]
        yield [(key, value) for value in values]


Row = tuple[list[int], list[float], list[int]]


def _ranked(logprobs_V: torch.Tensor, token: int, count: int) -> Row:
    """The token that stands there, then the likeliest: ids, log-probabilities and ranks, as vLLM's sampler has them."""
    top = logprobs_V.topk(count)
    rank = int((logprobs_V >= logprobs_V[token]).sum())
    return (
        [token, *top.indices.tolist()],
        [float(logprobs_V[token]), *top.values.tolist()],
        [rank, *range(1, count + 1)],
    )


def _named(row: Row) -> dict[int, Logprob]:
    return {token: Logprob(logprob, rank) for token, logprob, rank in zip(*row, strict=True)}
