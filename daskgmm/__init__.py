"""Gaussian mixture models for data larger than memory, on Dask."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from daskgmm import config as config  # its defaults are part of Dask's configuration
from daskgmm.errors import (
    CheckpointError,
    ClusterError,
    DaskGMMError,
    DataError,
    IllDefinedCovarianceError,
    InterruptedFit,
    MissingLibraryError,
    ModelFileError,
    NewerFormatError,
    ParameterError,
    PlaceError,
    SkippedRowsWarning,
    StoreError,
)

if TYPE_CHECKING:
    from daskgmm.data.inputs import from_xarray
    from daskgmm.data.opening import open_rows
    from daskgmm.display.show import progress
    from daskgmm.em.progress import Progress
    from daskgmm.em.search import SearchProgress
    from daskgmm.estimators.bayesian import BayesianGaussianMixture
    from daskgmm.estimators.gaussian import GaussianMixture
    from daskgmm.estimators.models import history, load
    from daskgmm.estimators.outliers import MixtureOutlierDetector
    from daskgmm.estimators.search import MixtureSearch

__version__ = version("daskgmm")

__all__ = [
    "BayesianGaussianMixture",
    "CheckpointError",
    "ClusterError",
    "DaskGMMError",
    "DataError",
    "GaussianMixture",
    "IllDefinedCovarianceError",
    "InterruptedFit",
    "MissingLibraryError",
    "MixtureOutlierDetector",
    "MixtureSearch",
    "ModelFileError",
    "NewerFormatError",
    "ParameterError",
    "PlaceError",
    "Progress",
    "SearchProgress",
    "SkippedRowsWarning",
    "StoreError",
    "from_xarray",
    "history",
    "load",
    "open_rows",
    "progress",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for: a worker needs no scikit-learn, which takes 70 MB."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "from_xarray":
        from daskgmm.data.inputs import from_xarray

        return from_xarray
    if name == "open_rows":
        from daskgmm.data.opening import open_rows

        return open_rows
    if name == "progress":
        from daskgmm.display.show import progress

        return progress
    if name == "Progress":
        from daskgmm.em.progress import Progress

        return Progress
    if name == "SearchProgress":
        from daskgmm.em.search import SearchProgress

        return SearchProgress
    if name == "MixtureOutlierDetector":
        from daskgmm.estimators.outliers import MixtureOutlierDetector

        return MixtureOutlierDetector
    if name == "MixtureSearch":
        from daskgmm.estimators.search import MixtureSearch

        return MixtureSearch
    from daskgmm.estimators import models

    return getattr(models, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
