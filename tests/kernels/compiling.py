"""Compile the GPU kernels for a Hopper chip, which needs none: run by test_gpu.py in a process of its own.

Prints, as JSON, for each kernel and variant: how many of its instructions fuse a product and a sum, how many
divide, exactly or not, and the bytes of local memory that it takes where registers do not suffice.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fedmerge.kernels import gpu, gpu_select, gpu_table

TABLE = {"addresses": "*i64", "sizes": "*i64", "owners": "*i32", "starts": "*i64"}
BLOCK = {"block": gpu_table.BLOCK}


def variants() -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """Kernel, types of its arguments, and constants."""
    merge = {
        "targets": "*i64", "clients": "i32", "weights": "*fp64", "factors": "*fp64", "bits": "*i32",
        "last": "*i64", "keys": "*i64", "limit": "*i64", "density": "*fp64",
    }  # fmt: skip
    found: list[tuple[Any, dict[str, str], dict[str, Any]]] = []
    for kind in (tl.float32, tl.bfloat16, tl.float16):
        for trims, drops, elects in [(0, 0, 0), (1, 0, 1), (0, 1, 0), (0, 1, 1)]:
            flags = {"scales": 1, "trims": bool(trims), "drops": bool(drops), "elects": bool(elects)}
            found.append((gpu._merge, TABLE | merge, {**flags, "kind": kind, **BLOCK}))
    segments = {"addresses": "*i64", "sizes": "*i64", "clients": "i32"}
    for kind in (tl.float32, tl.bfloat16, tl.float16):
        sample = segments | {"samples": "*i32"}
        found.append((gpu_select._sample, sample, {"kind": kind, "count": gpu_select.SAMPLE}))
        gather = TABLE | {"clients": "i32", "low": "*i32", "high": "*i32", "places": "*i64", "rooms": "*i64"}
        gather |= {"above": "*i32", "cursor": "*i32"}
        found.append((gpu_select._gather, gather, {"kind": kind, **BLOCK}))
        histogram = TABLE | {
            "clients": "i32",
            "prefix": "*i32",
            "found": "*i32",
            "shift": "i32",
            "width": "i32",
        }
        found.append((gpu_select._histogram, histogram, {"kind": kind, "digits": gpu_select.DIGITS, **BLOCK}))
        last = segments | {"prefix": "*i32", "wanted": "*i64", "equal": "*i64", "last": "*i64"}
        found.append((gpu_select._last, last, {"kind": kind, **BLOCK}))
    choose = {"found": "*i32", "wanted": "*i64", "prefix": "*i32", "equal": "*i64", "clients": "i32"}
    found.append((gpu_select._choose, {**choose, "shift": "i32"}, {"digits": gpu_select.DIGITS}))
    return found


def compiled(function: Any, arguments: dict[str, str], constants: dict[str, Any]) -> dict[str, Any]:
    signature = arguments | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in function.arg_names}
    keys = {(function.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(function, signature, keys)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
    assembly = made.asm["ptx"]
    return {
        "kernel": function.__name__,
        "constants": {name: str(value) for name, value in constants.items()},
        "cubin": len(made.asm["cubin"]),
        "fused": len(re.findall(r"fma\.rn\.f(?:32|64)", assembly)),
        "divisions": len(re.findall(r"div\.rn\.f64", assembly)),
        "inexact divisions": len(re.findall(r"div\.(?:full|approx)", assembly)),
        "stack": stack(made.asm["cubin"]),
    }


def stack(cubin: bytes) -> int | None:
    """Bytes of local memory, where registers did not suffice; None where no tool is at hand to tell."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.exists():
        return None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True)
    return max(int(size) for size in re.findall(r"STACK:(\d+)", told.stdout + told.stderr))


if __name__ == "__main__":
    print(json.dumps([compiled(*variant) for variant in variants()]))
