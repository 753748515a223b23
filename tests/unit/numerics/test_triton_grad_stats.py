"""The kernel without a GPU: run by Triton's interpreter, in a process of its own, and compiled for one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[3]
INTERPRETED = Path(__file__).with_name("interpreted_kernel.py")

pytest.importorskip("triton")


def test_the_kernel_under_the_interpreter() -> None:
    """Triton decides when it is imported, and for good, whether it interprets."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", str(INTERPRETED)],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Nothing skipped, nothing expected to fail: a summary of passed tests alone.
    summary = re.fullmatch(r"(\d+) passed in .*", done.stdout.strip().splitlines()[-1])
    assert summary is not None, done.stdout
    assert int(summary[1]) >= 30, done.stdout


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_kernel_compiles_to_wide_loads(dtype: str) -> None:
    """Without a GPU: Triton's wheel brings the assembler along."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from mp_plugin.numerics import triton_grad_stats as kernel

    types = {"addresses": "*i64", "numels": "*i64", "segments": "*i32", "tensor_of_row": "*i32", "row_floats": "*fp32"}
    types |= {"row_counts": "*i32", "chunk_numel": "i64", "num_rows": "i32", "limit_bits": "i32"}
    element = getattr(torch, dtype)
    constants = {"DTYPE": kernel.DTYPES[element], "ITEMSIZE": element.itemsize, "COUNT_FLUSHED": True}
    constants |= {"BLOCK": kernel._BLOCK, "MASKED_BLOCK": kernel._MASKED_BLOCK}
    source = ASTSource(
        fn=kernel._read_chunks, signature=types | dict.fromkeys(constants, "constexpr"), constexprs=constants
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    ptx = compiled.asm["ptx"]
    bytes_per_thread = kernel._BLOCK * element.itemsize // (8 * 32)
    assert len(re.findall(r"ld\.global[\w.:]*\.v4", ptx)) == bytes_per_thread // 16
    # Subnormal numbers are not flushed, and no register spills to memory.
    assert ".ftz" not in ptx
    assert "st.local" not in ptx
    assert "atom" not in ptx
