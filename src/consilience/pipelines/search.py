"""The whole of `consilience search` for a file of prompts: load, search what is not there yet, a line per prompt."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from consilience.config import flatten
from consilience.errors import ConfigError, DataError, pick
from consilience.models import EngineSettings, load_model, load_tokenizer, open_model, refuse_engine
from consilience.models.endpoint import Endpoint, EndpointSettings, Status, notes_kept
from consilience.models.engine import VLLM
from consilience.pipelines.places import Places
from consilience.records import Message, messages_of, read_rows, write_jsonl
from consilience.run import fingerprint, write_json
from consilience.search import (
    METHODS,
    Guide,
    Models,
    Prompt,
    Result,
    Search,
    Searches,
    SearchSettings,
    TreeModel,
    search,
)
from consilience.search.blackbox import BLACK_BOX, EndpointModel, cost_of
from consilience.search.chunks import NoReply
from consilience.search.texts import prompt_ids
from consilience.search.tree import rare_collections

OnProgress = Callable[[str, int, int], None]
REFUSED = "refused"
PUBLISHED = ("cbs", "best-of-n")  # what the published code does
ASKED_AGAIN = {str(Status.API_ERROR), str(Status.OVER_BUDGET)}  # a reply may come another time


@dataclass(frozen=True, kw_only=True)
class SearchJob:
    """What is searched, by which models and how. `guide` is (tuned, untuned)."""

    model: str
    guide: tuple[str, str] | None
    prompts: Path
    out: Path
    settings: SearchSettings
    method: str = "cbs"
    seed: int = 0
    batch: int = 8
    limit: int | None = None
    dtype: str = "float32"
    raw: bool = False
    trust_remote_code: bool = False
    endpoint: EndpointSettings | None = None  # the large model is behind it
    tokenizer: str | None = None  # the large model's, where it is behind an endpoint
    continue_by: str = "auto"
    engine: EngineSettings = field(default_factory=EngineSettings)  # of the large model; the pair's is transformers

    def __post_init__(self) -> None:
        if self.endpoint and self.on_vllm:
            raise ConfigError("--engine is of a model on this machine, and --endpoint of one on a server. Give one.")
        black_box = "an endpoint" if self.endpoint else "--engine vllm" if self.on_vllm else ""
        if black_box and self.method not in BLACK_BOX:
            methods = ", ".join(BLACK_BOX)
            raise ConfigError(
                f"--method {self.method} needs the large model itself. With {black_box} there are: {methods}."
            )
        if black_box and self.settings.mode == "published":
            raise ConfigError(f"--mode published draws its tokens itself. Leave it out, or search without {black_box}.")
        if self.settings.mode == "published" and self.method not in PUBLISHED:
            raise ConfigError(f"--mode published is of {' and '.join(PUBLISHED)}, not of {self.method}. Leave it out.")
        if self.endpoint is None and (self.tokenizer or self.continue_by != "auto"):
            raise ConfigError("--tokenizer and --continue-by are for a model behind --endpoint.")

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM runs the large model."""
        return self.engine.engine == VLLM

    def outcome(self) -> dict[str, Any]:
        """What decides the replies, as it is kept beside them."""
        names = dict(zip(("tuned", "untuned"), self.guide)) if self.guide else {}
        names |= {"tokenizer": self.tokenizer} if self.tokenizer else {}
        names |= {} if self.endpoint else {"large": self.model}
        places = Places(Path(), Path())
        models = {name: fingerprint(places.model(path)) for name, path in names.items()}
        if self.endpoint:
            models |= {"large": f"{self.endpoint.model} at {self.endpoint.url}", "continue_by": self.continue_by}
        models |= self.engine.decides()
        settings = self.settings.model_dump(mode="json")
        return {"method": self.method, "seed": self.seed, "raw": self.raw, "dtype": self.dtype} | settings | models


def search_file(
    job: SearchJob,
    *,
    on_progress: OnProgress = lambda what, done, total: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> dict[str, Any]:
    """Searches a reply for every prompt of a file, and returns how many ended in which way.

    `on_note` is told what a search behind an endpoint may cost before it starts, and what the server does otherwise
    than asked.

    `job.out` holds a line per prompt, in their order; `<out>.settings.json` what decided them. What is there is not
    searched again. Raises `ConfigError` when it was made with other settings or models, and nothing is overwritten.
    """
    pick(METHODS, job.method, "search method")
    refuse_engine(job.engine)
    prompts = read_prompts(job.prompts, seed=job.seed, limit=job.limit, numbered=job.settings.mode == "published")
    with _results(job) as (file, found):
        _refuse_other_prompts(job.out, prompts, found)
        missing = [prompt for prompt in prompts if prompt.id not in found]
        # Prompts of like length go together, for each has as much room in the cache as the longest under way.
        missing.sort(key=lambda prompt: -sum(len(message.content) for message in prompt.messages))
        counts: dict[str, Any] = {}
        if missing:
            on_progress("search", len(prompts) - len(missing), len(prompts))
            by_id = {prompt.id: prompt for prompt in missing}
            with rare_collections(), _made(job, missing, on_note) as (searches, settings, counted):
                for result in search(searches, missing, settings, batch=job.batch):
                    row = _row(by_id[result.id], result) if isinstance(result, Result) else _refusal(*result)
                    found[row["id"]] = row
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                    on_progress("search", sum(prompt.id in found for prompt in prompts), len(prompts))
                counts = counted()
        elif job.endpoint:
            counts = {"notes": notes_kept(_answers(job), job.endpoint)}
        _put_in_order(job.out, prompts, found)
    return _summary(job, prompts, found, len(missing)) | counts


def read_prompts(path: Path, *, seed: int, limit: int | None = None, numbered: bool = False) -> list[Prompt]:
    """The prompts of a JSONL, JSON or Parquet file: `prompt` text or `messages`, of which a last reply is left out.

    `numbered` ones have `seed` plus their place in the file: the published draws follow from the seed alone.
    """
    prompts: dict[str, Prompt] = {}
    for index, (where, row) in enumerate(read_rows(path)):
        if limit is not None and index >= limit:
            break
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got {type(row).__name__}, expected an object with 'prompt' or 'messages'.")
        id_ = str(index if row.get("id") is None else row["id"])
        if id_ in prompts:
            raise DataError(f"{where}: a second prompt with the id {id_!r}. Give each its own.")
        prompts[id_] = Prompt(id_, _messages(row, where), seed + index * numbered)
    if not prompts:
        raise DataError(f"{path} holds no prompts. Expected one JSON object with 'prompt' or 'messages' per line.")
    return list(prompts.values())


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    text = row.get("prompt")
    if isinstance(text, str):
        return (Message("user", text),)
    if text is not None:
        raise DataError(f"{where}: 'prompt' is {type(text).__name__}, expected text.")
    messages = messages_of(row, where=where)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{where}: nothing comes before the reply that is to be searched for.")
    return messages


Made = tuple[Searches, SearchSettings, Callable[[], dict[str, Any]]]


@contextlib.contextmanager
def _made(job: SearchJob, prompts: Sequence[Prompt], on_note: Callable[[str], None]) -> Iterator[Made]:
    """The search, its settings, and what it counted when it is over."""
    pair = [_load(job, path) for path in job.guide] if job.guide and job.method != "sample" else []
    if job.on_vllm:
        from consilience.search.vllm import VllmLarge

        settings = BLACK_BOX[job.method](job.settings)
        opened: Any = open_model(
            Places(Path(), Path()).model(job.model),
            job.engine,
            name=job.model,
            dtype=job.dtype,
            code=job.trust_remote_code,
        )
        yield Search(VllmLarge(opened, raw=job.raw), _guide(job, pair, settings, opened.tokenizer)), settings, dict
        return
    if job.endpoint is None:
        models = Models(_load(job, job.model), **dict(zip(("tuned", "untuned"), pair)), raw=job.raw)
        yield *METHODS[job.method](models, job.settings), lambda: _counts(models)
        return
    tokenizer = load_tokenizer(job.tokenizer, code=job.trust_remote_code) if job.tokenizer else None
    settings = BLACK_BOX[job.method](job.settings)
    on_note(_estimated(job.endpoint, settings, prompts, tokenizer, raw=job.raw))
    guide = _guide(job, pair, settings)
    with Endpoint(job.endpoint, cache=_answers(job), on_note=on_note) as endpoint:
        large = EndpointModel(endpoint, tokenizer=tokenizer, raw=job.raw, way=job.continue_by)
        yield Search(large, guide), settings, lambda: {"spent": str(endpoint.spent), "notes": endpoint.notes}


def _answers(job: SearchJob) -> Path:
    """The file of the server's answers."""
    return job.out.with_name(job.out.name + ".answers.sqlite")


def _guide(job: SearchJob, pair: Sequence[TreeModel], settings: SearchSettings, tokenizer: Any = None) -> Guide | None:
    """The pair, where there is one; `tokenizer` is the large model's, where its tokens are known."""
    if not pair:
        return None
    how: dict[str, Any] = {"temperature": settings.guide_temperature, "per_token": settings.per_token}
    return Guide(*pair, tokenizer=tokenizer, raw=job.raw, **how)


def estimate_file(job: SearchJob) -> str:
    """What `search_file` of a job behind an endpoint may cost; nobody is asked anything. Raises `ConfigError`."""
    if job.endpoint is None:
        raise ConfigError("--dry-run tells what a server is asked for. Give --endpoint.")
    tokenizer = load_tokenizer(job.tokenizer, code=job.trust_remote_code) if job.tokenizer else None
    prompts = read_prompts(job.prompts, seed=job.seed, limit=job.limit)
    return _estimated(job.endpoint, BLACK_BOX[job.method](job.settings), prompts, tokenizer, raw=job.raw)


def _estimated(
    endpoint: EndpointSettings, settings: SearchSettings, prompts: Sequence[Prompt], tokenizer: Any, *, raw: bool
) -> str:
    """A sentence. Without the large model's tokenizer a token of a prompt is taken for four bytes."""
    tokens = [_prompt_tokens(prompt, tokenizer, raw=raw) for prompt in prompts]
    cost = cost_of(settings, tokens)
    price = endpoint.price
    money = (
        f", {(price.input * cost.input_tokens + price.output * cost.output_tokens) / 1e6:.4g} in money" if price else ""
    )
    # Without the tokenizer it is no bound: chat templates add tokens, and so does other text than English.
    about = "" if tokenizer else " (by four bytes of a prompt to a token, without the chat template)"
    most = "at most" if tokenizer else "about"
    rounds = f"{cost.rounds} round{'s' * (cost.rounds != 1)}"
    return (
        f"{most} {cost.calls:,} calls in {rounds}, {cost.input_tokens:,} tokens in, "
        f"{cost.output_tokens:,} out{money}{about}; replies that end early cost less"
    )


def _prompt_tokens(prompt: Prompt, tokenizer: Any, *, raw: bool) -> int:
    if tokenizer is None:
        return sum(len(message.content.encode()) for message in prompt.messages) // 4 + 1
    try:
        return len(prompt_ids(tokenizer, prompt.messages, raw=raw))
    except DataError:  # the search refuses it by its name, and asks nothing
        return 0


def _load(job: SearchJob, path: str) -> TreeModel:
    folder = Places(Path(), Path()).model(path)
    return TreeModel(load_model(folder, name=path, dtype=job.dtype, code=job.trust_remote_code))


@contextlib.contextmanager
def _results(job: SearchJob) -> Iterator[tuple[IO[str], dict[str, dict[str, Any]]]]:
    """The file of results, open for more lines, and those that are whole in it, by prompt."""
    beside = job.out.with_name(job.out.name + ".settings.json")
    if job.out.is_dir():
        raise ConfigError(f"{job.out} is a folder. Give --out a file, such as replies.jsonl.")
    if job.out.exists() and not beside.exists():
        raise ConfigError(f"{job.out} was not made by a search. Give --out another file.")
    asked = job.outcome()
    try:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        file = job.out.open("a+", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{job.out} cannot be written ({error.strerror}). Give another --out.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another search writes {job.out}. Wait for it, or give another --out.") from None
        if beside.exists():
            _refuse_changes(job.out, json.loads(beside.read_text(encoding="utf-8")), asked)
        else:
            write_json(beside, asked)
        yield file, _whole_lines(file)


def _refuse_changes(out: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    was, now = flatten(made), flatten(asked)
    changes = [
        f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in sorted(was | now) if was.get(key) != now.get(key)
    ]
    if changes:
        raise ConfigError(f"{out} was made with other settings: {'; '.join(changes)}. Give another --out, or those.")


def _whole_lines(file: IO[str]) -> dict[str, dict[str, Any]]:
    """The results in the file by id; what a killed search left of a line is cut off."""
    file.seek(0)
    found, end = {}, 0
    for line in iter(file.readline, ""):
        if not line.endswith("\n"):
            break
        row = json.loads(line)
        found[row["id"]] = row
        end = file.tell()
    for id_ in [id_ for id_, row in found.items() if row["status"] in ASKED_AGAIN]:
        del found[id_]
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return found


def _refuse_other_prompts(out: Path, prompts: Sequence[Prompt], found: Mapping[str, Mapping[str, Any]]) -> None:
    for prompt in prompts:
        row = found.get(prompt.id)
        if row is not None and row["messages"][: len(prompt.messages)] != _turns(prompt):
            raise ConfigError(f"{out} holds a reply to another prompt under the id {prompt.id!r}. Give another --out.")


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _row(prompt: Prompt, result: Result) -> dict[str, Any]:
    best = result.replies[0]
    return {
        "id": prompt.id,
        "messages": [*_turns(prompt), {"role": "assistant", "content": best.text}],
        "status": str(best.finish),
        "score": _rounded(best.score),
        "tokens": best.tokens,
        "prompt_tokens": result.prompt_tokens,
        "chunks": result.chunks,
        "others": [
            {"reply": each.text, "status": str(each.finish), "score": _rounded(each.score)}
            for each in result.replies[1:]
        ],
    }


def _rounded(score: float | None) -> float | None:
    """Nats without the digits that depend on what else was in the batch."""
    return None if score is None else round(score, 4)


def _refusal(prompt: Prompt, error: DataError | NoReply) -> dict[str, Any]:
    status = error.status if isinstance(error, NoReply) else REFUSED
    return {"id": prompt.id, "messages": _turns(prompt), "status": status, "why": str(error)}


def _put_in_order(out: Path, prompts: Sequence[Prompt], found: Mapping[str, Mapping[str, Any]]) -> None:
    """Replies in the order of the prompts, then those of prompts that were asked for earlier."""
    ids = [prompt.id for prompt in prompts]
    partial = out.with_name(out.name + ".partial")
    write_jsonl(partial, [found[id_] for id_ in [*ids, *(id_ for id_ in found if id_ not in set(ids))]])
    partial.rename(out)


def _counts(models: Models) -> dict[str, Any]:
    each = {"large": models.large, "tuned": models.tuned, "untuned": models.untuned}
    return {
        "positions": {name: model.counts.positions for name, model in each.items() if model},
        "cached": {name: model.cached for name, model in each.items() if model},
    }


def _summary(
    job: SearchJob, prompts: Sequence[Prompt], found: Mapping[str, Mapping[str, Any]], searched: int
) -> dict[str, Any]:
    rows = [found[prompt.id] for prompt in prompts]
    scores = [row["score"] for row in rows if row.get("score") is not None]
    tokens = [row.get("tokens", 0) for row in rows]  # None: the server states none
    return {
        "out": str(job.out.resolve()),
        "method": job.method,
        "prompts": len(prompts),
        "searched": searched,
        "status": dict(Counter(row["status"] for row in rows)),
        "mean_score": sum(scores) / len(scores) if scores else None,
        "tokens": None if None in tokens else sum(tokens),
        "why": dict(reversed([(row["status"], row["why"]) for row in rows if "why" in row])),  # the first of each
    }
