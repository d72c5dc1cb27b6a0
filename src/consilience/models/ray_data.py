"""Work shared out by Ray Data to copies of a model: on this machine, or on those of a cluster that is running.

    for result in shared_out(work, make, settings): ...      # in the order of `work`, as they come

Every copy is an actor that calls `make()` once, where a model is opened, and then takes a piece of work at a time. A
piece is what one process alone would have taken at a time, so the results are the same; a stop loses those under way.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from pydantic import Field

from consilience.config import Settings
from consilience.errors import BackendError, ConfigError, ConsilienceError

W = TypeVar("W")
R = TypeVar("R")
INSTALL = "ray: needs the package ray, which is not installed: pip install 'consilience[ray]'. Or leave ray: out."
AT_ONCE = 1 << 28  # bytes of work handed to Ray at a time: what it holds does not grow with the corpus
AHEAD = 2  # pieces that a copy has: the one it works on, and the next


class RaySettings(Settings):
    """Copies of a model, and what Ray sets aside for each of them."""

    workers: int = Field(ge=1, description="copies of the model")
    cpus: float = Field(1, ge=0, description="processors of each")
    gpus: float = Field(0, ge=0, description="GPUs of each; with vLLM as many as tensor_parallel_size")
    address: str | None = Field(None, description="of a cluster that runs, such as auto; default: this machine alone")


def refuse_without_ray() -> None:
    """Raises `ConfigError` before any work where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(INSTALL)


def shared_out(work: Iterable[W], make: Callable[[], Callable[[W], R]], settings: RaySettings) -> Iterator[R]:
    """What the copies that `make()` gives make of every piece of `work`, in its order.

    Pieces, results and `make` are pickled. Raises what a copy raises of ours, and `BackendError` where one is lost.
    """
    refuse_without_ray()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing leaves the machine
    import ray

    ours = not ray.is_initialized()
    if ours:
        _start(ray, settings)
    try:
        _refuse_too_many(ray.cluster_resources(), settings)
        for window in _windows(map(pickle.dumps, work)):
            yield from _results(ray, window, make, settings)
    finally:
        if ours:
            ray.shutdown()


class _Copy:
    """The actor. What is the user's to mend travels back as a value: Ray would wrap it in its own traceback."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.make = make
        self.work: Callable[[Any], Any] | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        try:
            work = self.work = self.work or self.make()
            made = [work(pickle.loads(piece)) for piece in batch["piece"]]
        except ConsilienceError as error:
            made = [error]
        return {"piece": [pickle.dumps(each) for each in made]}


def _start(ray: Any, settings: RaySettings) -> None:
    local: dict[str, Any] = {}
    if settings.address is None:  # copies may share processors, and one is for reading and writing
        local = {"num_cpus": max(os.cpu_count() or 1, int(settings.workers * settings.cpus) + 1)}
    ray.init(
        address=settings.address or "local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        **local,
    )


def _refuse_too_many(there_are: dict[str, float], settings: RaySettings) -> None:
    """Ray would wait for more machines."""
    for name, each in (("CPU", settings.cpus), ("GPU", settings.gpus)):
        if settings.workers * each > there_are.get(name, 0):
            raise ConfigError(
                f"ray: {settings.workers} workers with {each:g} {name}s each are more than there are "
                f"({there_are.get(name, 0):g}). Give fewer workers, or the address of a larger cluster."
            )


def _results(ray: Any, pieces: list[bytes], make: Callable[[], Callable[[W], R]], settings: RaySettings) -> Iterator[R]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    made = ray.data.from_items([{"piece": piece} for piece in pieces], override_num_blocks=len(pieces)).map_batches(
        _Copy,
        batch_size=1,
        fn_constructor_args=(make,),
        compute=ray.data.ActorPoolStrategy(
            size=min(settings.workers, len(pieces)), max_tasks_in_flight_per_actor=AHEAD
        ),
        num_cpus=settings.cpus,
        num_gpus=settings.gpus,
    )
    try:
        for row in made.iter_rows():
            found = pickle.loads(row["piece"])
            if isinstance(found, ConsilienceError):
                raise found
            yield found
    except ray.exceptions.RayActorError as error:
        raise BackendError(f"Ray lost a copy of the model: {str(error).splitlines()[0]}.") from error


def _windows(pieces: Iterator[bytes]) -> Iterator[list[bytes]]:
    """So many pieces as are AT_ONCE bytes, but one always."""
    window: list[bytes] = []
    size = 0
    for piece in pieces:
        if window and size + len(piece) > AT_ONCE:
            yield window
            window, size = [], 0
        window.append(piece)
        size += len(piece)
    if window:
        yield window
