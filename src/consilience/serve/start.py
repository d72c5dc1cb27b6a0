"""From a model's name to something that can be served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from consilience.config import parse
from consilience.errors import ConfigError, pick
from consilience.models import ChatModel, context_of, load_model
from consilience.models.load import DTYPES, read_config
from consilience.search import METHODS, Guide, Models, SearchSettings, TreeModel
from consilience.search.shape import CHUNK, SUCCESSORS, WIDTH
from consilience.serve.engine import Engine
from consilience.serve.generate import SEARCH_SETTINGS, Generator
from consilience.serve.guided import GuidedSearch
from consilience.serve.jobs import Reader, Served
from consilience.serve.metrics import Metrics
from consilience.serve.plain import PlainSampling

SAMPLED_BY = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SERVED_METHODS = ("cbs", "best-of-n", "eft", "sample")  # beam heeds no temperature or seed, aligntree streams nothing
SAME_DTYPE = {"half": "float16", "float": "float32"}  # vLLM's other names
GENERATION_CONFIGS = ("auto", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeSettings:
    """Everything that decides what is served; how it is reached is not part of it."""

    model: str
    served_model_name: str = ""
    dtype: str = "float32"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_waiting: int = 1024
    request_timeout_s: float = 600.0
    generation_config: str = "auto"
    trust_remote_code: bool = False
    guide: tuple[str, str] | None = None  # tuned and untuned
    method: str = "cbs"
    width: int = WIDTH
    successors: int = SUCCESSORS
    chunk: int | None = CHUNK  # None: the whole reply

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_waiting", "request_timeout_s"):
            if not getattr(self, name) > 0:  # NaN neither
                raise ConfigError(f"{_flag(name)} is {getattr(self, name)}; it must be above 0.")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError(f"--max-model-len is {self.max_model_len}; a prompt and a reply need 2 tokens at least.")
        if self.guide is None and self.method != "cbs":
            raise ConfigError(f"--method {self.method} needs a small pair. Give --guide TUNED:UNTUNED.")
        if self.generation_config not in GENERATION_CONFIGS:
            raise ConfigError(f"--generation-config is {self.generation_config!r}; expected auto or none.")


@dataclass(frozen=True, slots=True)
class Ready:
    """What `make_app` needs, and what a person who starts the server should know."""

    served: Served
    engine: Engine
    metrics: Metrics
    notes: tuple[str, ...]


def prepare(settings: ServeSettings) -> Ready:
    """Loads what is served. Raises `BackendError` and `ConfigError`."""
    search = _search_settings(settings)
    pair = _load_pair(settings)  # what is wrong with it shows before a large model is loaded
    chat_model = _load(settings, settings.model)
    defaults, not_applied = _defaults(settings, search, chat_model)
    served = _served(settings, chat_model, defaults)
    generator: Generator
    if pair:
        tuned, untuned = pair
        models = Models(TreeModel(chat_model), tuned, untuned)
        generator = guided = GuidedSearch(models, search, method=settings.method, max_replies=settings.max_num_seqs)
        served = _guided(served, guided, models, settings)
    else:
        generator = PlainSampling(chat_model, max_replies=settings.max_num_seqs)
    metrics = Metrics()
    engine = Engine(generator, max_waiting=settings.max_waiting, timeout_s=settings.request_timeout_s, metrics=metrics)
    return Ready(served, engine, metrics, tuple(_notes(settings, served, chat_model, not_applied)))


def _load_pair(settings: ServeSettings) -> list[TreeModel]:
    """Tuned and untuned, or nothing. Raises `ConfigError` where they have different tokenizers."""
    pair = [TreeModel(_load(settings, name)) for name in settings.guide or ()]
    if pair:
        Guide(*pair)
    return pair


def _served(settings: ServeSettings, chat_model: ChatModel, defaults: Mapping[str, float]) -> Served:
    """The model as clients see it, without a guide."""
    positions = context_of(chat_model.model)
    return Served(
        name=settings.served_model_name or settings.model,
        tokenizer=chat_model.tokenizer,
        context=min(settings.max_model_len or positions, positions),
        vocabulary=chat_model.vocabulary_size,
        most_replies=settings.max_num_seqs,
        defaults=defaults,
    )


def _notes(
    settings: ServeSettings, served: Served, chat_model: ChatModel, not_applied: tuple[str, ...]
) -> Iterator[str]:
    """What a person who starts the server should know."""
    positions = context_of(chat_model.model)
    if settings.max_model_len and settings.max_model_len > positions:
        yield f"--max-model-len {settings.max_model_len} exceeds the model's {positions} positions, which hold"
    if not served.tokenizer.chat_template:
        yield "the model has no chat template: /v1/chat/completions refuses, /v1/completions works"
    if not_applied:
        yield f"of the model's generation_config.json {', '.join(not_applied)} is not applied"
    if served.defaults:
        told = ", ".join(f"{name} {value:g}" for name, value in served.defaults.items())
        yield f"where a request does not say otherwise: {told}"
    for guide in served.guides:
        if served.tokenizer.chat_template and not guide.tokenizer.chat_template:
            yield f"the guide {guide.name} has no chat template: /v1/chat/completions refuses"


def _guided(served: Served, guided: GuidedSearch, models: Models, settings: ServeSettings) -> Served:
    most = guided.settings.width * guided.settings.successors
    if most > settings.max_num_seqs:
        raise ConfigError(
            f"a reply takes {most} hypotheses at once (--width times --successors), more than --max-num-seqs "
            f"{settings.max_num_seqs}. Raise it, or search less widely."
        )
    shown = {name: getattr(guided.settings, name) for name in SEARCH_SETTINGS}
    pair = [tree.chat_model for tree in models.pair()]
    return replace(
        served,
        replies_of=guided.replies_of,
        guides=tuple(Reader(name=one.name, tokenizer=one.tokenizer, context=context_of(one.model)) for one in pair),
        overrides=settings.method == "cbs",
        about={"guide": ":".join(one.name for one in pair), "method": settings.method} | shown,
    )


def _search_settings(settings: ServeSettings) -> SearchSettings:
    pick({name: METHODS[name] for name in SERVED_METHODS}, settings.method, "search method")
    shape = {name: getattr(settings, name) for name in SEARCH_SETTINGS}
    return parse(shape, SearchSettings, where="--guide")


def _load(settings: ServeSettings, name: str) -> ChatModel:
    pick(dict.fromkeys(("auto", *DTYPES, *SAME_DTYPE)), settings.dtype, "dtype")
    dtype = SAME_DTYPE.get(settings.dtype, settings.dtype)
    if dtype == "auto":
        stated = str(read_config(name, code=settings.trust_remote_code).dtype).removeprefix("torch.")
        dtype = stated if stated in DTYPES else "float32"
    return load_model(name, dtype=dtype, code=settings.trust_remote_code)


def _defaults(
    settings: ServeSettings, search: SearchSettings, chat_model: ChatModel
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Sampling settings where a request has none, and what of the model's own is not done here."""
    defaults = {"temperature": search.temperature, "top_k": float(search.top_k)} if settings.guide else {}
    if settings.generation_config == "none":
        return defaults, ()
    stated, not_applied = sampling_defaults(chat_model)
    if settings.guide and stated.pop("repetition_penalty", 1.0) != 1:
        not_applied = (*not_applied, "repetition_penalty")
    return defaults | stated, not_applied


def sampling_defaults(chat_model: ChatModel) -> tuple[dict[str, float], tuple[str, ...]]:
    """What the model's generation configuration says of sampling, and what it says that is not done here."""
    stated: Mapping[str, Any] = chat_model.model.generation_config.to_diff_dict()
    defaults = {name: float(stated[name]) for name in SAMPLED_BY if stated.get(name) is not None}
    ignored = (f"{name} {stated[name]}" for name in ("no_repeat_ngram_size", "typical_p") if stated.get(name))
    return defaults, tuple(ignored)


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")
