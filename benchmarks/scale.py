"""One fit at scale: 1,000,000,000 rows of 2 features from lazily generated blocks."""

from __future__ import annotations

import argparse
import warnings

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
    model = GaussianMixture(3, max_iter=10, tol=0, random_state=0)
    seconds: list[float] = []

    def observe(progress: Progress) -> None:
        seconds.append(progress.seconds)
        print(f"pass {progress.n_pass}: {progress.seconds:.1f} s", flush=True)

    print(environment())
    model.fit(x[: 2 * options.block_rows])  # compiles, outside the clock
    with dask.config.set(scheduler="threads", num_workers=N_CORES):
        peak = peak_mb(lambda: model.fit(x, sample_weight=None, callback=observe))
    order = np.argsort(model.means_[:, 0])
    print(f"{x.shape[0]:,} rows x 2, K=3: {np.median(seconds):.1f} s a pass (median)")
    print(f"peak memory on top of the process with its libraries: {peak:.0f} MB")
    print(f"means found {model.means_[order].round(4).tolist()}")
    print(f"means drawn {MEANS[np.argsort(MEANS[:, 0])].tolist()}")


if __name__ == "__main__":
    main()
