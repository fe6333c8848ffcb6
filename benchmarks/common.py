"""What the benchmarks share: cases, data, clocks, and the machine's own limits."""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter

import numpy as np
import zarr
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from daskgmm import GaussianMixture
from daskgmm.em.progress import Progress

N_CORES = 2


@dataclass(frozen=True)
class Case:
    """One shape of problem."""

    covariance_type: str
    n_features: int
    n_components: int
    n_rows: int

    @property
    def name(self) -> str:
        """As it stands in the table."""
        return f"{self.covariance_type} d={self.n_features} K={self.n_components}"

    @property
    def operations(self) -> int:
        """Additions and multiplications of a row in one iteration, at the least.

        An exponential counts as 40. For the products see `daskgmm/kernel/products.py`.
        """
        d, k = self.n_features, self.n_components
        if self.covariance_type == "full":
            # Two triangular products; e twice, its squares, √r e, and its sum.
            return k * (2 * d * (d + 1) + 7 * d + 40)
        if self.covariance_type == "tied":
            # Whitening and v vᵀ; distances, Σ r y, v, and r rᵀ.
            return 2 * d * (d + 1) + k * (3 * d + 2 * d + 2 * d + k + 1 + 40)
        if self.covariance_type == "spherical":
            return k * (2 * d + 2 * d + 40)  # two products of matrices
        return k * (4 * d + 5 * d + 40)

    @property
    def bytes(self) -> int:
        """Bytes of a row."""
        return 8 * self.n_features


@dataclass
class Row:
    """One line of the table.

    `seconds` are daskgmm's, `peers` those of others for the same work, `ratio` is the
    best peer's over daskgmm's, or what `target` is about if that is something else.
    """

    section: str
    case: str
    seconds: float
    peers: dict[str, float] = field(default_factory=dict)
    ratio: float | None = None
    target: str = ""
    floor: float | None = None
    peak_mb: float | None = None
    peer_peak_mb: float | None = None
    size: float | None = None
    passes: float | None = None
    peer_passes: float | None = None
    gap: float | None = None
    peer_gap: float | None = None

    def show(self) -> None:
        """Print it."""
        peers = ", ".join(f"{name} {_time(s)}" for name, s in self.peers.items())
        share = f"{self.floor / self.seconds:6.0%}" if self.floor else " " * 6
        ratio = f"{self.ratio:7.2f}" if self.ratio else " " * 7
        memory = f"{self.peak_mb:6.0f}" if self.peak_mb is not None else " " * 6
        other = f" /{self.peer_peak_mb:6.0f}" if self.peer_peak_mb is not None else ""
        print(
            f"{self.section:12}{self.case:42}{_time(self.seconds):>10}{ratio}"
            f" {self.target:8}{share}{memory}{other:9} {peers}{self._ends()}",
            flush=True,
        )

    def _ends(self) -> str:
        """Passes, and what is left to gain to the optimum; both of the peer too."""
        if self.passes is None or self.gap is None:
            return ""
        ours = f"; {self.passes:.0f} passes, {self.gap:.1e} left"
        if self.peer_passes is None or self.peer_gap is None:
            return ours
        return f"{ours} (peer {self.peer_passes:.0f}, {self.peer_gap:.1e})"


HEADER = (
    f"{'section':12}{'case':42}{'daskgmm':>10}{'ratio':>7} {'target':8}"
    f"{'limit':>6}{'MB':>6}{'/ peer':9} peers"
)


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def make_rows(case: Case, apart: float = 2.0) -> np.ndarray:
    """Rows of K groups, shuffled; where their means lie, in standard deviations."""
    rng = np.random.default_rng(0)
    d, k = case.n_features, case.n_components
    groups = [
        rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / np.sqrt(d))
        + apart * rng.standard_normal(d)
        for n in np.full(k, -(-case.n_rows // k))
    ]
    return rng.permutation(np.vstack(groups))[: case.n_rows]


def write_zarr(folder: str, x: np.ndarray, chunk_rows: int, **layout) -> zarr.Array:
    """Rows as a Zarr array in chunks of so many."""
    array = zarr.create_array(
        folder, shape=x.shape, chunks=(chunk_rows, x.shape[1]), dtype=x.dtype, **layout
    )
    array[:] = x
    return array


def start(case: Case, first_rows: np.ndarray) -> dict[str, object]:
    """Parameters with a complete start, the same for all who fit."""
    d, k = case.n_features, case.n_components
    precisions = {
        "full": np.stack([np.eye(d)] * k),
        "tied": np.eye(d),
        "diag": np.ones((k, d)),
        "spherical": np.ones(k),
    }
    return {
        "n_components": k,
        "covariance_type": case.covariance_type,
        "weights_init": np.full(k, 1 / k),
        "means_init": first_rows[:k].copy(),
        "precisions_init": precisions[case.covariance_type],
        "tol": 0,
    }


def best_of(rounds: int, work: Callable[[], object]) -> float:
    """Least seconds of several rounds."""
    return min(_times(rounds, work))


def median_of(rounds: int, work: Callable[[], object]) -> float:
    """Median seconds of several rounds."""
    return float(np.median(_times(rounds, work)))


def _times(rounds: int, work: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(rounds):
        began = perf_counter()
        work()
        times.append(perf_counter() - began)
    return times


def per_iteration(
    fit: Callable[[int], object], few: int, many: int, rounds: int
) -> float:
    """Seconds of an iteration: a fit of many less a fit of few.

    So validation, starts and labels do not count. The best of each end is taken: were
    their difference taken round by round, a slow short fit would look like a fast
    iteration.
    """
    short = best_of(rounds, lambda: fit(few))
    return (best_of(rounds, lambda: fit(many)) - short) / (many - few)


def fit_of(estimator: type, x: object, parameters: dict) -> Callable[[int], object]:
    """A fit of so many iterations."""
    return lambda n: estimator(max_iter=n, **parameters).fit(x)


def ours_per_iteration(x: object, parameters: dict, rounds: int = 3) -> float:
    """Seconds of an iteration of daskgmm."""
    return per_iteration(fit_of(GaussianMixture, x, parameters), 2, 12, rounds)


def median_pass(
    x: object, parameters: dict, n_passes: int = 15, weights: object = None
) -> float:
    """Median seconds of daskgmm's passes, where fits vary more than passes do."""
    seconds: list[float] = []

    def observe(progress: Progress) -> None:
        seconds.append(progress.seconds)

    model = GaussianMixture(max_iter=n_passes, **parameters)
    model.fit(x, sample_weight=weights, callback=observe)
    return float(np.median(seconds))


def peak_mb(work: Callable[[], object]) -> float | None:
    """Most memory that work took on top of what there was, in MB; Linux only."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None

    def read(name: str) -> int:
        [line] = [s for s in status.read_text().splitlines() if s.startswith(name)]
        return int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
    before = read("VmRSS")
    work()
    return (read("VmHWM") - before) / 1e3


def peak_of_fit(estimator: type, case: Case) -> float | None:
    """Most memory that a fit takes on top of the rows, MB, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_of_fit, estimator, case).result()


def _peak_of_fit(estimator: type, case: Case) -> float | None:
    warnings.simplefilter("ignore", ConvergenceWarning)
    x = make_rows(case)
    fit = fit_of(estimator, x, start(case, x))
    fit_of(estimator, x[:1000], start(case, x))(1)  # loads and compiles
    return peak_mb(lambda: fit(2))


def _on_all_cores(work: Callable[[], None]) -> float:
    """Seconds that each core takes for the work while all are at it."""
    gate = threading.Barrier(N_CORES)

    def one(_: int) -> float:
        work()
        gate.wait()
        return best_of(5, work)

    with ThreadPoolExecutor(N_CORES) as pool:
        return max(pool.map(one, range(N_CORES)))


def measure_machine() -> dict[str, float]:
    """Rate of matrix products (operations a second) and copies (bytes a second)."""
    rng = np.random.default_rng(0)
    a, out = rng.normal(size=(2, 768, 768)), threading.local()

    def multiply() -> None:
        out.product = np.matmul(a[0], a[1])

    def copy() -> None:
        if not hasattr(out, "source"):
            out.source, out.copy = np.ones(20_000_000), np.ones(20_000_000)
        np.copyto(out.copy, out.source)

    with threadpool_limits(1):
        products = N_CORES * 2 * 768**3 / _on_all_cores(multiply)
    # What is copied is read and written.
    copies = N_CORES * 2 * 160e6 / _on_all_cores(copy)
    return {"operations_per_second": products, "bytes_per_second": copies}


def floor_of(case: Case, machine: dict[str, float]) -> float:
    """Seconds that an iteration cannot go below."""
    return case.n_rows * max(
        case.operations / machine["operations_per_second"],
        case.bytes / machine["bytes_per_second"],
    )


def environment() -> dict[str, object]:
    """Date and versions."""
    names = ("daskgmm", "scikit-learn", "numpy", "scipy", "numba", "dask", "zarr")
    return {
        "date": str(date.today()),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }
