"""Carries out merge plans on disk: reads mapped files, computes block by block in threads, writes in place.

Memory does not grow with the model or its largest tensor. Several plans go in one pass over the inputs. What a killed
process finished is kept, and the same call goes on with identical bytes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError, ConfigError
from consilience.merge.blocks import BLOCK, CODES, Job, NotFinite, Operand, Workers, address_of, keys_of
from consilience.merge.compute import on_cpu
from consilience.merge.drive import Engine, merge, settle
from consilience.merge.methods import MERGES, Combination, Facts, unit_of
from consilience.merge.plan import LowRank, MergePlan, Part, Rows, TensorPlan
from consilience.weights.headers import ITEM_BYTES, StoredTensor
from consilience.weights.mapped import NUMPY_DTYPES, MappedFiles, as_float32
from consilience.weights.planned import PlannedCheckpoint, PlannedTensor, is_finished, made_by

MANIFEST = "manifest.json"
LARGE = 1 << 23  # entries from which the threads share a tensor; below, each thread has one of its own
COPY_BYTES = 1 << 22
OnProgress = Callable[[int, int], None]


def execute(
    plans: Sequence[tuple[MergePlan, Path]],
    *,
    threads: int | None = None,
    device: str = "cpu",
    on_bytes: OnProgress = lambda done, total: None,
    on_tensor: OnProgress = lambda done, total: None,
    replace: bool = False,
) -> list[dict[str, Any]]:
    """Makes each plan's checkpoint in its folder, in one pass over the inputs; returns their manifests.

    `on_bytes(done, total)` counts the bytes of the results, `on_tensor` their tensors. A folder that holds files is
    refused unless `replace`; one that an earlier, killed call with the same plan left is finished, with the same bytes.

    Raises `ConfigError` for a folder that cannot be used and for parameters that cannot be computed with, and
    `BackendError` naming the tensor where an input or a result is not finite, or the disk is too small. No weights have
    their final names then.
    """
    inputs = [folder.resolve() for plan, _ in plans for folder in _folders_of(plan)]
    outs = [out.resolve() for _, out in plans]
    for out in outs:
        if out in inputs:
            raise ConfigError(f"{out} is also an input of the merge. Give another folder for the result.")
        if outs.count(out) > 1:
            raise ConfigError(f"{out} is given for two results. Give each its own folder.")
    workers = Workers((threads or len(os.sched_getaffinity(0))) if device == "cpu" else 1)
    engines = _engines(device, workers)  # before anything is written
    with ExitStack() as stack:
        stack.callback(workers.close)
        prints = {file: _fingerprint(file) for file in sorted({*_files_of(plan for plan, _ in plans)})}
        identities = [_identity(plan, prints) for plan, _ in plans]
        manifests = [made_by(out, MANIFEST, identity) for (_, out), identity in zip(plans, identities)]
        outputs: list[PlannedCheckpoint] = []
        left = [place for place, (_, out) in enumerate(plans) if manifests[place] is None or not is_finished(out)]
        for place in left:
            plan, out = plans[place]
            output = PlannedCheckpoint(
                out,
                [PlannedTensor(tensor.name, tensor.dtype, tensor.shape) for tensor in plan.tensors],
                identity=identities[place],
                shard_bytes=plan.shard_bytes,
                replace=replace or manifests[place] is not None,
            )
            stack.callback(output.close)
            outputs.append(output)
        _Pass([plans[place][0] for place in left], outputs, MappedFiles(), workers, engines, on_bytes, on_tensor).run()
        for place, output in zip(left, outputs):
            plan = plans[place][0]
            made = {"identity": identities[place], **_manifest(plan, prints, output)}
            output.publish(plan.files, {MANIFEST: made})
            manifests[place] = made
    return [manifest for manifest in manifests if manifest is not None]


class _Pass:
    """One going over the inputs for several plans."""

    def __init__(
        self,
        plans: Sequence[MergePlan],
        outputs: Sequence[PlannedCheckpoint],
        files: MappedFiles,
        workers: Workers,
        engines: tuple[Engine, Engine],
        on_bytes: OnProgress,
        on_tensor: OnProgress,
    ) -> None:
        self.plans, self.outputs, self.files, self.workers = plans, outputs, files, workers
        self.total = sum(output.total_bytes for output in outputs)
        self.done = 0
        self.on_bytes, self.on_tensor = on_bytes, on_tensor
        self.tensors = sum(len(plan.tensors) for plan in plans)
        self.finished = 0
        self._lock = threading.Lock()
        self._together, self._alone = engines
        self._settled: dict[tuple[int, str], Combination] = {}

    def run(self) -> None:
        by_name: dict[str, list[tuple[int, TensorPlan]]] = {}
        for place, (plan, output) in enumerate(zip(self.plans, self.outputs)):
            for tensor in plan.tensors:
                if tensor.name in output.finished:
                    self._progress(PlannedTensor(tensor.name, tensor.dtype, tensor.shape).nbytes, finished=1)
                else:
                    by_name.setdefault(tensor.name, []).append((place, tensor))
            self._settle_units(place, plan)
        groups = list(by_name.values())
        large = [group for group in groups if max(_size(tensor) for _, tensor in group) >= LARGE]
        small = [group for group in groups if max(_size(tensor) for _, tensor in group) < LARGE]
        for file in {file for plan in self.plans for file in _files_of([plan])}:
            self.files.bytes_of(file)  # opened before the threads
        for group in large:
            self._merge(group, self._together)
        self.workers.each(small, lambda group: self._merge(group, self._alone))

    def _progress(self, count: int, finished: int = 0) -> None:
        with self._lock:
            self.done += count
            self.finished += finished
            self.on_bytes(self.done, self.total)
            if finished:
                self.on_tensor(self.finished, self.tensors)

    def _settle_units(self, place: int, plan: MergePlan) -> None:
        """Measures first what is measured over several tensors together: a layer's, or the whole model's."""
        units: dict[str, list[TensorPlan]] = {}
        for tensor in plan.tensors:
            unit = unit_of(tensor.parameters)
            if unit != "tensor":
                key = "" if unit == "model" else _layer_of(tensor.name)
                units.setdefault(f"{tensor.method} {key}", []).append(tensor)
        for tensors in units.values():
            if all(tensor.name in self.outputs[place].finished for tensor in tensors):
                continue
            tensors = [tensor for tensor in tensors if _size(tensor)] or tensors[:1]
            jobs = [self._job(place, tensor) for tensor in tensors]
            first = tensors[0]
            facts = jobs[0].facts._replace(size=sum(job.facts.size for job in jobs))
            try:
                (combination,) = settle([MERGES[first.method].steps(facts, first.parameters)], [jobs], self._together)
            except NotFinite:
                for tensor, job in zip(tensors, jobs):
                    self._refuse_not_finite(tensor, job)
                raise
            self._settled |= {(place, tensor.name): combination for tensor in tensors}

    def _merge(self, group: Sequence[tuple[int, TensorPlan]], engine: Engine) -> None:
        """One tensor of every plan; those from the same inputs go over them together."""
        together: dict[Any, list[tuple[int, TensorPlan]]] = {}
        for place, tensor in group:
            if tensor.method == "passthrough" and _is_copy(tensor):
                self._copy(place, tensor)
                self.outputs[place].finish(tensor.name, {})
                self._progress(0, finished=1)
            else:
                together.setdefault(self._inputs_of(place, tensor), []).append((place, tensor))
        for made in together.values():
            self._merge_together(made, engine)

    def _inputs_of(self, place: int, tensor: TensorPlan) -> Any:
        """Equal where the inputs, and the random numbers, are the same; settled ones need no measurement."""
        stored = [tensor.base.plain if tensor.base is not None else None, *(rows.plain for rows in tensor.models)]
        alone = place if None in stored[1:] or (tensor.base is not None and stored[0] is None) else None
        return (place, tensor.name) in self._settled, self.plans[place].seed, tensor.shape, *stored, alone

    def _merge_together(self, made: Sequence[tuple[int, TensorPlan]], engine: Engine) -> None:
        jobs = [self._job(place, tensor) for place, tensor in made]
        settled = [self._settled.get((place, tensor.name)) for place, tensor in made]
        try:
            if settled[0] is None:
                steps = [
                    MERGES[tensor.method].steps(job.facts, tensor.parameters) for job, (_, tensor) in zip(jobs, made)
                ]
                records = merge(steps, jobs, engine)
            else:
                combinations = [combination for combination in settled if combination is not None]
                engine.combine(list(zip(combinations, jobs)))
                records = [combination.record for combination in combinations]
        except NotFinite:
            for job, (_, tensor) in zip(jobs, made):
                self._refuse_not_finite(tensor, job)
            raise
        for record, job, (place, tensor) in zip(records, jobs, made):
            self.outputs[place].finish(tensor.name, {**record, **_statistics(tensor, job)})
            self._progress(0, finished=1)

    def _job(self, place: int, tensor: TensorPlan) -> Job:
        rows = ([tensor.base] if tensor.base is not None else []) + list(tensor.models)
        size = _size(tensor)
        facts = Facts(size, tensor.shape[-1] if tensor.shape else 1, len(tensor.models), tensor.base is not None)
        output = self.outputs[place]

        def write(start: int, block: NDArray[Any]) -> None:
            output.write(tensor.name, start * block.itemsize, block)

        itemsize = PlannedTensor("", tensor.dtype, ()).nbytes
        return Job(
            facts,
            [_operand(one, self.files) for one in rows],
            keys_of(self.plans[place].seed, tensor.name, len(tensor.models)),
            tensor.dtype,
            write,
            on_block=lambda entries: self._progress(entries * itemsize),
        )

    def _copy(self, place: int, tensor: TensorPlan) -> None:
        stored = tensor.models[0].plain
        assert stored is not None
        raw = self.files.bytes_of(stored.file)[stored.offset : stored.offset + stored.nbytes]
        for start in range(0, stored.nbytes, COPY_BYTES):
            block = raw[start : start + COPY_BYTES]
            self.outputs[place].write(tensor.name, start, block)
            self._progress(block.nbytes)

    def _refuse_not_finite(self, tensor: TensorPlan, job: Job) -> None:
        if not job.bad:
            return
        inputs = ([tensor.base] if tensor.base is not None else []) + list(tensor.models)
        for rows, operand in zip(inputs, job.inputs):
            count = sum(
                int((~np.isfinite(_numbers_of(operand, start, min(start + BLOCK, job.facts.size)))).sum())
                for start in range(0, job.facts.size, BLOCK)
            )
            if count:
                raise BackendError(
                    f"tensor {tensor.name} of {rows.model} holds {count} numbers that are not finite (NaN or "
                    "infinity). Leave that model out, or mend it."
                )
        raise BackendError(
            f"merged tensor {tensor.name}, as {tensor.dtype}, holds numbers that are not finite (NaN or infinity). "
            "Change the method's parameters."
        )


def _engines(device: str, workers: Workers) -> tuple[Engine, Engine]:
    """For one tensor in all threads, and for one in each."""
    if device == "cpu":
        return on_cpu(workers), on_cpu(Workers(1))
    try:
        from consilience.merge.on_torch import on_device
    except ImportError as error:
        raise ConfigError(f"--device {device} needs torch ({error}). Install it, or merge on the cpu.") from None
    engine = on_device(device)
    return engine, engine


def _size(tensor: TensorPlan) -> int:
    size = 1
    for side in tensor.shape:
        size *= side
    return size


def _is_copy(tensor: TensorPlan) -> bool:
    """Whether the bytes stay: also for types that are not merged, such as counters."""
    stored = tensor.models[0].plain
    return stored is not None and stored.dtype == tensor.dtype and tensor.parameters.get("scale", 1.0) == 1.0


def _layer_of(name: str) -> str:
    """What stands before the first number in a tensor's name, with the number; tensors without share one unit."""
    found = re.match(r"(.*?\.\d+)\.", name)
    return found[1] if found else ""


# -- inputs


class _Stored:
    """A tensor as it is stored."""

    def __init__(self, stored: StoredTensor, files: MappedFiles) -> None:
        if stored.dtype not in CODES:
            raise BackendError(
                f"tensor {stored.name} of {stored.file.parent} is stored as {stored.dtype}; only float weights are "
                "merged. Save a quantised model in bfloat16 first."
            )
        self.bytes = files.bytes_of(stored.file)
        self.start = address_of(self.bytes) + stored.offset
        self.itemsize = stored.nbytes // max(stored.size, 1)
        self.code = CODES[stored.dtype]

    def part(self, start: int, stop: int) -> tuple[int, int, Any]:
        return self.start + start * self.itemsize, self.code, self.bytes


class _Made:
    """Rows that are put together from several places: made in float32, as many as are asked for."""

    def __init__(self, rows: Rows, files: MappedFiles) -> None:
        self.rows, self.files = rows, files
        self.width = 1
        for side in rows.shape[1:]:
            self.width *= side

    def part(self, start: int, stop: int) -> tuple[int, int, Any]:
        first, last = start // self.width, -(-stop // self.width)
        made = self._made(first, last).reshape(-1)
        return address_of(made) + (start - first * self.width) * made.itemsize, CODES["F32"], made

    def _made(self, first: int, last: int) -> NDArray[np.float32]:
        total = np.zeros((last - first, self.width), np.float32)
        seen = np.zeros(last - first, np.int64)
        for part in self.rows.parts:
            if part.rows is None:
                there: NDArray[Any] = np.ones(last - first, bool)
                places: Any = slice(first, last)
            else:
                there = part.rows[first:last] >= 0
                places = part.rows[first:last][there]
            total[there] += self._stored(part, places)
            seen += there
        return np.divide(total, seen[:, None], out=total, where=seen[:, None] > 1)

    def _stored(self, part: Part, places: Any) -> NDArray[np.float32]:
        stored = self.files.array(part.tensor).reshape(-1, self.width)[places]
        numbers = as_float32(stored, part.tensor.dtype)
        for adapter in part.adapters:
            numbers = (numbers + self._low_rank(adapter, places)).astype(np.float32)
        return numbers

    def _low_rank(self, adapter: LowRank, places: Any) -> NDArray[np.float64]:
        """In float64, so that rounding does not hang on how many rows are made at once."""
        left, right = self.files.array(adapter.left), self.files.array(adapter.right)
        left = (left.T if adapter.left_transposed else left)[places]
        right = right.T if adapter.right_transposed else right
        one, other = as_float32(left, adapter.left.dtype), as_float32(right, adapter.right.dtype)
        product: NDArray[np.float64] = adapter.scale * (one.astype(np.float64) @ other.astype(np.float64))
        return product


def _operand(rows: Rows, files: MappedFiles) -> Operand:
    plain = rows.plain
    return _Stored(plain, files) if plain is not None else _Made(rows, files)


def _numbers_of(operand: Operand, start: int, stop: int) -> NDArray[Any]:
    """A part of an input as numbers: only to say what is wrong with it."""
    address, code, alive = operand.part(start, stop)
    dtype = next(name for name, number in CODES.items() if number == code)
    raw: Any = (ctypes.c_char * ((stop - start) * ITEM_BYTES[dtype])).from_address(address)
    stored = np.frombuffer(raw, NUMPY_DTYPES[dtype])
    numbers = stored.copy() if dtype == "F64" else as_float32(stored, dtype)
    del alive
    return numbers


# -- records


def _statistics(tensor: TensorPlan, job: Job) -> dict[str, Any]:
    """How far each model and the result lie from the base, and how alike their directions are.

    Without a base: how far each model lies from the result.
    """
    if job.products is None:
        return {}
    norms = np.sqrt(np.diagonal(job.products))
    models = [rows.model for rows in tensor.models]
    if tensor.base is None:
        return {"distance_to_result": dict(zip(models, norms.tolist()))}
    outer = np.outer(norms, norms)
    cosines = np.divide(job.products, outer, out=np.zeros_like(outer), where=outer > 0)
    labels = [*models, "result"]
    return {
        "delta_norms": dict(zip(labels, norms.tolist())),
        "cosines": {
            f"{labels[a]} {labels[b]}": float(cosines[a, b])
            for a in range(len(labels))
            for b in range(a + 1, len(labels))
        },
    }


def _stored_in(plan: MergePlan) -> Iterable[StoredTensor]:
    for tensor in plan.tensors:
        for rows in (*tensor.models, *([tensor.base] if tensor.base is not None else [])):
            for part in rows.parts:
                yield part.tensor
                for adapter in part.adapters:
                    yield adapter.left
                    yield adapter.right


def _files_of(plans: Iterable[MergePlan]) -> set[Path]:
    return {stored.file for plan in plans for stored in _stored_in(plan)}


def _folders_of(plan: MergePlan) -> set[Path]:
    return {file.parent for file in _files_of([plan])}


PLACES, PLACE_BYTES = 16, 1 << 16


def _fingerprint(file: Path) -> dict[str, Any]:
    """Size, time of the last change, and sha256 of the first 64 KiB (with the header) and of 15 more places."""
    status = file.stat()
    digest = hashlib.sha256(f"{status.st_size}\n".encode())
    with file.open("rb") as content:
        for place in range(PLACES):
            content.seek(place * max(status.st_size - PLACE_BYTES, 0) // (PLACES - 1))
            digest.update(content.read(PLACE_BYTES))
    return {"bytes": status.st_size, "changed_ns": status.st_mtime_ns, "sampled_sha256": digest.hexdigest()}


def _identity(plan: MergePlan, prints: Mapping[Path, Any]) -> str:
    """Differs wherever the result's bytes could."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return hashlib.sha256(value.tobytes()).hexdigest()
        if isinstance(value, bytes):
            return hashlib.sha256(value).hexdigest()
        if isinstance(value, Mapping):
            return dict(value)
        if is_dataclass(value):
            return {name: getattr(value, name) for name in value.__dataclass_fields__}
        return str(value)

    content = {
        "tensors": plan.tensors,
        "seed": plan.seed,
        "shard_bytes": plan.shard_bytes,
        "inputs": {str(file): prints[file] for file in sorted(_files_of([plan]))},
    }
    return hashlib.sha256(json.dumps(content, default=plain, sort_keys=True).encode()).hexdigest()


def _manifest(plan: MergePlan, prints: Mapping[Path, Any], output: PlannedCheckpoint) -> dict[str, Any]:
    return {
        "recipe": dict(plan.recipe),
        "seed": plan.seed,
        "inputs": {
            str(file): {key: value for key, value in prints[file].items() if key != "changed_ns"}
            for file in sorted(_files_of([plan]))
        },
        "tensors": {
            tensor.name: {
                "method": tensor.method,
                "parameters": dict(tensor.parameters),
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                **output.finished[tensor.name],
            }
            for tensor in plan.tensors
        },
    }
