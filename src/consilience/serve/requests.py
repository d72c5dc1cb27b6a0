"""A body in OpenAI's format -> jobs; whatever is wrong with it -> one error object in OpenAI's format."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from pydantic_core import PydanticCustomError

from consilience.chat.render import HALF_CHARACTER
from consilience.errors import nearest
from consilience.records import Message
from consilience.serve.generate import Sampling, SearchChoice

INVALID, NOT_FOUND, TOO_MANY = "invalid_request_error", "not_found_error", "rate_limit_error"
LONGEST_SEED = 2**63
MOST_STOPS = 16
# Labels for the caller's own use: they do not change a reply.
LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id"}
# What this server cannot do, and the values that ask for nothing: clients send those by default.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": (None,),
    "audio": (None,),
    "bad_words": (None, []),
    "best_of": (None, 1),
    "cache_salt": (None,),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "detokenize": (None, True),
    "documents": (None, []),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_decoding_backend": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "include_reasoning": (None, True, False),
    "length_penalty": (None, 1),
    "logits_processors": (None, []),
    "mm_processor_kwargs": (None, {}),
    "modalities": (None, ["text"]),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "priority": (None, 0),
    "prompt_logprobs": (None,),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "return_token_ids": (None, False),
    "return_tokens_as_token_ids": (None, False),
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "store": (None, False),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
    "verbosity": (None,),
    "vllm_xargs": (None, {}),
    "web_search_options": (None,),
}


class ApiError(Exception):
    """What a client is told: an HTTP status and OpenAI's error object."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type_: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after_s = status, retry_after_s
        self.body = {"error": {"message": message, "type": type_, "param": param, "code": code}}


def _whole_characters(text: str) -> str:
    if HALF_CHARACTER.search(text):
        raise PydanticCustomError("half_character", "holds half a surrogate pair, which is no character")
    return text


TokenId = Annotated[StrictStr, Field(pattern=r"^[0-9]{1,9}$")]  # as JSON's keys have it
Text = Annotated[StrictStr, AfterValidator(_whole_characters)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class StreamOptions(_Body):
    include_usage: StrictBool = False
    include_obfuscation: StrictBool | None = None  # OpenAI's padding against listening in; there is none here
    continuous_usage_stats: Literal[False] | None = None  # vLLM's; usage comes once, at the end


class _Request(_Body):
    """What both kinds of request have in common. None is the server's own setting."""

    model: Text
    n: Annotated[StrictInt, Field(ge=1, le=128)] | None = None
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(strict=True, ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    top_k: Annotated[StrictInt, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(strict=True, ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(strict=True, ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(strict=True, gt=0, le=10)] | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(strict=True, ge=-100, le=100)]] | None = None
    seed: Annotated[StrictInt, Field(ge=-LONGEST_SEED, lt=LONGEST_SEED)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    stop_token_ids: list[StrictInt] | None = None
    include_stop_str_in_output: StrictBool = False
    min_tokens: Annotated[StrictInt, Field(ge=0)] = 0
    ignore_eos: StrictBool = False
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    width: Annotated[StrictInt, Field(ge=1)] | None = None
    successors: Annotated[StrictInt, Field(ge=1)] | None = None
    chunk: Annotated[StrictInt, Field(ge=1)] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with what it has used."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def search(self) -> SearchChoice:
        return SearchChoice(width=self.width, successors=self.successors, chunk=self.chunk)


class ContentPart(_Body):
    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    model_config = ConfigDict(extra="allow")  # clients send back what they got, empty fields and all

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[ContentPart] | None = None


class ChatRequest(_Request):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    add_generation_prompt: StrictBool = True
    add_special_tokens: Literal[False] | None = None  # vLLM's default for a chat: its template has them already
    continue_final_message: StrictBool = False

    @property
    def goes_on(self) -> bool:
        """The reply goes on with the last message, which is the assistant's."""
        return self.continue_final_message

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(_Request):
    prompt: Text | list[Text] | list[StrictInt] | list[list[StrictInt]]
    logprobs: Annotated[StrictInt, Field(ge=0, le=20)] | None = None
    add_special_tokens: StrictBool = True

    @property
    def goes_on(self) -> bool:
        return True

    @property
    def wanted_tokens(self) -> int:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default

    @property
    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[*self.prompt]]  # type: ignore[list-item]  # all of them are
        return [*self.prompt]  # type: ignore[list-item]


FIELDS = {
    name
    for kind in (ChatRequest, CompletionRequest, ChatMessage, ContentPart, StreamOptions)
    for name in kind.model_fields
}


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises `ApiError`."""
    try:
        tree = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8: {error.reason} at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ApiError(400, f"the body is not JSON: {error.msg}, {where}.") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply.") from None
    except ValueError as error:  # a number of more digits than Python reads, NaN
        raise ApiError(400, f"the body has a number that cannot be read: {error}.") from None
    if not isinstance(tree, dict):
        raise ApiError(400, f"the body is a JSON {_kind(tree)}; expected an object.")
    return tree


def read_chat(tree: Mapping[str, Any]) -> ChatRequest:
    """Raises `ApiError` that names the parameter."""
    request = _read(ChatRequest, tree)
    for place, message in enumerate(request.messages):
        for key, value in (message.model_extra or {}).items():
            if key != "name" and value not in (None, [], {}, ""):
                param = f"messages[{place}].{key}"
                raise ApiError(400, f"{param!r} is not supported by this server.", param=param, code="unsupported")
        if message.content is None and message.role != "assistant":
            param = f"messages[{place}].content"
            raise ApiError(400, f"{param!r} is missing or null; expected text.", param=param)
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    if request.continue_final_message:
        if request.messages[-1].role != "assistant":
            message_ = "'continue_final_message' needs an assistant's message at the end."
            raise ApiError(400, message_, param="continue_final_message")
        if tree.get("add_generation_prompt"):
            message_ = "'continue_final_message' and 'add_generation_prompt' exclude one another."
            raise ApiError(400, message_, param="continue_final_message")
    elif not request.add_generation_prompt:
        message_ = "'add_generation_prompt': false is supported with 'continue_final_message' only."
        raise ApiError(400, message_, param="add_generation_prompt", code="unsupported")
    return request


def read_completion(tree: Mapping[str, Any]) -> CompletionRequest:
    """Raises `ApiError` that names the parameter."""
    request = _read(CompletionRequest, tree)
    if not request.prompt and not isinstance(request.prompt, str):
        raise ApiError(400, "'prompt' is an empty list.", param="prompt")
    return request


def messages_of(request: ChatRequest) -> list[Message]:
    """The chat as our records have it: parts of text joined, a developer's message as the system's."""
    return [
        Message(
            "system" if message.role == "developer" else message.role,
            message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content or ()),
        )
        for message in request.messages
    ]


def sampling_of(
    request: ChatRequest | CompletionRequest, defaults: Mapping[str, float], *, prompt_tokens: int, context: int
) -> Sampling:
    """How the replies to a prompt of `prompt_tokens` tokens are drawn; `defaults` are the model's own settings.

    Raises `ApiError` where the prompt, or the prompt and the tokens asked for, exceed `context`.
    """
    wanted = request.wanted_tokens
    if prompt_tokens + (wanted or 1) > context:
        asked = f"{prompt_tokens} tokens of prompt and {wanted or 1} of reply"
        raise ApiError(
            400,
            f"This model's maximum context length is {context} tokens. However, you requested {asked}.",
            param="messages" if isinstance(request, ChatRequest) else "prompt",
            code="context_length_exceeded",
        )
    stops = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if "" in stops:
        raise ApiError(400, "'stop' holds an empty text.", param="stop")

    def own(name: str, otherwise: float) -> float:
        value = getattr(request, name)
        return float(defaults.get(name, otherwise) if value is None else value)

    return Sampling(
        max_tokens=context - prompt_tokens if wanted is None else wanted,
        temperature=own("temperature", 1.0),
        top_p=own("top_p", 1.0),
        top_k=max(0, int(own("top_k", 0))),
        min_p=own("min_p", 0.0),
        seed=secrets.randbits(62) if request.seed is None else request.seed,
        stop=stops,
        keep_stop=request.include_stop_str_in_output,
        stop_ids=frozenset(request.stop_token_ids or ()),
        min_tokens=request.min_tokens,
        ignore_end=request.ignore_eos,
        presence_penalty=own("presence_penalty", 0.0),
        frequency_penalty=own("frequency_penalty", 0.0),
        repetition_penalty=own("repetition_penalty", 1.0),
        logit_bias=tuple((int(id_), bias) for id_, bias in (request.logit_bias or {}).items()),
        logprobs=request.wanted_logprobs,
    )


R = TypeVar("R", bound=_Request)


def _read(kind: type[R], tree: Mapping[str, Any]) -> R:
    known = {name: value for name, value in tree.items() if name in kind.model_fields}
    for name in tree.keys() - known.keys() - LABELS:
        shown = name[:64]
        if name not in NEUTRAL:
            meant = nearest(shown, kind.model_fields)
            raise ApiError(400, f"Unrecognized request argument supplied: {shown!r}.{meant}", param=shown)
        if not any(same(tree[name], neutral) for neutral in NEUTRAL[name]):
            raise ApiError(400, f"{name!r} is not supported by this server.", param=name, code="unsupported")
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise _first(error) from None


def _first(error: ValidationError) -> ApiError:
    """The first parameter's complaint, with its path as JSON writes it; of several types that it might be, that one
    which the value came closest to."""
    complaints = error.errors(include_url=False, include_context=False, include_input=False)
    about_first = [complaint for complaint in complaints if complaint["loc"][:1] == complaints[0]["loc"][:1]]
    complaint = max(about_first, key=lambda complaint: len(complaint["loc"]))
    param = ""
    for step in complaint["loc"]:
        if isinstance(step, int):
            param += f"[{step}]"
        elif step in FIELDS or complaint["type"] == "extra_forbidden":  # and not one of several types: 'list[str]'
            param += f".{step[:64]}" if param else step[:64]
    message = complaint["msg"][:1].lower() + complaint["msg"][1:]
    return ApiError(400, f"{param!r}: {message}.", param=param or None)


def same(value: Any, neutral: Any) -> bool:
    """Equal as JSON has it: 0 is not false."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _kind(value: Any) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return kinds.get(type(value), "number")
