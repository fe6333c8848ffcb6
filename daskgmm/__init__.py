"""Gaussian mixture models for data larger than memory, on Dask."""

from importlib.metadata import version

from daskgmm.errors import (
    DaskGMMError,
    DataError,
    IllDefinedCovarianceError,
    ModelFileError,
    StoreError,
)
from daskgmm.estimators import GaussianMixture, load
from daskgmm.kinds import from_xarray
from daskgmm.opening import open_rows

__version__ = version("daskgmm")

__all__ = [
    "DaskGMMError",
    "DataError",
    "GaussianMixture",
    "IllDefinedCovarianceError",
    "ModelFileError",
    "StoreError",
    "from_xarray",
    "load",
    "open_rows",
]
