"""The package's exceptions."""

from __future__ import annotations


class DaskGMMError(Exception):
    """Base class of the errors that are this package's own."""


class DataError(DaskGMMError, ValueError):
    """The data cannot be used as they are: the message names the place."""


class IllDefinedCovarianceError(DaskGMMError, ValueError):
    """A covariance is not positive definite: the message names the component."""


class ModelFileError(DaskGMMError, ValueError):
    """A saved model is missing, damaged or of a version not known here."""


class StoreError(DaskGMMError, OSError):
    """A store of data is missing, or is no Zarr array."""
