"""The whole corpus coded by what is frozen, resumable, in bounded memory; and the labels beside the user's columns."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from consilience.annotate.answers import Status
from consilience.annotate.codebook import CLOSED
from consilience.annotate.coder import Annotation, Coder, GivenLabels, in_batches
from consilience.annotate.configuration import coder_of, grouped_by_model
from consilience.annotate.corpus import TextsDigest, corpus
from consilience.annotate.corrections import Affine
from consilience.annotate.engines import about_local, load_engine
from consilience.annotate.freeze import Frozen, read_frozen
from consilience.annotate.labels import append, ids_so_far, put_in_place, read_labels
from consilience.annotate.recipe import Project
from consilience.annotate.tables import NewColumn, kind_of, write_beside
from consilience.errors import ConfigError, DataError
from consilience.models.ray_data import RaySettings, shared_out
from consilience.run import fingerprint, versions, write_json

OnProgress = Callable[[str, int, int], None]
Batch = tuple[list[str], list[str]]  # ids and texts
Code = Callable[[Iterable[Batch]], Iterable[list[Annotation]]]  # in the order of the batches
FOLDER = "labels"


def run(project: Project, on_progress: OnProgress, *, retry: bool = False) -> dict[str, Any]:
    """Codes every row with every frozen configuration, and writes the table with the labels beside.

    Leaves PROJECT/labels/CONFIGURATION.jsonl with its .json, and PROJECT/labelled.ENDING. The same command goes on with
    a run that was stopped. With `retry`, what ended in an error is coded again; `coded_again` says of how many texts.
    """
    frozen = read_frozen(project)
    folder = project.folder / FOLDER
    folder.mkdir(exist_ok=True)
    with _alone(folder):
        data = project.file(project.recipe.data.path)
        total, texts = 0, TextsDigest()
        for row in corpus(project):  # the whole table once: a bad row is met before hours of work
            total += 1
            texts.add(row)
        about = {"digest": frozen.record["digest"], "data": fingerprint(data), "rows": total, "texts": str(texts)}
        _start_anew_if_refrozen(folder, about, frozen)
        before = _coded_again(folder, frozen)
        for model, names in grouped_by_model(project, list(frozen.names)):
            waiting = [name for name in names if _waits(folder, name, retry)]
            column = project.recipe.models[model].column
            if waiting and column is not None:
                given = {"engine": f"labels made elsewhere, in column {column}"}
                _code(project, _by(GivenLabels(project.codebook)), waiting[0], folder, total, given, on_progress)
            elif waiting:
                _code_by_model(project, frozen, model, waiting, total, on_progress, retry)
        target = write_labelled(project, frozen)
        again = _coded_again(folder, frozen) - before
    summaries = {name: _read_summary(folder, name) for name in frozen.names}
    return {"table": str(target), "rows": total, "configurations": summaries, "coded_again": again}


def _coded_again(folder: Path, frozen: Frozen) -> int:
    """How many texts were coded again so far, over all configurations."""
    there = [_read_summary(folder, name) for name in frozen.names if (folder / f"{name}.json").is_file()]
    return sum(round_["texts"] for record in there for round_ in record["coded_again"])


def _waits(folder: Path, name: str, retry: bool) -> bool:
    """Whether a configuration has something to code: it is not finished, or its errors are to be coded again."""
    if not (folder / f"{name}.json").is_file():
        return True
    return retry and Status.ERROR in _read_summary(folder, name)["statuses"]


def _code_by_model(
    project: Project,
    frozen: Frozen,
    model: str,
    names: list[str],
    total: int,
    on_progress: OnProgress,
    retry: bool,
) -> None:
    """Codes with one model, which is held here only, and let go before the next is loaded."""
    settings = project.recipe.models[model]
    if project.recipe.ray is not None and settings.path is not None:
        about = about_local(model, settings, project.folder)
        for name in names:
            code = _by_copies(project, model, name, frozen.correction(name), project.recipe.ray)
            _code_and_again(project, code, name, total, about, on_progress, retry)
        return
    with closing(load_engine(model, settings, project.folder, project.recipe.batch_size)) as engine:
        for name in names:
            code = _by(coder_of(project, name, engine, frozen.correction(name)))
            _code_and_again(project, code, name, total, engine.about, on_progress, retry)


def _by(coder: Coder | GivenLabels) -> Code:
    """One coder in this process."""
    return partial(map, partial(_annotated, coder))


def _by_copies(project: Project, model: str, name: str, correction: Affine | None, ray: RaySettings) -> Code:
    """A coder in each of Ray's processes, which opens a copy of the model of its own."""
    return partial(shared_out, make=partial(_copy, project, model, name, correction), settings=ray)


def _copy(project: Project, model: str, name: str, correction: Affine | None) -> Callable[[Batch], list[Annotation]]:
    engine = load_engine(model, project.recipe.models[model], project.folder, project.recipe.batch_size)
    return partial(_annotated, coder_of(project, name, engine, correction))


def _annotated(coder: Coder | GivenLabels, batch: Batch) -> list[Annotation]:
    return coder.code(*batch)


def _code_and_again(
    project: Project,
    code: Code,
    name: str,
    total: int,
    engine: dict[str, Any],
    on_progress: OnProgress,
    retry: bool,
) -> None:
    folder = project.folder / FOLDER
    if not (folder / f"{name}.json").is_file():
        _code(project, code, name, folder, total, engine, on_progress)
    if retry:
        _code_errors_again(project, code, name, folder, on_progress)


def _code(
    project: Project,
    code: Code,
    name: str,
    folder: Path,
    total: int,
    engine: dict[str, Any],
    on_progress: OnProgress,
) -> None:
    path = folder / f"{name}.jsonl"
    started = _now()
    column = project.recipe.models[project.recipe.configurations[name][0]].column
    rows = ((row.id, row.text) for row in corpus(project, text=column))
    done = 0
    for id_ in ids_so_far(path):
        there = next(rows, None)
        if there is None or there[0] != id_:
            raise DataError(
                f"{path}, line {done + 1}: id {id_!r}, where the data have {there and there[0]!r}: other data?"
            )
        done += 1
    resumed = done
    for found in code(in_batches(rows, project.recipe.batch_size)):
        append(path, found)
        done += len(found)
        on_progress(name, done, total)
    about = {"engine": engine, "started": started, "finished": _now(), "resumed_at": resumed, "coded_again": []}
    write_json(folder / f"{name}.json", about | {"versions": versions()} | summarise(path))


def _code_errors_again(project: Project, code: Code, name: str, folder: Path, on_progress: OnProgress) -> None:
    """Codes again the lines that ended in an error, and nothing else.

    What is coded lies in NAME.again.jsonl until it takes its lines' places: when all is done, when the server goes
    away, or at the next call after a kill.
    """
    path, again = folder / f"{name}.jsonl", folder / f"{name}.again.jsonl"
    kept = put_in_place(path, again)
    record, now = _read_summary(folder, name), summarise(path)
    errors = now["statuses"].get(Status.ERROR, 0)
    if not errors and not kept:
        if record | now != record:
            write_json(folder / f"{name}.json", record | now)
        return
    rows = (
        (row.id, row.text)
        for row, line in zip(corpus(project), read_labels(path), strict=True)
        if line["status"] == Status.ERROR
    )
    done = 0
    try:
        for found in code(in_batches(rows, project.recipe.batch_size)):
            append(again, found)
            done += len(found)
            on_progress(f"{name}, errors", done, errors)
    finally:
        kept += put_in_place(path, again)
        record["coded_again"].append({"finished": _now(), "texts": kept})
        write_json(folder / f"{name}.json", record | summarise(path))


def _read_summary(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def summarise(path: Path) -> dict[str, Any]:
    """How often each label and each status was given, how many texts were flagged, and the mean mass on the labels."""
    labels: Counter[str] = Counter()
    statuses: Counter[str] = Counter()
    flagged, masses, mass, low = 0, 0, 0.0, 0
    for row in read_labels(path):
        statuses[row["status"]] += 1
        if row["label"] is not None:
            labels[row["label"]] += 1
        flagged += bool(row.get("flags"))
        if "mass" in row:
            masses += 1
            mass += row["mass"]
            low += row["mass"] < 0.5
    return {
        "labels": dict(labels.most_common(200)),
        "statuses": dict(statuses),
        "flagged": flagged,
        "mean_mass": mass / masses if masses else None,
        "mass_below_half": low if masses else None,
    }


def write_labelled(project: Project, frozen: Frozen) -> Path:
    """The user's table with columns of every frozen configuration beside: the first one's carry the plain names."""
    source = project.file(project.recipe.data.path)
    ending = f"{kind_of(source)}.gz" if source.suffix == ".gz" else kind_of(source)
    target = project.folder / f"labelled.{ending}"
    book = project.codebook
    scored = [project.recipe.strategy_of(name) for name in frozen.names]
    columns: list[NewColumn] = []
    codes = {label.code or i: label.name for i, label in enumerate(book.labels, start=1)}
    coded = codes if book.level in CLOSED else None
    for number, (name, strategy) in enumerate(zip(frozen.names, scored), start=1):
        stem = f"{project.recipe.prefix}{book.variable}" + (f"_{number}" if number > 1 else "")
        columns.append(NewColumn(stem, f"{book.variable}, by {name}"[:255], codes=coded))
        columns.append(NewColumn(f"{stem}_status", "how the coding ended"))
        if strategy.answer != "free" and book.level in CLOSED:
            columns.append(NewColumn(f"{stem}_p", "probability of the label", numeric=True))

    def values() -> Iterator[list[Any]]:
        files = [read_labels(project.folder / FOLDER / f"{name}.jsonl") for name in frozen.names]
        for rows in zip(*files, strict=True):
            cells: list[Any] = []
            for row, strategy in zip(rows, scored):
                cells += [row["label"], row["status"]]
                if strategy.answer != "free" and book.level in CLOSED:
                    cells.append(row.get("p", {}).get(row["label"]))
            yield cells

    write_beside(source, target, columns, values(), project.recipe.data.encoding)
    return target


def _start_anew_if_refrozen(folder: Path, about: dict[str, Any], frozen: Frozen) -> None:
    """Labels of another freeze are put aside, never mixed; other data under the same freeze are refused."""
    record = folder / "run.json"
    if record.is_file():
        was = json.loads(record.read_text(encoding="utf-8"))
        if was.items() <= about.items():  # those of earlier versions know nothing of the texts
            return
        if was["digest"] == about["digest"]:
            raise ConfigError(
                f"the data are not those that this run began with ({was['rows']} rows then, {about['rows']} now). "
                f"Put them back, or remove {folder} to start anew."
            )
        kept = folder.with_name(f"{FOLDER}-{was['digest']}")
        kept.mkdir(exist_ok=True)
        for entry in sorted(folder.iterdir(), key=lambda entry: entry == record):  # the record last: until then, again
            if entry.name != "run.lock":
                shutil.move(str(entry), str(kept / entry.name))
    write_json(record, about)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time writes labels; the lock is the kernel's, and goes however the process ends."""
    import fcntl

    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another process is coding into {folder}. Wait for it.") from None
        yield
