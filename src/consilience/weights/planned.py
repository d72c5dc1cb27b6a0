"""A checkpoint whose tensors' names, types and shapes are known before it is written.

    OUT/merge.partial/   the shards at their full length, filled in place; the files beside them; journal.jsonl
    OUT/                 gets everything by renames, the index (or the only shard) last

The journal's first line says what is being made, every further one which tensor is finished, so a killed process goes
on where it was. Finished means handed to the system: it outlives the process, not a power cut in the next seconds.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.errors import BackendError, ConfigError
from consilience.weights.headers import INDEX, ITEM_BYTES, SINGLE

PARTIAL = "merge.partial"
JOURNAL = "journal.jsonl"


def made_by(out: Path, document: str, identity: str) -> dict[str, Any] | None:
    """The JSON `document` beside a checkpoint at `out` that was made with that identity, finished or not."""
    try:
        content: dict[str, Any] = json.loads((out / document).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("identity") == identity else None


def is_finished(out: Path) -> bool:
    """Whether all weights have their final names; then what a kill left is removed."""
    try:
        index = json.loads((out / INDEX).read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (OSError, ValueError):
        shards = {SINGLE}
    finished = all((out / shard).is_file() for shard in shards)
    if finished:
        shutil.rmtree(out / PARTIAL, ignore_errors=True)
    return finished


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        size = ITEM_BYTES[self.dtype]
        for side in self.shape:
            size *= side
        return size


class PlannedCheckpoint:
    """Opens `out` for the `tensors`, or goes on with what an earlier process with the same `identity` left there.

    Raises `ConfigError` when `out` holds other files (unless `replace`), and `BackendError` when the disk has too
    little room or does not take the bytes. `finished` has what was said of each finished tensor.
    """

    finished: dict[str, Any]

    def __init__(
        self, out: Path, tensors: Sequence[PlannedTensor], *, identity: str, shard_bytes: int, replace: bool = False
    ) -> None:
        self.out = out
        self.partial = out / PARTIAL
        self.finished = {}
        self._files: list[int] = []
        self._lock = threading.Lock()
        shards = _shards_of(tensors, shard_bytes)
        self.shard_names = (
            [SINGLE]
            if len(shards) == 1
            else [f"model-{k:05d}-of-{len(shards):05d}.safetensors" for k in range(1, len(shards) + 1)]
        )
        self.weight_map = {tensor.name: name for name, shard in zip(self.shard_names, shards) for tensor in shard}
        self.total_bytes = sum(tensor.nbytes for tensor in tensors)
        _refuse_others(out, replace)
        try:
            self._open(shards, identity)
        except OSError as error:
            raise self._failure(error) from None

    def _open(self, shards: Sequence[Sequence[PlannedTensor]], identity: str) -> None:
        headers = [_header(shard) for shard in shards]
        lengths = [len(header) + sum(t.nbytes for t in shard) for header, shard in zip(headers, shards)]
        goes_on = self._read_journal(identity) and all(
            _size_of(self.partial / name) == length
            or (_size_of(self.partial / name) is None and _size_of(self.out / name) == length)
            for name, length in zip(self.shard_names, lengths)
        )
        if not goes_on:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.finished = {}
            _refuse_small_disk(self.out, sum(lengths))
            self.partial.mkdir(parents=True)
        self._place: dict[str, tuple[int, int]] = {}  # name -> open file, where its bytes begin
        for name, shard, header, length in zip(self.shard_names, shards, headers, lengths):
            renamed = goes_on and not (self.partial / name).exists() and (self.out / name).exists()
            path = (self.out if renamed else self.partial) / name
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self._files.append(file)
            if os.fstat(file).st_size != length:
                _allocate(file, length)
                os.pwrite(file, header, 0)
            at = len(header)
            for tensor in shard:
                self._place[tensor.name] = file, at
                at += tensor.nbytes
        if not goes_on:
            with (self.partial / JOURNAL).open("w", encoding="utf-8") as journal:
                journal.write(json.dumps({"identity": identity}) + "\n")
        self._journal = (self.partial / JOURNAL).open("a", encoding="utf-8")

    def _read_journal(self, identity: str) -> bool:
        """Whether an earlier process was making the same; then what it finished is in `finished`."""
        try:
            first, *lines = (self.partial / JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)
            if json.loads(first) != {"identity": identity}:
                return False
        except (OSError, ValueError):
            return False
        # A kill may leave half a last line: then that tensor is made again, and the journal is cut back.
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            entry = json.loads(line)
            self.finished[entry["tensor"]] = entry["record"]
        if len(whole) < len(lines):
            with (self.partial / JOURNAL).open("w", encoding="utf-8") as journal:
                journal.write(first + "".join(whole))
        return True

    def write(self, name: str, offset: int, content: Any) -> None:
        """Puts bytes `offset` into the tensor. Threads may do so at once."""
        file, start = self._place[name]
        view = memoryview(content).cast("B")
        at = start + offset
        try:
            while view:
                written = os.pwrite(file, view, at)
                at += written
                view = view[written:]
        except OSError as error:
            raise self._failure(error) from None

    def finish(self, name: str, record: Any) -> None:
        """Says that all of the tensor is written; `record` is kept with it."""
        with self._lock:
            try:
                self._journal.write(json.dumps({"tensor": name, "record": record}) + "\n")
                self._journal.flush()
            except OSError as error:
                raise self._failure(error) from None
            self.finished[name] = record

    def close(self) -> None:
        """Closes the files; what is unfinished stays for the next process with the same identity."""
        for file in self._files:
            os.close(file)
        self._files = []
        self._journal.close()

    def publish(self, files: Mapping[str, Path | bytes], documents: Mapping[str, Any]) -> None:
        """Gives everything its final name: `files` (copied, or their content), JSON `documents`, weights, the index.

        Earlier weights in the folder go first, so that no loader ever mixes the two.
        """
        self.close()
        try:
            for name, content in files.items():
                target = self.partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(content, Path):
                    shutil.copyfile(content, target)
                else:
                    target.write_bytes(content)
            for name, document in documents.items():
                (self.partial / name).write_bytes(_json_of(document))
            if len(self.shard_names) > 1:
                index = {"metadata": {"total_size": self.total_bytes}, "weight_map": self.weight_map}
                (self.partial / INDEX).write_bytes(_json_of(index))
            made = set(self.shard_names) if len(self.shard_names) > 1 else set()
            for earlier in (self.out / INDEX, self.out / SINGLE, *self.out.glob("model-*-of-*.safetensors")):
                if earlier.name not in made or (self.partial / earlier.name).exists():
                    earlier.unlink(missing_ok=True)
            last = INDEX if len(self.shard_names) > 1 else SINGLE
            for name in [*files, *documents, *(shard for shard in self.shard_names if shard != last), last]:
                if (self.partial / name).exists():
                    (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.partial / name).rename(self.out / name)
            shutil.rmtree(self.partial)
        except OSError as error:
            raise self._failure(error) from None

    def _failure(self, error: OSError) -> BackendError:
        return BackendError(
            f"{self.out} cannot be written ({error.strerror or error}). Free some space or give another folder."
        )


def _json_of(document: Mapping[str, Any]) -> bytes:
    """A JSON object, with a line for each entry of the objects in it: a tensor's is one."""

    def line(key: str, value: Any) -> str:
        return f"{json.dumps(key, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"

    def block(key: str, value: Any) -> str:
        if not isinstance(value, Mapping) or not value:
            return " " + line(key, value)
        lines = ",\n".join("  " + line(name, entry) for name, entry in value.items())
        return f" {json.dumps(key, ensure_ascii=False)}: {{\n{lines}\n }}"

    text = "{\n" + ",\n".join(block(key, value) for key, value in document.items()) + "\n}\n"
    # Half a surrogate pair, which UTF-8 cannot hold, is written as JSON's own escape.
    return text.encode("utf-8", "backslashreplace")


def _size_of(file: Path) -> int | None:
    return file.stat().st_size if file.is_file() else None


def _shards_of(tensors: Sequence[PlannedTensor], shard_bytes: int) -> list[list[PlannedTensor]]:
    shards: list[list[PlannedTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def _header(tensors: Sequence[PlannedTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)  # numbers are read fastest where they begin at a multiple of their size
    return struct.pack("<Q", len(text)) + text


def _refuse_others(out: Path, replace: bool) -> None:
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file. Give the name of a new folder.")
    if replace or not out.is_dir() or (out / PARTIAL / JOURNAL).is_file():
        return
    if (out / SINGLE).is_file() or (out / INDEX).is_file():
        raise ConfigError(f"{out} already holds a model. Give another folder, or --force to replace it.")
    if any(entry.name != PARTIAL for entry in out.iterdir()):
        raise ConfigError(
            f"{out} already holds files. Give a new or an empty folder, or --force to merge into this one."
        )


def _refuse_small_disk(out: Path, needed: int) -> None:
    there = out
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise BackendError(
            f"{out} needs {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left. "
            "Free some space or give a folder on another disk."
        )


def _allocate(file: int, length: int) -> None:
    os.ftruncate(file, 0)
    try:
        os.posix_fallocate(file, 0, length)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(file, length)
