"""What is compiled is kept, belongs to its sources, and can do without a cache."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numba
import pytest

import daskgmm
from daskgmm.kernel.compiling import ASK, Compiled, sources, stamp_of

PACKAGE = Path(daskgmm.__file__).parent


def make(stamp):
    def function(task, number):
        return stamp if task == ASK else number + 1

    return function


def make_other(stamp):
    def function(task, number):
        return stamp if task == ASK else number + 2

    return function


def compiled(stamp, how=make):
    return Compiled(how, stamp, (0,), {"nogil": True})


def loads(function):
    """Whether it was loaded from the cache, once it was called."""
    return sum(function._entry.stats.cache_hits.values())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Numba's cache, in a folder of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def full_disk():
    """A context in which no file of this process can grow."""

    @contextmanager
    def full():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


def test_it_is_loaded_by_the_next_process(cache):
    first, second = compiled(7), compiled(7)
    assert first(0, 1) == second(0, 1) == 2
    assert (loads(first), loads(second)) == (0, 1)


def test_what_has_another_stamp_is_compiled_and_kept_beside_it(cache):
    functions = [compiled(7), compiled(8, make_other), compiled(7)]
    assert [function(0, 1) for function in functions] == [2, 3, 2]
    assert list(map(loads, functions)) == [0, 0, 1]
    assert len(list(cache.rglob("*.nbi"))) == 2


def test_code_of_another_stamp_is_never_run(cache):
    """As where two processes wrote the files at once."""
    other = compiled(8, make_other)
    other(0, 1)
    [theirs] = cache.rglob("*.nbc")
    compiled(7)(0, 1)
    [ours] = set(cache.rglob("*.nbc")) - {theirs}
    shutil.copy(theirs, ours)
    mended, after = compiled(7), compiled(7)
    assert mended(0, 1) == after(0, 1) == 2
    assert loads(after) == 1


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_a_damaged_cache_is_written_anew(cache, suffix):
    compiled(7)(0, 1)
    for file in cache.rglob(f"*{suffix}"):
        file.write_bytes(file.read_bytes()[:-9])
    mended, after = compiled(7), compiled(7)
    assert mended(0, 1) == after(0, 1) == 2
    assert (loads(mended), loads(after)) == (0, 1)


def test_a_damaged_cache_on_a_full_disk_is_done_without(cache, full_disk):
    compiled(7)(0, 1)
    for file in cache.rglob("*.nbi"):
        file.write_bytes(file.read_bytes()[:-9])
    with full_disk(), pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert compiled(7)(0, 1) == 2


def make_without_a_file(stamp):
    """Numba finds no folder for what is in no file."""
    names = {}
    exec("def f(task, number):\n    return STAMP if task == -1 else number + 1", names)
    names["STAMP"] = stamp
    return names["f"]


def test_it_is_said_once_where_nothing_can_be_kept(cache):
    function = compiled(7, make_without_a_file)
    with pytest.warns(UserWarning, match=r"took about \d+ s.*NUMBA_CACHE_DIR"):
        function(0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(0, 1) == 2


def test_a_warning_that_is_an_error_leaves_the_function_behind(cache):
    function = compiled(7, make_without_a_file)
    with pytest.raises(UserWarning, match="NUMBA_CACHE_DIR"):
        function(0, 1)
    assert function(0, 1) == 2


def test_a_disk_that_is_full_costs_no_second_compilation(cache, full_disk):
    """What was compiled is used, though it could not be written."""
    function = compiled(7)
    with full_disk(), pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert function(0, 1) == 2
    assert sum(function._entry.stats.cache_misses.values()) == 1


def test_without_sources_nothing_is_kept(cache):
    assert stamp_of(["no such file"]) == 0
    with pytest.warns(UserWarning, match="NUMBA_CACHE_DIR"):
        assert compiled(0)(0, 1) == 2
    assert not list(cache.rglob("*.nbi"))


def test_other_kinds_of_arguments_are_refused(cache):
    function = compiled(7)
    function(0, 1)
    with pytest.raises(TypeError):
        function(0, "1")


def test_a_stamp_depends_on_every_source_and_on_what_else_is_named():
    names = sources()
    assert {"dense.py", "passes.py", "products.py", "simd.py", "tile.py"} <= set(names)
    stamps = {stamp_of(names), stamp_of(names, 256), stamp_of(names, 512)}
    stamps |= {stamp_of(names[:i] + names[i + 1 :]) for i in range(len(names))}
    assert len(stamps) == 3 + len(names)
    assert all(0 < stamp < 2**63 for stamp in stamps)


EDITS = {
    "simd.py": ("_EXP_MIN: Final = -708.0", "_EXP_MIN: Final = -0.5"),
    "passes.py": (
        "responsibilities[start + t, k] = h * h",
        "responsibilities[start + t, k] = h",
    ),
}
ASK_IT = """
import numpy as np
from daskgmm import GaussianMixture
from daskgmm.kernel import passes
x = np.linspace(0, 9, 80)  # two features for few.py, four for dense.py
answers = [
    GaussianMixture(2, tol=1e9, random_state=0).fit(rows).predict_proba(rows).tolist()
    for rows in (x.reshape(-1, 2), x.reshape(-1, 4))
]
entry = passes._enter._entry
print(sum(entry.stats.cache_hits.values()), answers)
"""


@pytest.mark.parametrize("edited", EDITS)
def test_edits_are_of_what_is_there(edited):
    assert EDITS[edited][0] in (PACKAGE / "kernel" / edited).read_text()


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The package in a folder of its own, and what asks it."""
    folder = tmp_path_factory.mktemp("copied")
    package = folder / "daskgmm"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(folder / "cache"),
        "PYTHONDONTWRITEBYTECODE": "1",  # Python's own cache goes by time and size
    }

    def ask():
        done = subprocess.run(
            [sys.executable, "-c", ASK_IT],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        loaded, answer = done.stdout.split(" ", 1)
        return int(loaded), answer

    assert ask()[0] == 0
    return package, ask


@pytest.mark.slow
@pytest.mark.parametrize("edited", EDITS)
def test_an_edit_of_any_kernel_source_is_noticed(copied, edited):
    """Also where the time and size of the file stay as they were."""
    package, ask = copied
    found, before = ask()
    assert found == 1
    source = package / "kernel" / edited
    text, times = source.read_text(), source.stat()
    source.write_text(text.replace(*EDITS[edited]))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    found, after = ask()
    assert found == 0
    assert after != before
    source.write_text(text)
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert ask() == (1, before)


def test_the_width_is_read_from_the_environment():
    script = "from daskgmm.kernel import simd; print(simd.VECTOR_BITS, simd.LANES)"

    def ask(bits):
        environment = {**os.environ, "DASKGMM_VECTOR_BITS": bits}
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    assert ask("512").stdout.split() == ["512", "8"]
    wrong = ask("64").stderr
    assert re.search("DASKGMM_VECTOR_BITS must be one of 128, 256, 512.*'64'", wrong)
    assert daskgmm.__file__ == str(PACKAGE / "__init__.py")


LOWER_BOUNDS = """
import llvmlite, numpy as np
from daskgmm import GaussianMixture
x = np.random.default_rng(0).normal(size=(300, 9)).astype(np.float32)
kinds = ("full", "tied", "diag", "spherical")
models = [GaussianMixture(2, covariance_type=kind, random_state=0) for kind in kinds]
bounds = [model.fit(x).lower_bound_.hex() for model in models]
"""


@pytest.mark.slow
def test_the_kernel_does_not_ask_what_pointers_point_to(tmp_path):
    """LLVM's pointers have no type any more, and llvmlite's will not for long."""
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path),
        "LLVMLITE_ENABLE_IR_LAYER_TYPED_POINTERS": "0",
    }
    script = LOWER_BOUNDS + "print(llvmlite.ir_layer_typed_pointers_enabled, *bounds)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    names = {}
    exec(LOWER_BOUNDS, names)
    assert done.stdout.decode().split() == ["False", *names["bounds"]]
