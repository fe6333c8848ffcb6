"""What is compiled for each kind of processor: whole vectors, and fused products.

Nothing of it is run here, so that any machine can look at the code of all others.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

COMPILE = """
import re, sys
import numpy as np
from llvmlite import binding as llvm
from numba import njit, typeof
from daskgmm.kernel import passes

dtype, triple, cpu = sys.argv[1:]
entry = njit(**passes.JIT)(passes._make_enter(0))
entry.compile(tuple(map(typeof, (0, *passes._examples(np.dtype(dtype))))))
if not triple:
    print(entry.inspect_asm(entry.signatures[0]))
else:
    code = entry.inspect_llvm(entry.signatures[0])
    code = re.sub("target datalayout = .*", "", code)
    code = re.sub("target triple = .*", f'target triple = "{triple}"', code)
    code = re.sub('"target-(cpu|features)"="[^"]*"', "", code)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    print(machine.emit_assembly(llvm.parse_assembly(code)))
"""
ARM = "aarch64-unknown-linux-gnu"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bits", "dtype", "triple", "cpu", "fused", "any_width"),
    [
        (
            128,
            "float64",
            ARM,
            "neoverse-n1",
            r"fmla\tv\d+\.2d",
            r"f(mla|madd)\t[vd].*d",
        ),
        (
            128,
            "float32",
            ARM,
            "neoverse-n1",
            r"fmla\tv\d+\.4s",
            r"f(mla|madd)\t[vs].*s",
        ),
        (256, "float64", "", "haswell", r"vfmadd\w+pd\t.*%ymm", r"vfn?madd\w+d\t"),
        (
            512,
            "float32",
            "",
            "skylake-avx512",
            r"vfmadd\w+ps\t.*%zmm",
            r"vfn?madd\w+s\t",
        ),
    ],
)
def test_products_are_fused_and_fill_registers(
    bits, dtype, triple, cpu, fused, any_width
):
    environment = {**os.environ, "DASKGMM_VECTOR_BITS": str(bits)}
    if not triple:
        environment |= {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, dtype, triple, cpu],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(rf"\t{fused}", done.stdout)
    # Products of matrices alone are some hundreds, in register tiles that are unrolled.
    assert len(found) > 500
    # Of this precision: sums over single rows are of float64 in any case.
    every = re.findall(rf"\t{any_width}", done.stdout)
    assert len(every) >= len(found)
    assert len(found) > 0.95 * len(every)
    assert not re.findall(r"\t(?:bl|callq?)\t.*\bfmaf?\b", done.stdout)
