"""A fit at scale: 1,000,000,000 rows of 2 features from lazily generated blocks."""

from __future__ import annotations

import argparse
import warnings
from time import perf_counter
from typing import Any

import dask
import dask.array as da
import numpy as np
from sklearn.exceptions import ConvergenceWarning

from benchmarks.common import N_CORES, environment, peak_mb
from daskgmm import GaussianMixture
from daskgmm.em.progress import Progress

WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-2.0, 0.0], [2.0, 1.0], [0.0, 4.0]])
FACTORS = np.array([[[1.0, 0.0], [0.6, 0.8]], [[0.7, 0.0], [-0.3, 1.1]], np.eye(2)])


def make_block(n_rows: int, block_id: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Rows of a known mixture, drawn anew each time that they are read."""
    rng = np.random.default_rng([0, block_id[0]])
    counts = rng.multinomial(n_rows, WEIGHTS)
    x = rng.standard_normal((n_rows, 2))
    groups = np.split(x, np.cumsum(counts)[:-1])
    for rows, mean, factor in zip(groups, MEANS, FACTORS, strict=True):
        rows[:] = rows @ factor.T + mean
    return x


def main() -> None:
    """Fit, and print the time of each pass and the peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000_000)
    parser.add_argument("--block-rows", type=int, default=1_000_000)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    n_blocks = -(-options.rows // options.block_rows)
    x = da.map_blocks(
        make_block,
        options.block_rows,
        chunks=((options.block_rows,) * n_blocks, (2,)),
        dtype=np.float64,
        meta=np.empty((0, 2)),
    )
    print(environment())
    _fitted(x[: 2 * options.block_rows])  # compiles, outside the clock
    # Data are larger than memory: every pass reads all rows.
    with dask.config.set(
        {"scheduler": "threads", "num_workers": N_CORES, "daskgmm.cache-memory": 0}
    ):
        seconds: list[float] = []
        began = perf_counter()
        models: list[GaussianMixture] = []
        peak = peak_mb(lambda: models.append(_fitted(x, seconds)))
        wall = perf_counter() - began
        [model] = models
        start = {
            "weights_init": model.weights_,
            "means_init": model.means_,
            "precisions_init": model.precisions_,
        }
        optimum = _fitted(x, tol=1e-11, accelerate=True, **start)
    order = np.argsort(model.means_[:, 0])
    print(f"{x.shape[0]:,} rows x 2, K=3: {np.median(seconds):.1f} s a pass (median)")
    print(
        f"converged: {model.converged_}, in {model.n_passes_} passes and {wall:.1f} s"
    )
    gap = optimum.lower_bound_ - model.lower_bound_
    print(f"left to gain: {gap:.1e} nats a row, predicted {model.remaining_gain_:.1e}")
    print(f"peak memory on top of the process with its libraries: {peak:.0f} MB")
    print(f"means found {model.means_[order].round(4).tolist()}")
    print(f"means drawn {MEANS[np.argsort(MEANS[:, 0])].tolist()}")


def _fitted(
    x: da.Array, seconds: list[float] | None = None, **parameters: Any
) -> GaussianMixture:
    """A fit, and the seconds of its passes."""

    def observe(progress: Progress) -> None:
        if seconds is not None:
            seconds.append(progress.seconds)
        print(f"pass {progress.n_pass}: {progress.seconds:.1f} s", flush=True)

    model = GaussianMixture(3, random_state=0, **parameters)
    return model.fit(x, sample_weight=None, callback=observe)


if __name__ == "__main__":
    main()
