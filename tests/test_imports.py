"""Imports go down between folders, and each library has folders that may load it."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import daskgmm

PACKAGE = Path(daskgmm.__file__).parent

LEVELS = [
    {"errors", "config", "loaded", "steps"},
    {"kernel"},
    {"storage", "execution", "mixtures"},
    {"data"},
    {"em", "outputs"},
    {"display"},
    {"estimators"},
    {"plotting"},
    {"demo"},
    {"cli"},
    {"__init__", "__main__"},
]
"""Folders, and files that are in none: each may import those of lower levels."""
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}

OWNERS = {
    "click": {"cli"},
    "dask": set(LEVEL) - {"errors", "kernel", "mixtures", "plotting"},
    "deltalake": {"data"},
    "distributed": {"data", "execution", "demo", "cli"},
    "IPython": {"display"},
    "fsspec": {"storage", "data", "outputs"},
    "llvmlite": {"kernel"},
    "matplotlib": {"plotting", "demo", "cli"},
    "numba": {"kernel"},
    "pandas": {"data"},
    "psutil": {"data", "demo"},
    "pyarrow": {"data", "outputs"},
    "rich": {"display", "demo", "cli"},
    "scipy": {"execution", "mixtures", "plotting", "demo"},
    "sklearn": {"em", "estimators", "plotting", "cli"},
    "threadpoolctl": {"execution"},
    "xarray": {"data"},
    "yaml": {"config", "execution"},
    "zarr": {"storage", "data", "outputs", "demo", "cli"},
}
"""The folders that may import a library; numpy is for all."""

LATE = {
    "IPython",
    "deltalake",
    "distributed",
    "matplotlib",
    "pandas",
    "pyarrow",
    "sklearn",
    "xarray",
}
"""What may be imported when it is needed: an extra, or large and not for workers."""

LATE_THEMSELVES = {"__init__", "__main__", "cli/main", "cli/training"} | {
    f"cli/{name}"
    for name in ("demo", "fit", "info", "plot", "predict", "sample", "score", "select")
}
LATE_THEMSELVES |= {"cli/checks", "cli/warmup"}
"""Those that load what is asked for, and no more."""

PRIVATE = {
    # What a task is has no other name.
    ("data/dask_graph", "dask._task_spec"),
    # Of data frames it is the documented way to the columns' dtypes.
    ("data/inputs", "_meta"),
    # After a fork, clients are to be left alone, and Dask tells of them nowhere else.
    ("execution/cluster", "_instances"),
    ("execution/cluster", "_offload_executor"),
    # threadpoolctl 3.7 listens only to the thread that limited OpenBLAS first.
    ("execution/threads", "_real_set_num_threads"),
    # Parameters are checked as in scikit-learn, by its own table of what they may be.
    ("estimators/gaussian", "_parameter_constraints"),
    ("estimators/gaussian", "sklearn.utils._param_validation"),
    ("estimators/bayesian", "_parameter_constraints"),
    ("estimators/bayesian", "sklearn.utils._param_validation"),
    ("estimators/outliers", "sklearn.utils._param_validation"),
    ("estimators/search", "_parameter_constraints"),
    ("estimators/search", "_validate_params"),
    ("estimators/search", "sklearn.utils._param_validation"),
    ("estimators/base", "_check_sample_weight"),
    # scikit-learn documents it, for whoever writes an estimator.
    ("estimators/callbacks", "_init_callback_context"),
    # Vectors are a type of their own, and Numba's documentation has them made so.
    ("kernel/simd", "numba.core"),
    ("kernel/simd", "numba.core.datamodel"),
    ("kernel/simd", "numba.core.registry"),
    ("storage/zarr_internals", "zarr.core.sync"),
    ("storage/zarr_internals", "zarr.storage._common"),
}
"""Private names of other packages that are used, by file, with the reason."""
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}


def modules():
    return sorted(
        str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")
    )


MODULES = modules()


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


def all_imported(tree):
    return [name for node in ast.walk(tree) for name in imported(node)]


def own_imports(tree):
    """Modules of the package that a tree imports, wherever in it."""
    paths = [name.split(".") for name in all_imported(tree)]
    return {home(path[1:]) for path in paths if path[0] == "daskgmm"}


def home(path):
    """The module that a dotted name is in: the longest beginning that is one."""
    beginnings = ["/".join(path[:n]) for n in range(len(path), 0, -1)]
    candidates = [c for b in beginnings for c in (b, f"{b}/__init__")]
    return next((name for name in candidates if name in MODULES), "__init__")


def folder(module):
    return module.split("/")[0]


def test_every_folder_has_a_level_and_every_level_a_folder():
    assert {folder(module) for module in MODULES} == LEVEL.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module):
    of = folder(module)
    up = {
        name
        for name in own_imports(parse(module))
        if folder(name) != of and LEVEL[folder(name)] >= LEVEL[of]
    }
    assert not up, f"{module} must not import {sorted(up)}"


@pytest.mark.parametrize("of", sorted(LEVEL))
def test_no_folder_has_a_circle(of):
    graph = {
        module: {name for name in own_imports(parse(module)) if folder(name) == of}
        for module in MODULES
        if folder(module) == of
    }
    list(TopologicalSorter(graph).static_order())  # raises at a circle


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_imported_where_they_belong(module):
    roots = {name.split(".")[0] for name in all_imported(parse(module))}
    others = roots - sys.stdlib_module_names - {"daskgmm", "numpy"}
    wrong = {name for name in others if folder(module) not in OWNERS[name]}
    assert not wrong, f"{module} must not import {sorted(wrong)}"


def private_names(module):
    """Private names of other packages that a module uses."""
    tree = parse(module)
    for name in all_imported(tree):
        root, *rest = name.split(".")
        private = [part for part in rest if _is_private(part)]
        private += ["core"] if root in _CORES and rest[:1] == ["core"] else []
        if root != "daskgmm" and private:
            # A module that is private, or a private name of one that is public.
            yield private[0] if private[0] == rest[-1] else name.rpartition(".")[0]
    own = {name for node in ast.walk(tree) for name in _defined(node)}
    for node in ast.walk(tree):
        is_private = isinstance(node, ast.Attribute) and _is_private(node.attr)
        known = own | OF_NAMED_TUPLES | OURS
        if is_private and node.attr not in known and not _of_self(node):
            yield node.attr


def _defined(node):
    """Names that a statement defines: methods, functions, and attributes of self."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    is_set = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    return [node.attr] if is_set and _of_self(node) else []


def _of_self(node):
    return isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")


_CORES = {"numba", "zarr"}
"""Packages whose `core` is not for others."""
OURS = {"_n_parameters", "_likely_passes", "_score", "_find", "_facts"} | {
    f"_{name}"
    for name in (
        "as_fitted",
        "check_array_api",
        "check_n_features",
        "fitted_html",
        "mixture",
        "plain_mixture",
        "set_attributes",
        "set_mixture",
        "settings",
        "question",
        "taken",
        "validated",
    )
}
"""Private names of this package that another of its modules uses."""


def _is_private(name):
    return name.startswith("_") and not name.startswith("__")


def test_private_names_of_other_packages_are_listed():
    used = {(module, name) for module in MODULES for name in private_names(module)}
    assert used == PRIVATE


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_at_the_top(module):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = {
        name.split(".")[0]
        for function in ast.walk(parse(module))
        if isinstance(function, functions)
        for name in all_imported(function)
    }
    assert late <= LATE | ({"daskgmm"} if module in LATE_THEMSELVES else set())


def test_what_only_fits_on_clusters_need_is_not_loaded():
    """Nor is it by a fit in memory; Dask itself loads it as soon as it runs a graph."""
    lines = (
        "import sys",
        "import numpy as np",
        "from daskgmm import GaussianMixture",
        "assert 'distributed' not in sys.modules",
        "x = np.random.default_rng(0).normal(size=(60, 2))",
        "GaussianMixture(2, random_state=0).fit(x).predict(x)",
        "assert 'distributed' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_workers_do_without_scikit_learn():
    """What shards are made of and worked on with, and what the demo's workers run."""
    of_workers = [
        "daskgmm.data.sources",
        "daskgmm.demo.data",
        "daskgmm.demo.memory",
        "daskgmm.em.predict",
        "daskgmm.em.scan",
        "daskgmm.execution.tree",
        "daskgmm.mixtures.refinement",
        "daskgmm.mixtures.sufficient_statistics",
        "daskgmm.outputs.parquet_output",
        "daskgmm.outputs.zarr_output",
    ]
    code = f"import sys, {', '.join(of_workers)}; print('sklearn' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert out.stdout.split() == [b"False"]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_imported_by_its_name_in_a_string(module):
    names = {n.id for n in ast.walk(parse(module)) if isinstance(n, ast.Name)}
    names |= {n.attr for n in ast.walk(parse(module)) if isinstance(n, ast.Attribute)}
    assert not names & {"__import__", "import_module"}


@pytest.mark.parametrize("module", MODULES)
def test_every_file_says_in_a_sentence_what_it_is_for(module):
    said = ast.get_docstring(parse(module))
    assert said and said.split("\n\n")[0].endswith(".")


ARCHITECTURE = PACKAGE.parent / "ARCHITECTURE.md"


@pytest.mark.parametrize("name", sorted(LEVEL.keys() - {"__init__", "__main__"}))
def test_the_page_about_the_architecture_names_every_folder(name):
    assert f"`{name}" in ARCHITECTURE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("import daskgmm.em.loop", {"em/loop"}),
        ("from daskgmm.em import loop, fit", {"em/loop", "em/fit"}),
        ("from daskgmm.em.loop import em", {"em/loop"}),
        ("from daskgmm import em", {"em/__init__"}),
        ("from daskgmm import config", {"config"}),
        ("from daskgmm import GaussianMixture", {"__init__"}),
        ("import daskgmm", {"__init__"}),
        ("def f():\n    from daskgmm.em import loop", {"em/loop"}),
        ("import dask.array", set()),
    ],
)
def test_own_imports(statement, expected):
    assert own_imports(ast.parse(statement)) == expected


def test_tests_lie_in_folders_of_the_names_of_the_packages():
    """What is about several of them, or about a file beside them, lies at the top."""
    folders = [
        {path.parent.name for path in top.glob("*/*.py")}
        for top in (PACKAGE, Path(__file__).parent)
    ]
    assert folders[0] == folders[1]
