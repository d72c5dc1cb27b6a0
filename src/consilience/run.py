"""The run folder: what was asked, with which inputs and versions; stages that are made once; never half a file.

    RUN/run.json          settings, fingerprints of the inputs, versions: what must agree before a run is resumed
    RUN/<stage>/          a finished stage; `stage.json` in it: the seconds it took, the key of what it follows from
    RUN/<stage>.partial/  a stage in the making; the same command goes on from what is in it
    RUN/events.jsonl      one line per stage finished

A stage is finished exactly when its folder has its final name, and a folder gets that name by one rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from consilience.config import flatten
from consilience.errors import BackendError, ConfigError

PACKAGES = ("consilience", "torch", "transformers", "tokenizers", "accelerate", "peft", "safetensors", "numpy", "scipy")
MARK = "stage.json"
RECORD = "run.json"
BESIDE_STAGES = ("run.lock", f"{RECORD}.partial")  # what a command that was killed at once may leave


class RunFolder:
    """A run on disk. Stages are made through `stage`; everything else in the folder is written whole or not at all."""

    def __init__(self, path: Path, rank: int = 0, others: Sequence[Path] = ()) -> None:
        self.path = path
        self.leads = rank == 0  # of several processes the first one writes
        self.others = others

    def stage(self, name: str, make: Callable[[Path], None], *, key: str = "", together: bool = False) -> Path:
        """The folder of stage `name`, made by `make(partial_folder)` unless it is there already.

        `make` may be called again on a partial folder that an earlier, killed call left: it goes on from there.
        A stage of the same name and `key` in one of the `others` is taken from there: its files are linked, or copied
        to another disk. The key is a hash of all that the stage follows from; without one nothing is taken.
        Of several processes (`accelerate launch`) the first one makes a stage and the others wait for it, unless all
        make it `together`.
        """
        final = self.path / name
        if (final / MARK).is_file():
            return final
        partial = final.with_name(final.name + ".partial")
        started = time.monotonic()
        there = self._made_elsewhere(name, key) if key else None
        if there is not None and self.leads:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(there, partial, copy_function=_link)
        elif there is None and (self.leads or together):
            partial.mkdir(parents=True, exist_ok=True)
            make(partial)
        if not self.leads:
            while not (final / MARK).is_file():
                time.sleep(0.1)
            return final
        took = {"stage": name, "seconds": round(time.monotonic() - started, 3)}
        took |= {} if there is None else {"taken_from": str(there)}
        write_json(partial / MARK, took | ({"key": key} if key else {}))
        _sync_tree(partial)
        partial.rename(final)
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as events:
            events.write(json.dumps(took | {"finished": time.time()}) + "\n")
        return final

    def agreed(self, path: Path, find: Callable[[], Any]) -> Any:
        """What `find` says (JSON), found once and kept at `path`: by the first of several processes, for all."""
        if self.leads and not path.is_file():
            write_json(path, find())
        while not path.is_file():
            time.sleep(0.1)
        return json.loads(path.read_text())

    def _made_elsewhere(self, name: str, key: str) -> Path | None:
        """The same finished stage of another run, if there is one."""
        for folder in self.others:
            mark = folder / name / MARK
            if mark.is_file() and json.loads(mark.read_text()).get("key") == key:
                return folder / name
        return None

    def seconds(self) -> dict[str, float]:
        """Seconds of the last, finishing call of every stage, by name, in order of finishing."""
        marks = [json.loads(mark.read_text()) for mark in sorted(self.path.rglob(MARK), key=os.path.getmtime)]
        return {mark["stage"]: mark["seconds"] for mark in marks}


def _link(source: str, target: str) -> None:
    """A second name for a file that is never written to again; a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def key_of(**follows_from: Any) -> str:
    """A hash of what a stage follows from: settings, and the keys or fingerprints of its inputs."""
    return hashlib.sha256(json.dumps(follows_from, sort_keys=True).encode()).hexdigest()[:16]


@contextlib.contextmanager
def open_run(
    path: Path, settings: Mapping[str, Any], inputs: Mapping[str, str], *, others: Sequence[Path] = ()
) -> Iterator[RunFolder]:
    """The run at `path`: made if new, resumed if it was made with the same `settings` and `inputs` (fingerprints).

    Stages that `others`, earlier runs, have made from the same are taken from there.

    A run without any stage, because its first command was refused, may still change. Raises `ConfigError` naming every
    setting or input that differs, and when another process holds the run or the folder holds something else. Nothing
    is overwritten in either case.
    """
    for other in others:
        if not {"settings", "inputs"} <= _record_of(other).keys():
            raise ConfigError(
                f"{other} is no run folder, so nothing can be taken from it. Give the --out of another run."
            )
    if rank_of_this_process():
        yield RunFolder(path, rank_of_this_process(), others)  # the first process looks after the folder
        return
    asked = {"settings": json.loads(json.dumps(settings)), "inputs": dict(inputs)}
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path} is a file. Give --out a new folder.")
    _refuse_foreign(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "run.lock").open("w")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}). Give --out another folder.") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the kernel however the process ends
        except BlockingIOError:
            raise ConfigError(f"another process is at work in {path}. Wait for it, or give another --out.") from None
        if any(entry.is_dir() for entry in path.iterdir()):
            _refuse_changes(path, _record_of(path), asked)
        else:
            write_json(path / RECORD, asked | {"versions": versions()})
        yield RunFolder(path, others=others)


def rank_of_this_process() -> int:
    """0, or this process's number among those that `accelerate launch` or `torchrun` started."""
    return int(os.environ.get("RANK", "0"))


def _refuse_foreign(path: Path) -> None:
    """A folder that holds anything must be a run's: nothing else is ever written into."""
    others = [entry.name for entry in path.iterdir() if entry.name not in BESIDE_STAGES] if path.is_dir() else []
    if others and not {"settings", "inputs"} <= _record_of(path).keys():
        raise ConfigError(f"{path} holds files that are not a run's. Give --out a new or an empty folder.")


def _record_of(path: Path) -> Mapping[str, Any]:
    """The run's record; empty where there is none, or another program's file of that name."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, Mapping) else {}


def _refuse_changes(path: Path, made: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    changes = []
    for part in ("settings", "inputs"):
        was, now = flatten(made[part]), flatten(asked[part])
        for key in sorted(was.keys() | now.keys()):
            if was.get(key) != now.get(key):
                kind = "input" if part == "inputs" else "setting"
                changes.append(f"{kind} {key} was {was.get(key)!r}, now {now.get(key)!r}")
    if changes:
        raise ConfigError(
            f"{path} was made with other settings: {'; '.join(changes)}. "
            "Give another --out, or the settings it was made with."
        )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result, and the machine's processor."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON at `path`, whole or not at all, and on the disk when this returns."""
    partial = path.with_name(path.name + ".partial")
    # Half a surrogate pair, which UTF-8 cannot hold, is written as JSON's own escape.
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def write_text(path: Path, text: str) -> None:
    """`text` at `path`, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.rename(path)


def _sync_tree(folder: Path) -> None:
    """Forces the files of `folder` to disk, so that its rename never outruns them."""
    for entry in folder.rglob("*"):
        if entry.is_file():
            with entry.open("rb") as file:
                os.fsync(file.fileno())


SAMPLE = 1 << 20
SAMPLES = 16


def fingerprint(path: Path) -> str:
    """A hash of a file, or of all files of a folder by name.

    Files above 16 MiB enter by their size and sixteen evenly spaced samples of 1 MiB: a model of 14 GB must not be
    read whole each time a run resumes. A change that keeps the size and misses every sample goes unseen.
    """
    if not path.exists():
        raise BackendError(f"no file or folder {path}. Check the path; paths in a recipe are relative to the recipe.")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path) if path.is_dir() else ''}:{size}\n".encode())
        with file.open("rb") as content:
            if size <= SAMPLE * SAMPLES:
                digest.update(content.read())
                continue
            for sample in range(SAMPLES):
                content.seek(sample * (size - SAMPLE) // (SAMPLES - 1))
                digest.update(content.read(SAMPLE))
    return digest.hexdigest()[:16]
