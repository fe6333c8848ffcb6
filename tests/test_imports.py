"""Imports go down, from floor to floor: what is above is not known below."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import daskgmm

PACKAGE = Path(daskgmm.__file__).parent

FLOORS = {
    "config": 0,
    "data/__init__": 0,
    "errors": 0,
    "forking": 0,
    "graph": 0,
    "memory": 0,
    "mixtures/__init__": 0,
    "notices": 0,
    "storage/__init__": 0,
    "storage/facts": 0,
    "storage/urls": 0,
    "vectors": 0,
    "blas": 1,
    "cluster": 1,
    "compiling": 1,
    "covariance": 1,
    "data/columns": 1,
    "demo_data": 1,
    "deployment": 1,
    "patience": 1,
    "storage/zarr_store": 1,
    "data/gaps": 2,
    "data/packed": 2,
    "data/table_files": 2,
    "layout": 2,
    "mixture": 2,
    "reduction": 2,
    "store": 2,
    "kernel": 3,
    "reading": 3,
    "writing": 3,
    "data/parquet_reader": 4,
    "passes": 4,
    "data/parquet": 5,
    "moments": 5,
    "data/versions": 6,
    "mixtures/totals": 6,
    "opening": 6,
    "refinement": 6,
    "cli_options": 7,
    "likelihood": 7,
    "sources": 7,
    "em": 8,
    "survey": 8,
    "posterior": 9,
    "seeding": 9,
    "kinds": 10,
    "training": 10,
    "checkpoint": 11,
    "reporting": 11,
    "estimators": 12,
    "drawing": 13,
    "forecast": 13,
    "plotting": 13,
    "demo": 14,
    "display": 15,
    "cli": 16,
    "__init__": 17,
    "__main__": 17,
}

LATE = {"deltalake", "matplotlib", "pandas", "pyarrow", "sklearn", "xarray"}
"""What may be imported when it is needed: an extra, or large and not for workers."""


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def parse(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(node):
    """Dotted names that an import statement loads, or may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parts = ["daskgmm"] * bool(node.level) + [node.module] * bool(node.module)
        return [".".join([*parts, alias.name]) for alias in node.names]
    return []


def own_imports(tree):
    """Modules of the package that a tree imports, wherever in it."""
    paths = [name.split(".") for node in ast.walk(tree) for name in imported(node)]
    return {home(path[1:]) for path in paths if path[0] == "daskgmm"}


def home(path):
    """The module that a dotted name is in: the longest beginning that is one."""
    beginnings = ["/".join(path[:n]) for n in range(len(path), 0, -1)]
    return next((name for name in beginnings if name in FLOORS), "__init__")


def test_every_module_has_a_floor_and_every_floor_a_module():
    assert {str(path.with_suffix("")) for path in modules()} == FLOORS.keys()


@pytest.mark.parametrize("module", FLOORS)
def test_imports_go_down(module):
    up = {m for m in own_imports(parse(module)) if FLOORS[m] >= FLOORS[module]}
    assert not up, f"{module} (floor {FLOORS[module]}) must not import {sorted(up)}"


@pytest.mark.parametrize("module", FLOORS)
def test_imports_are_at_the_top(module):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = {
        name.split(".")[0]
        for function in ast.walk(parse(module))
        if isinstance(function, functions)
        for node in ast.walk(function)
        for name in imported(node)
    }
    assert late <= LATE | (
        {"daskgmm"} if FLOORS[module] == FLOORS["__init__"] else set()
    )


def test_workers_do_without_scikit_learn():
    """What shards are made of and worked on with, and what the demo's workers run."""
    modules = (
        "demo_data, memory, moments, posterior, reduction, refinement, sources, survey"
    )
    code = f"import sys; from daskgmm import {modules}; print('sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.split() == [b"False"]


@pytest.mark.parametrize("module", FLOORS)
def test_nothing_is_imported_by_its_name_in_a_string(module):
    names = {n.id for n in ast.walk(parse(module)) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(parse(module)) if isinstance(n, ast.Attribute)}
    assert not names & {"__import__", "import_module"}


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import daskgmm.em", {"em"}),
        ("from daskgmm import em, store", {"em", "store"}),
        ("from daskgmm.em import best", {"em"}),
        ("from .em import best", {"em"}),
        ("from . import em", {"em"}),
        ("from daskgmm import GaussianMixture", {"__init__"}),
        ("from daskgmm import GaussianMixture, em", {"__init__", "em"}),
        ("import daskgmm", {"__init__"}),
        ("def f():\n    from daskgmm import em", {"em"}),
        ("import dask.array", set()),
    ],
)
def test_own_imports(statement, expected):
    assert own_imports(ast.parse(statement)) == expected
