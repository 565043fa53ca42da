"""How the CPU kernels are compiled, and how they reach tensors without a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile on first call, without the GIL; kept on disk where any cache folder can be written.

    Numba keeps its cache beside the package, or in the user's cache folder where the package is installed
    read-only. Where neither can be written it refuses to cache at all; then each process compiles anew.

    No fast-math: every operation is the IEEE one, in the order written, as in the composition of stages.
    """
    made: Function
    try:
        made = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no place for a cache
        made = njit(nogil=True, error_model="numpy")(function)
    return made


def _pointer(name: str, pointee: Any, machine: Any) -> Any:
    """A function inside compiled code that takes an address for a typed pointer."""

    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], machine.as_pointer())

        return types.CPointer(pointee)(types.int64), generate

    pointer.__name__ = pointer.__qualname__ = name
    return intrinsic(pointer)


floats_at = _pointer("floats_at", types.float32, ir.FloatType())
bits_at = _pointer("bits_at", types.int32, ir.IntType(32))
