"""Others that fit mixtures to more data than scikit-learn can: Spark, plain Dask."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd

from benchmarks import naive
from benchmarks.common import (
    N_CORES,
    Case,
    Row,
    make_rows,
    ours_per_iteration,
    per_iteration,
    start,
)

CASES = (Case("full", 2, 3, 1_000_000), Case("full", 16, 10, 200_000))


def plain_dask(_machine: dict[str, float]) -> Iterator[Row]:
    """`naive.fit` on the same chunks, on Dask's threads."""
    sizes = ((CASES[0], 100), (CASES[0], 1000), (CASES[1], 100))
    for case, n_chunks in sizes:
        rows = make_rows(case)
        x = da.from_array(rows, chunks=(-(-len(rows) // n_chunks), -1)).persist()
        parameters = start(case, rows)
        eyes = np.stack([np.eye(case.n_features)] * case.n_components)

        def fit(n: int, x=x, p=parameters, eyes=eyes) -> None:
            naive.fit(x, n, p["weights_init"], p["means_init"], eyes)

        ours = ours_per_iteration(x, parameters)
        theirs = per_iteration(fit, 1, 3, 2)
        yield Row(
            "plain Dask",
            f"{case.name}, {len(rows)} rows, {n_chunks} chunks",
            ours,
            {"one task per chunk": theirs},
            theirs / ours,
        )


def spark(_machine: dict[str, float]) -> Iterator[Row]:
    """Spark's GaussianMixture, local[2], rows cached; nothing without Java."""
    if not has_spark():
        return
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            rows = make_rows(case)
            ours = ours_per_iteration(rows, start(case, rows))
            theirs = _spark_iteration(case, rows, Path(folder) / case.name)
            yield Row(
                "Spark",
                f"{case.name}, {len(rows)} rows",
                ours,
                {"Spark": theirs},
                theirs / ours,
            )


def has_spark() -> bool:
    """Whether Spark can run; else it is said that it is left out."""
    found = shutil.which("java") is not None and find_spec("pyspark") is not None
    if not found:
        print("(no Java or no pyspark here: Spark is left out)")
    return found


def _spark_iteration(case: Case, rows: np.ndarray, path: Path) -> float:
    from pyspark.ml.clustering import GaussianMixture

    with spark_session() as session:
        frame = spark_rows(session, rows, path).cache()
        frame.count()

        def fit(n: int) -> None:
            mixture = GaussianMixture(k=case.n_components, maxIter=n, tol=0.0, seed=0)
            mixture.fit(frame)

        fit(1)
        return _steady(fit)


@contextmanager
def spark_session() -> Iterator[Any]:
    """Spark on this machine's cores."""
    from pyspark.sql import SparkSession

    session = (
        SparkSession.builder.master(f"local[{N_CORES}]")
        .config("spark.driver.memory", "4g")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "ERROR")
        .getOrCreate()
    )
    try:
        yield session
    finally:
        session.stop()


def spark_rows(session: Any, rows: np.ndarray, path: Path) -> Any:
    """Rows as Spark takes them, from Parquet."""
    from pyspark.ml.feature import VectorAssembler

    names = [f"x{i}" for i in range(rows.shape[1])]
    pd.DataFrame(rows, columns=names).to_parquet(path, row_group_size=50_000)
    assembler = VectorAssembler(inputCols=names, outputCol="features")
    frame = assembler.transform(session.read.parquet(str(path)))
    return frame.select("features").repartition(4 * N_CORES)


def _steady(fit: Callable[[int], None]) -> float:
    return per_iteration(fit, 2, 8, 2)
