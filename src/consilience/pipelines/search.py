"""The whole of `consilience search` for a file of prompts: load, search what is not there yet, a line per prompt."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from consilience.config import flatten
from consilience.errors import ConfigError, DataError, pick
from consilience.models import load_model
from consilience.pipelines.recipe import Places
from consilience.records import Message, messages_of, read_rows, write_jsonl
from consilience.run import fingerprint, write_json
from consilience.search import METHODS, Models, Prompt, Result, SearchSettings, TreeModel, search

OnProgress = Callable[[str, int, int], None]
REFUSED = "refused"


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

    def outcome(self) -> dict[str, Any]:
        """What decides the replies, as it is kept beside them."""
        names = {"large": self.model} | (dict(zip(("tuned", "untuned"), self.guide)) if self.guide else {})
        places = Places(Path(), Path())
        models = {name: fingerprint(places.model(path)) for name, path in names.items()}
        settings = self.settings.model_dump(mode="json")
        return {"method": self.method, "seed": self.seed, "raw": self.raw, "dtype": self.dtype} | settings | models


def search_file(job: SearchJob, *, on_progress: OnProgress = lambda what, done, total: None) -> dict[str, Any]:
    """Searches a reply for every prompt of a file, and returns how many ended in which way.

    `job.out` holds a line per prompt, in their order; `<out>.settings.json` what decided them. What is there is not
    searched again. Raises `ConfigError` when it was made with other settings or models, and nothing is overwritten.
    """
    pick(METHODS, job.method, "search method")
    prompts = read_prompts(job.prompts, seed=job.seed, limit=job.limit)
    with _results(job) as (file, found):
        _refuse_other_prompts(job.out, prompts, found)
        missing = [prompt for prompt in prompts if prompt.id not in found]
        counts: dict[str, Any] = {}
        if missing:
            models = _load(job)
            searches, settings = METHODS[job.method](models, job.settings)
            on_progress("search", len(prompts) - len(missing), len(prompts))
            by_id = {prompt.id: prompt for prompt in missing}
            for result in search(searches, missing, settings, batch=job.batch):
                row = _row(by_id[result.id], result) if isinstance(result, Result) else _refusal(*result)
                found[row["id"]] = row
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
                on_progress("search", sum(prompt.id in found for prompt in prompts), len(prompts))
            counts = _counts(models)
        _put_in_order(job.out, prompts, found)
    return _summary(job, prompts, found, len(missing)) | counts


def read_prompts(path: Path, *, seed: int, limit: int | None = None) -> list[Prompt]:
    """The prompts of a JSONL, JSON or Parquet file: `prompt` text or `messages`, of which a last reply is left out."""
    prompts: dict[str, Prompt] = {}
    for index, (where, row) in enumerate(read_rows(path)):
        if limit is not None and index >= limit:
            break
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got {type(row).__name__}, expected an object with 'prompt' or 'messages'.")
        id_ = str(index if row.get("id") is None else row["id"])
        if id_ in prompts:
            raise DataError(f"{where}: a second prompt with the id {id_!r}. Give each its own.")
        prompts[id_] = Prompt(id_, _messages(row, where), seed)
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


def _load(job: SearchJob) -> Models:
    places = Places(Path(), Path())

    def tree_model(path: str, name: str) -> TreeModel:
        folder = places.model(path)
        return TreeModel(load_model(folder, name=name, dtype=job.dtype, code=job.trust_remote_code))

    large = tree_model(job.model, job.model)
    if job.guide is None or job.method == "sample":
        return Models(large, raw=job.raw)
    tuned, untuned = (tree_model(path, path) for path in job.guide)
    return Models(large, tuned, untuned, raw=job.raw)


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
        file = job.out.open("a+", encoding="utf-8")
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


def _refusal(prompt: Prompt, error: DataError) -> dict[str, Any]:
    return {"id": prompt.id, "messages": _turns(prompt), "status": REFUSED, "why": str(error)}


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
    return {
        "out": str(job.out.resolve()),
        "method": job.method,
        "prompts": len(prompts),
        "searched": searched,
        "status": dict(Counter(row["status"] for row in rows)),
        "mean_score": sum(scores) / len(scores) if scores else None,
        "tokens": sum(row.get("tokens", 0) for row in rows),
    }
