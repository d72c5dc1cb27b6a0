"""Compiled kernels, loaded without numba once they have been compiled: its import alone takes half a second.

A kernel is compiled by numba on its first use on a machine and kept as an object file; later llvmlite links that and
ctypes calls it, which gives up Python's lock while it runs. Where nothing can be written, each process compiles.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

SOURCES = [Path(__file__).with_name(name) for name in ("kernels.py", "intrinsics.py")]
FROM_C = ("exp", "log", "memcpy", "memmove", "memset")  # what compiled code calls by name
# Numba's way of raising from compiled code, which no kernel does; but one name missing and none is found.
NEVER_CALLED = (
    "NRT_Free",
    "numba_do_raise",
    "numba_gil_ensure",
    "numba_gil_release",
    "numba_runtime_build_excinfo_struct",
    "numba_unpickle",
)
Kernel = Callable[..., int]
_engines: list[llvm.ExecutionEngine] = []  # what they have loaded is unloaded with them


@functools.cache
def kernel(name: str) -> Kernel:
    """The kernel of `merge/kernels.py` called `name`, as a function of whole numbers."""
    folder = _cache_folder()
    if folder is None:
        return _link(_compile(name))
    file = folder / f"{name}-{_key()}.o"
    try:
        code = file.read_bytes()
    except OSError:
        code = _compile(name)
        _keep(file, code)
    return _link(code)


@functools.cache
def _key() -> str:
    """Changes with the source, the compiler and the processor."""
    packages = ",".join(metadata.version(package) for package in ("numba", "llvmlite"))
    processor = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    content = b"".join(source.read_bytes() for source in SOURCES) + packages.encode() + processor.encode()
    return hashlib.sha256(content).hexdigest()[:16]


@functools.cache
def _cache_folder() -> Path | None:
    """The user's own; None where there is none that only they can write to: what lies there is run."""
    base = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("HOME") and f"{os.environ['HOME']}/.cache")
    if not base or not Path(base).is_absolute():
        return None
    folder = Path(base) / "consilience" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
    except OSError:
        return None
    is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
    return folder if is_own else None


def _keep(file: Path, code: bytes) -> None:
    with contextlib.suppress(OSError):  # then the next process compiles again
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        partial.write_bytes(code)
        partial.replace(file)


def _compile(name: str) -> bytes:
    """An object file with one line before it: the compiled function's name and how many arguments it takes."""
    from numba import njit, types

    from consilience.merge.kernels import KERNELS

    function = KERNELS[name]
    arguments = function.__code__.co_argcount
    signature = types.int64(*[types.int64] * arguments)
    compile_for: Any = njit  # numba's stubs do not know all of its options
    compiled = compile_for(signature, error_model="numpy", nogil=True, no_cpython_wrapper=True)(function)
    (overload,) = compiled.overloads.values()
    symbol = overload.fndesc.llvm_func_name
    code: bytes = overload.library._get_compiled_object()
    return f"{symbol} {arguments}\n".encode() + code


def _link(content: bytes) -> Kernel:
    head, _, code = content.partition(b"\n")
    symbol, arguments = head.decode().split()
    if not _engines:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        library = ctypes.CDLL(None)
        for name, function in [*zip(FROM_C, FROM_C), *((name, "abort") for name in NEVER_CALLED)]:
            if llvm.address_of_symbol(name) is None:
                llvm.add_symbol(name, ctypes.cast(getattr(library, function), ctypes.c_void_p).value)
    engine = llvm.create_mcjit_compiler(
        llvm.parse_assembly(""), llvm.Target.from_default_triple().create_target_machine()
    )
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    # numba's convention: the result goes to the first argument's address, the second is for exceptions.
    call = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * int(arguments))(
        engine.get_function_address(symbol)
    )

    def run(*numbers: int) -> int:
        result, exception = ctypes.c_int64(), ctypes.c_int64()
        status = call(ctypes.addressof(result), ctypes.addressof(exception), *numbers)
        if status:
            raise RuntimeError(f"compiled function {symbol} failed with status {status}")
        return result.value

    return run
