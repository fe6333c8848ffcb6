"""Whole fits: passes, time, and how far from the optimum they end."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture as Theirs

from benchmarks.common import Row, write_zarr
from benchmarks.peers import has_spark, spark_rows, spark_session
from daskgmm import GaussianMixture
from daskgmm.em import fit
from daskgmm.em.anchored import AnchoredEM
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import n_parameters

Array = NDArray[np.float64]
Rng = np.random.Generator


@dataclass(frozen=True)
class DataSet:
    """Rows of one kind, and the mixture that is fitted to them.

    `rows` are drawn for each parameter, and `times` as many are there.
    """

    name: str
    n_components: int
    n_features: int
    draw: Callable[[Rng, int], Array]
    rows: int = 40
    times: int = 30
    covariance_type: str = "full"

    @property
    def n_parameters(self) -> int:
        """Free parameters of the mixture."""
        shape = SHAPES[self.covariance_type]
        return n_parameters(shape, self.n_components, self.n_features)


def mixture(
    n_components: int, n_features: int, distance: float, weights: Any = None
) -> Callable[[Rng, int], Array]:
    """Components of spread about 1, whose means lie `distance` apart in the median."""

    def draw(rng: Rng, n: int) -> Array:
        means = rng.normal(size=(n_components, n_features))
        apart = np.linalg.norm(means[:, None] - means[None], axis=2)
        means *= distance / np.median(apart[np.triu_indices(n_components, 1)])
        shares = (
            np.full(n_components, 1.0 / n_components) if weights is None else weights
        )
        shapes = rng.normal(size=(n_components, n_features, n_features))
        shapes = np.eye(n_features) + 0.3 * shapes / np.sqrt(n_features)
        labels = rng.choice(n_components, n, p=shares)
        x = rng.normal(size=(n, n_features))
        for k in range(n_components):
            of_k = labels == k
            x[of_k] = x[of_k] @ shapes[k] + means[k]
        return x

    return draw


def digits(n_features: int) -> Callable[[Rng, int], Array]:
    """Handwritten digits, on their principal axes, drawn again with some noise."""

    def draw(rng: Rng, n: int) -> Array:
        axes = PCA(n_features, random_state=0).fit_transform(load_digits().data)
        noise = rng.normal(size=(n, n_features)) * 0.2 * axes.std(axis=0)
        drawn: Array = axes[rng.integers(len(axes), size=n)] + noise
        return drawn

    return draw


def tails(rng: Rng, n: int) -> Array:
    """Heavy tails on some axes, skewness on others: no mixture of few Gaussians."""
    centres = rng.normal(size=(4, 6)) * 4.0
    x = rng.standard_t(4.0, size=(n, 6))
    x[:, 3:] = rng.gamma(2.0, size=(n, 3)) - 2.0
    drawn: Array = x + centres[rng.integers(4, size=n)]
    return drawn


def speech(rng: Rng, n: int) -> Array:
    """Like cepstra of speech: many diagonal components, which fade along the axes."""
    d, k = 20, 24
    fading = 1.0 / np.sqrt(1.0 + np.arange(d))
    means = rng.normal(size=(k, d)) * 2.0 * fading
    spreads = fading * rng.gamma(8.0, 1.0 / 8.0, size=(k, d))
    labels = rng.choice(k, n, p=rng.dirichlet(np.full(k, 3.0)))
    drawn: Array = means[labels] + spreads[labels] * rng.normal(size=(n, d))
    return drawn


RARE = np.array([0.4, 0.3, 0.299, 0.001])
DATA_SETS = (
    DataSet("blobs", 8, 8, mixture(8, 8, 16.0)),
    DataSet("overlap 1.5 sd, d=2", 3, 2, mixture(3, 2, 1.5), rows=50, times=40),
    DataSet("overlap 1.5 sd, d=8", 6, 8, mixture(6, 8, 1.5)),
    DataSet("overlap 2.5 sd, d=5", 4, 5, mixture(4, 5, 2.5)),
    DataSet("digits, K=10", 10, 8, digits(8)),
    DataSet("digits, K=30", 30, 8, digits(8), rows=15),
    DataSet("a component of 0.1 %", 4, 4, mixture(4, 4, 6.0, RARE), rows=50),
    DataSet("K twice the truth", 8, 5, mixture(4, 5, 4.0)),
    DataSet("heavy tails, skewed", 6, 6, tails),
    DataSet("like speech, diag", 24, 20, speech, covariance_type="diag"),
)

SEEDS: Final = 5
DRAWN: Final = 100_000
"""What `init_size='auto'` draws of most mixtures."""


def few_passes(_machine: dict[str, float]) -> Iterator[Row]:
    """Accelerated fits beside plain EM from the same starts, medians over seeds.

    With few drawn rows for each parameter, and with as many as are drawn unasked.
    """
    for data in DATA_SETS:
        for init_size in sorted({data.rows * data.n_parameters, DRAWN}):
            times = data.times if init_size < DRAWN else 20
            if init_size <= DRAWN:
                yield _beside_plain(data, init_size, times)
    yield _beside_plain(OVERLAP, DRAWN, ROWS // DRAWN)


def _beside_plain(data: DataSet, init_size: int, times: int) -> Row:
    found = []
    for seed in range(SEEDS):
        x = data.draw(np.random.default_rng(seed), init_size * times)
        parameters = {
            "n_components": data.n_components,
            "covariance_type": data.covariance_type,
            "init_size": init_size,
            "random_state": seed,
        }
        ours, seconds = _timed(GaussianMixture(accelerate=True, **parameters), x)
        plain, of_plain = _timed(GaussianMixture(accelerate=False, **parameters), x)
        ends = [seconds, of_plain, ours.n_passes_, plain.n_passes_]
        best = _optimum(ours, x)
        found.append([*ends, *(best - model.score(x) for model in (ours, plain))])
    seconds, of_plain, passes, plain_passes, gap, plain_gap = np.median(found, axis=0)
    worst = max(passes for _, _, passes, *_ in found)
    rows = init_size / data.n_parameters
    return Row(
        "few passes",
        f"{data.name}, {rows:.0f} rows a parameter, {init_size * times} rows",
        seconds,
        {"plain EM": of_plain},
        of_plain / seconds,
        f"worst {worst:.0f}",
        passes=passes,
        peer_passes=plain_passes,
        gap=gap,
        peer_gap=plain_gap,
    )


def _timed(model: Any, x: Any) -> tuple[Any, float]:
    began = perf_counter()
    return model.fit(x), perf_counter() - began


def _timed_spark(x: Array, path: Path) -> tuple[Any, float]:
    """Spark's fit, rows read and kept, as a mixture of ours; and its seconds."""
    from pyspark.ml.clustering import GaussianMixture as OfSpark

    with spark_session() as session:
        frame = spark_rows(session, x, path).cache()
        # Its tolerance is one of the sum over all rows.
        tol = 1e-3 * len(x)
        mixture = OfSpark(k=OVERLAP.n_components, maxIter=100, tol=tol, seed=0)
        fitted, seconds = _timed(mixture, frame)
        covariances = np.stack([g.cov.toArray() for g in fitted.gaussians])
        found = GaussianMixture(
            OVERLAP.n_components,
            weights_init=np.array(fitted.weights) / sum(fitted.weights),
            means_init=np.stack([g.mean.toArray() for g in fitted.gaussians]),
            precisions_init=np.linalg.inv(covariances),
            max_iter=0,
        ).fit(x[:1000])
        found.n_iter_ = fitted.summary.numIter
    return found, seconds


def _optimum(fitted: GaussianMixture, x: Any) -> float:
    """The mean log likelihood where a fit would end if it went on."""
    further = GaussianMixture(**fitted.get_params()).set_params(
        accelerate=True,
        tol=1e-10,
        max_iter=60,
        weights_init=fitted.weights_.astype(np.float64),
        means_init=fitted.means_,
        precisions_init=fitted.precisions_,
    )
    return float(further.fit(x).score(x))


OVERLAP = DataSet("overlap 1.5 sd, d=16", 10, 16, mixture(10, 16, 1.5))
SAMPLE_WORK = ((OVERLAP, 30_000), (DATA_SETS[2], 100_000), (DATA_SETS[0], 20_000))


def sample_work(_machine: dict[str, float]) -> Iterator[Row]:
    """The part of a fit from Zarr that goes to the drawn rows, of which 100 are one.

    EM before the first pass, the paths between passes, and what is left to gain at the
    end; the start itself is plain EM's too.
    """
    for data, init_size in SAMPLE_WORK:
        x = data.draw(np.random.default_rng(0), 100 * init_size)
        model = GaussianMixture(
            data.n_components, init_size=init_size, accelerate=True, random_state=0
        )
        with tempfile.TemporaryDirectory() as folder:
            write_zarr(folder, x, CHUNK_ROWS, compressors="auto")
            model.fit(folder)  # reads the files once
            shares, wholes = [], []
            for _ in range(SEEDS):
                with _clock_of_sample() as spent:
                    wholes.append(_timed(model, folder)[1])
                shares.append(sum(spent))
        yield Row(
            "sample's work",
            f"{data.name}, {len(x)} rows, a hundredth drawn",
            float(np.median(shares)),
            {"the whole fit": float(np.median(wholes))},
            float(np.median(np.divide(shares, wholes))),
            "<= 0.1",
            passes=model.n_passes_,
            gap=model.remaining_gain_,
        )


@contextmanager
def _clock_of_sample() -> Iterator[list[float]]:
    """Seconds of each piece of work on the drawn rows."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            began = perf_counter()
            try:
                return function(*args)
            finally:
                spent.append(perf_counter() - began)

        return run

    with ExitStack() as stack:
        for owner, name in (
            (fit, "improved"),
            (AnchoredEM, "propose"),
            (AnchoredEM, "remaining_gain"),
        ):
            clocked = timed(getattr(owner, name))
            stack.enter_context(patch.object(owner, name, clocked))
        yield spent


ROWS: Final = 3_000_000
CHUNK_ROWS: Final = 16_384


def whole_fits(_machine: dict[str, float]) -> Iterator[Row]:
    """From Zarr, with all that a fit does, beside plain EM, scikit-learn and Spark.

    scikit-learn has the rows in memory, and begins with k-means on all of them. Spark
    keeps them in memory once they are read from Parquet, and begins with random rows.
    """
    x = OVERLAP.draw(np.random.default_rng(0), ROWS)
    parameters = {"n_components": OVERLAP.n_components, "random_state": 0}
    with tempfile.TemporaryDirectory() as folder:
        write_zarr(folder, x, CHUNK_ROWS, compressors="auto")
        GaussianMixture(max_iter=1, **parameters).fit(folder)  # reads the files once
        ours, seconds = _timed(GaussianMixture(**parameters), folder)
        plain, of_plain = _timed(
            GaussianMixture(accelerate=False, **parameters), folder
        )
        peers = [
            ("plain EM", plain, of_plain),
            ("scikit-learn", *_timed(Theirs(**parameters), x)),
        ]
        if has_spark():
            peers.append(("Spark", *_timed_spark(x, Path(folder) / "x.parquet")))
    best = _optimum(ours, x)
    for name, peer, of_peer in peers:
        yield Row(
            "whole fit",
            f"streamed, {OVERLAP.name} K=10, {ROWS} rows",
            seconds,
            {name: of_peer},
            of_peer / seconds,
            ">= 4",
            passes=ours.n_passes_,
            peer_passes=peer.n_iter_,
            gap=best - ours.score(x),
            peer_gap=best - peer.score(x),
        )
