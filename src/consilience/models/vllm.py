"""A chat model that vLLM runs in this process (https://docs.vllm.ai): the same tokens in as with transformers.

Prompts go in as ids that `consilience.chat` rendered; chat templates and tokenizers of vLLM's own are not used. Whoever
is batched with whom is vLLM's affair: a request's random numbers are its own, and what rounding changes, changes.

Shapes: N scored positions, K likeliest tokens kept, T tokens of a text.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError, ConfigError, nearest
from consilience.models.load import load_tokenizer, read_config
from consilience.models.options import branches
from consilience.models.protocols import Ids, Reply, ReplyStatus, Sampling
from consilience.models.sample import BATCH_SIZE, configured_ends, read_reply
from consilience.models.score import ReplyScores, refuse_foreign_tokens, refuse_no_number
from consilience.rng import seed_of

INSTALL = (
    "engine: vllm needs the package vllm, which is not installed (on Linux with a GPU: pip install vllm, best into an "
    "environment of its own, with consilience beside it). Without it leave engine out: transformers runs the model."
)
# What the recipe says elsewhere, or what the results rest on.
OURS = {
    "model": "path",
    "tokenizer": "path",
    "dtype": "dtype",
    "trust_remote_code": "trust_remote_code",
    "max_logprobs": "represent.top_k",
    "logprobs_mode": "",
    "skip_tokenizer_init": "",
    "enable_lora": "",
    "max_lora_rank": "",
}
FEW_LOGPROBS = 20  # vLLM's own limit where nothing is said
ASKED_OF_ONE_ROW = 128  # tokens whose log-probabilities a request may ask for by name
TOKENS_AT_ONCE = 1 << 17  # of texts in one call: their log-probabilities are Python numbers, about 70 bytes each


@dataclass(frozen=True)
class VllmModel:
    """A `Model` that vLLM runs. `positions` are those of prompt and reply together."""

    name: str
    llm: Any
    tokenizer: Any
    vocabulary_size: int
    positions: int
    ends: Sequence[int]  # tokens that end a reply
    adapters: Any = None  # a LoRARequest

    def context(self, tokens: int) -> int:
        """`tokens`, or as many as vLLM reads where they are fewer: it keeps one position for a token that it writes."""
        return min(tokens, self.positions - 1)

    def score(
        self,
        ids_T_of: Sequence[Ids],
        positions_N_of: Sequence[NDArray[np.intp]],
        *,
        top_k: int = 0,
        batch_tokens: int = 0,
        names: Sequence[str] = (),
    ) -> Iterator[tuple[int, ReplyScores]]:
        """As `score_replies` of transformers, in order; vLLM makes its own batches, so `batch_tokens` is not used."""
        refuse_foreign_tokens(self.name, self.vocabulary_size, ids_T_of, names)
        asks = self.params(max_tokens=1, prompt_logprobs=top_k, flat_logprobs=True)
        for part in _parts([len(ids) for ids in ids_T_of]):
            outputs = self.generate([ids_T_of[index] for index in part], asks)
            for index, output in zip(part, outputs, strict=True):
                scores = _scores_of(output.prompt_logprobs, positions_N_of[index], top_k)
                refuse_no_number(self.name, scores, names[index] if names else str(index))
                yield index, scores

    def replies(
        self,
        prompts_T: Sequence[Ids],
        sampling: Sampling,
        *,
        keys: Sequence[str] | None = None,
        batch_size: int = BATCH_SIZE,
        schema: Mapping[str, Any] | None = None,
    ) -> Iterator[Reply]:
        """As `sample_replies` of transformers; with a JSON `schema` such replies alone as fulfil it.

        Every reply has a seed of its own, of its key and number. They are not those that transformers draws.
        """
        keys = [str(index) for index in range(len(prompts_T))] if keys is None else keys
        constrained = {} if schema is None else {"structured_outputs": _fulfilling(schema)}
        asked: list[tuple[int, int]] = []
        params = []
        for index, prompt_T in enumerate(prompts_T):
            room = min(sampling.max_new_tokens, self.positions - len(prompt_T))
            for sample in range(sampling.samples):
                if room < 1:
                    yield Reply(keys[index], sample, "", ReplyStatus.NO_ROOM, 0)
                    continue
                asked.append((index, sample))
                seed = seed_of(sampling.seed, "sample", keys[index], str(sample))
                params.append(self._drawn(sampling, room, seed, **constrained))
        outputs = self.generate([prompts_T[index] for index, _ in asked], params)
        for (index, sample), output in zip(asked, outputs, strict=True):
            written = [*output.outputs[0].token_ids]
            yield read_reply(self.tokenizer, keys[index], sample, written, ends=self.ends, stop=sampling.stop)

    def option_scorer(self) -> VllmOptionScorer:
        """Who scores set replies."""
        return VllmOptionScorer(self)

    def go_on(self, asked: Sequence[GoOn]) -> list[list[Continued]]:
        """The continuations of every beginning. The prompt that beginnings share vLLM reads once and keeps."""
        params = [self._drawn(one.sampling, one.tokens, one.seed, n=one.draws, logprobs=0) for one in asked]
        found = []
        for one, output in zip(asked, self.generate([one.ids_T for one in asked], params), strict=True):
            completions = sorted(output.outputs, key=lambda each: int(each.index))
            found.append([_continued(each, self.ends) for each in completions] * (one.count // one.draws))
        return found

    def _drawn(self, sampling: Sampling, tokens: int, seed: int, **more: Any) -> Any:
        return self.params(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=tokens,
            seed=seed,
            stop=[*sampling.stop],
            **more,
        )

    def params(self, **settings: Any) -> Any:
        from vllm import SamplingParams

        whole: dict[str, Any] = {"temperature": 0.0, "stop_token_ids": [*self.ends], **settings}
        whole["detokenize"] = bool(whole.get("stop"))  # what vLLM's own text is needed for
        try:
            return SamplingParams(**whole)
        except ValueError as error:
            raise ConfigError(f"vLLM does not draw so: {_first_line(error)}") from error

    def generate(self, prompts_T: Sequence[NDArray[np.integer[Any]]], params: Any) -> list[Any]:
        """vLLM's outputs, in order. Raises `BackendError` where it refuses a request or breaks off."""
        if not len(prompts_T):
            return []
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        prompts = [{"prompt_token_ids": ids.tolist()} for ids in prompts_T]
        lora = {"lora_request": self.adapters} if self.adapters is not None else {}
        try:
            outputs: list[Any] = self.llm.generate(prompts, params, use_tqdm=False, **lora)
        except (ValueError, RuntimeError, EngineDeadError, EngineGenerateError) as error:
            raise BackendError(f"vLLM did not run model {self.name}: {_first_line(error)}") from error
        return outputs


@dataclass(frozen=True, slots=True)
class GoOn:
    """A beginning, prompt and all, and what is wanted of it: so many continuations of at most so many tokens."""

    ids_T: Ids
    count: int
    tokens: int
    sampling: Sampling
    seed: int  # of the first continuation; the others count on from it

    @property
    def draws(self) -> int:
        """How many are really asked for: greedy ones are all the same."""
        return self.count if self.sampling.temperature else 1


@dataclass(frozen=True, slots=True)
class Continued:
    """What was written behind a beginning: its tokens without the one that ended it, which is `end`."""

    ids: tuple[int, ...]
    logprob: float  # nats, under the model's own distribution, whatever temperature it was drawn at
    end: int | None
    stopped: bool  # by that token or by a stop text


@dataclass
class VllmOptionScorer:
    """How likely set replies are (`models.options`): a request for every branching of their tokens.

    Each asks for the log-probabilities of the tokens that may follow there, by name. What all prompts begin with, and a
    prompt before its branchings, vLLM's prefix cache reads once.
    """

    model: VllmModel

    def __call__(self, prompts: Sequence[Ids], options: Sequence[Ids]) -> NDArray[np.float64]:
        """Log-probabilities [N, K] in nats, each summed over the option's tokens; NaN where they do not fit the model.

        Raises `BackendError` where the model gives NaN.
        """
        scores_NK = np.full((len(prompts), len(options)), np.nan)
        longest = max(map(len, options))
        fits = [i for i, ids in enumerate(prompts) if len(ids) + longest <= self.model.positions]
        asked, params, meant = [], [], []
        for prefix, tokens in branches(options).items():
            listed = [*tokens]
            for begin in range(0, len(listed), ASKED_OF_ONE_ROW):
                part = listed[begin : begin + ASKED_OF_ONE_ROW]
                asks = self.model.params(max_tokens=1, logprob_token_ids=part)
                for i in fits:
                    asked.append(np.array([*prompts[i], *prefix], dtype=np.int32))
                    params.append(asks)
                    meant.append((i, {token: tokens[token] for token in part}))
        scores_NK[fits] = 0.0
        for (i, options_of), output in zip(meant, self.model.generate(asked, params), strict=True):
            told = output.outputs[0].logprobs[0]
            for token, places in options_of.items():
                scores_NK[i, places] += told[token].logprob
        if not np.isfinite(scores_NK[fits]).all():
            raise BackendError(
                f"model {self.model.name} gives NaN, or rules out a label altogether. "
                "Its weights may be damaged, or need another dtype (dtype: float32)."
            )
        return scores_NK


def load_vllm(
    path: str | Path,
    *,
    name: str = "",
    dtype: str = "float32",
    code: bool = False,
    tokenizer: Any = None,
    options: Mapping[str, Any] | None = None,
    top_k: int = 0,
    longest: int | None = None,
    adapters: Path | None = None,
) -> VllmModel:
    """The chat model at `path` under vLLM. `longest` is the most tokens of a text that will be scored, `top_k` how many
    likeliest tokens will be asked for; `adapters` is a folder of LoRA adapters over the model.

    Raises `ConfigError` for an option that vLLM has not, `BackendError` where it cannot load the model.
    """
    options = dict(options or {})
    refuse_options(options)
    from vllm import LLM

    if tokenizer is None:
        tokenizer = load_tokenizer(path, code=code)
    of_text = read_config(path, code=code).get_text_config()
    if longest is not None and "max_model_len" not in options:
        options["max_model_len"] = min(getattr(of_text, "max_position_embeddings", None) or longest + 1, longest + 1)
    if adapters is not None:
        options |= {"enable_lora": True, "max_lora_rank": _rank(adapters)}
    try:
        llm = LLM(
            model=str(path),
            dtype=dtype,
            trust_remote_code=code,
            max_logprobs=max(FEW_LOGPROBS, top_k),
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise BackendError(f"vLLM cannot run the model {str(path)!r}: {_first_line(error)}") from error
    return VllmModel(
        name=name or str(path),
        llm=llm,
        tokenizer=tokenizer,
        vocabulary_size=int(of_text.vocab_size),
        positions=int(llm.llm_engine.model_config.max_model_len),
        ends=configured_ends(path, tokenizer, code=code),
        adapters=_lora(adapters) if adapters is not None else None,
    )


def refuse_options(options: Mapping[str, Any]) -> None:
    """Raises `ConfigError` where vLLM is not installed, or has no such option, or the recipe says it elsewhere."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(INSTALL)
    for option in options:
        if option in OURS:
            where = f"give {OURS[option]} there" if OURS[option] else "what is computed here rests on it"
            raise ConfigError(f"engine_options.{option} is not yours to give: {where}.")
    try:
        from vllm import EngineArgs
    except ImportError as error:
        raise BackendError(f"vllm is installed but does not load: {_first_line(error)}") from error
    there_are = {each.name for each in dataclasses.fields(EngineArgs)}
    for option in options:
        if option not in there_are:
            raise ConfigError(
                f"vLLM has no option {option!r} (engine_options).{nearest(option, there_are)} "
                "https://docs.vllm.ai lists them under EngineArgs."
            )


def _rank(adapters: Path) -> int:
    """The smallest rank that vLLM sets room aside for and that the adapters fit in."""
    rank = int(json.loads((adapters / "adapter_config.json").read_text(encoding="utf-8"))["r"])
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512, rank) if size >= rank)


def _lora(adapters: Path) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapters", 1, str(adapters))


def _parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of texts, in order, at most TOKENS_AT_ONCE tokens at a time (but one text always)."""
    part: list[int] = []
    tokens = 0
    for index, length in enumerate(lengths):
        if part and tokens + length > TOKENS_AT_ONCE:
            yield part
            part, tokens = [], 0
        part.append(index)
        tokens += length
    if part:
        yield part


def _scores_of(told: Any, positions_N: NDArray[np.intp], top_k: int) -> ReplyScores:
    """What is stored of a text's log-probabilities, of which the first token has none.

    Of each position vLLM tells the token that stands there, then the likeliest in order; that one may be among them.
    """
    starts_N = np.asarray(told.start_indices, dtype=np.int64)[positions_N]
    ids = np.asarray(told.token_ids, dtype=np.int32)
    logprobs = np.asarray(told.logprobs, dtype=np.float32)
    likeliest_NK = starts_N[:, None] + np.arange(1, top_k + 1)
    return ReplyScores(logprobs[starts_N], ids[likeliest_NK], logprobs[likeliest_NK])


def _fulfilling(schema: Mapping[str, Any]) -> Any:
    """vLLM's constraint to texts that a JSON schema allows."""
    from vllm.sampling_params import StructuredOutputsParams

    return StructuredOutputsParams(json=dict(schema))


def _continued(completion: Any, ends: Sequence[int]) -> Continued:
    ids = [int(id_) for id_ in completion.token_ids]
    logprob = sum(told[id_].logprob for id_, told in zip(ids, completion.logprobs, strict=True))
    end = ids[-1] if ids and ids[-1] in ends else None
    return Continued(
        ids=tuple(ids if end is None else ids[:-1]),
        logprob=float(logprob),
        end=end,
        stopped=completion.finish_reason == "stop",
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__).rstrip(".") + "."
