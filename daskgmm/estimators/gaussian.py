"""The scikit-learn estimator: it validates, calls down and sets attributes."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from numbers import Integral
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn import mixture as sklearn_mixture
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.columns import as_table
from daskgmm.data.gaps import Nan
from daskgmm.data.opening import place_of
from daskgmm.data.source import Source
from daskgmm.em.acceleration import Accelerate, InitSize, likely_passes
from daskgmm.em.checkpoint import Checkpoint, describe, parse_interval
from daskgmm.em.fit import Outcome, Settings, sampled_of, train
from daskgmm.em.initialization import Start
from daskgmm.em.plain import Stopping
from daskgmm.em.precision import Arithmetic
from daskgmm.em.progress import (
    Callback,
    Progress,
    Reporter,
    as_columns,
    from_columns,
)
from daskgmm.em.state import Run, Status
from daskgmm.errors import ModelFileError, SkippedRowsWarning
from daskgmm.estimators.base import PARAMETERS, MixtureBase
from daskgmm.estimators.random_states import random_state_of
from daskgmm.estimators.start_parameters import given, given_weights
from daskgmm.execution.threads import single_threaded_blas
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.storage import models
from daskgmm.storage.urls import check_apart
from daskgmm.storage.zarr_store import Missing

_FITTED = (
    *PARAMETERS,
    "precisions_",
    "converged_",
    "n_iter_",
    "lower_bound_",
    "lower_bounds_",
    "n_features_in_",
)
_FITTED_OURS = (
    "n_passes_",
    "n_rows_skipped_",
    "remaining_gain_",
    "history_",
    "arithmetic_",
)
_OURS = ("accelerate", "init_size", "missing_chunks", "nan", "arithmetic")


class GaussianMixture(MixtureBase):
    """Gaussian mixture for data of any size: scikit-learn's, on Dask.

    The parameters, attributes and numbers are those of
    :class:`sklearn.mixture.GaussianMixture`. Each iteration of
    expectation-maximisation reads the data once, block by block, and holds no array
    with a row for each sample; all `n_init` restarts train in the same passes.

    Parameters
    ----------
    n_components : int, default=1
        Number of components, K.
    covariance_type : {'full', 'tied', 'diag', 'spherical'}, default='full'
        Shape of the covariances: a matrix for each component, one matrix for all, a
        diagonal for each, or one variance for each.
    tol : float, default=1e-3
        Training ends when the mean log likelihood of a row gains less than this.
    reg_covar : float, default=1e-6
        Added to the diagonal of each covariance.
    max_iter : int, default=100
        Most EM iterations of a run. With 0, the starting parameters are kept.
    n_init : int, default=1
        Number of restarts; the best one is kept, and of those that tie (to 1e-10,
        relative) the earliest.
    init_params : {'kmeans', 'k-means++', 'random', 'random_from_data'}, \
default='kmeans'
        How starting parameters are found.
    weights_init : array-like of shape (K,), default=None
        Starting weights.
    means_init : array-like of shape (K, d), default=None
        Starting means.
    precisions_init : array-like, default=None
        Starting precisions: (K, d, d), (d, d), (K, d) or (K,) by `covariance_type`.
    random_state : int, RandomState instance or None, default=None
        Seed for the starts, and for `sample`.
    warm_start : bool, default=False
        Whether another `fit` goes on from where the last one ended.
    verbose : int, default=0
        1 prints iterations, 2 also the time and the change of the bound.
    verbose_interval : int, default=10
        Iterations between two prints.
    init_size : 'auto' or int, default='auto'
        Starts are found from this many rows, drawn uniformly: from all rows if there
        are no more. The draw depends on the number of rows and `random_state`, not on
        how the data are chunked. 'auto' draws 100,000, and where EM is accelerated 40
        for each free parameter of the mixture, if that is more, or as many as
        `daskgmm.sample-memory` of Dask's configuration holds, if that is fewer.
    accelerate : 'auto' or bool, default='auto'
        Whether EM goes on on the rows that were drawn, before the first pass and
        between two passes, so that far fewer passes lead to the same place. Its fixed
        points are those of EM on all rows; `tol` ends it likewise. With 'auto' it does
        if there are 20 rows or more for each of those that are drawn, and the start is
        not given completely; without more rows than are drawn, it never does. Restarts
        begin on the rows that were drawn, and the best three there go on.
    missing_chunks : {'error', 'fill'}, default='error'
        What a chunk that is not in its Zarr store is: an error, or, as for Zarr, full
        of the array's fill value.
    nan : {'error', 'skip'}, default='error'
        What is done about rows with NaN, null or masked numbers: an error names the
        first one; or they are left out of a fit, of `score`, `aic` and `bic`, and get
        -1 as their label, and NaN as all else. Rows of weight 0 may hold anything.
    arithmetic : {'auto', 'double'}, default='auto'
        With 'auto', many rows of float32 are computed with in float32, in about half
        the time, where an estimate of all roundings says that log densities stay within
        1e-5 of themselves, or of 1; sums over more than a few hundred rows are float64.
        A fit whose `tol` is below what that can tell ends in float64.

    Attributes
    ----------
    weights_ : ndarray of shape (K,)
    means_ : ndarray of shape (K, d)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        (K, d, d), (d, d), (K, d) or (K,) by `covariance_type`.
    converged_ : bool
        Whether the best run gained less than `tol` in its last iteration.
    n_iter_ : int
        Iterations of the best run.
    lower_bound_ : float
        Mean log likelihood of a row under the parameters before the last M-step.
    lower_bounds_ : list of float
        The same after each iteration.
    n_passes_ : int
        Passes of EM over the data, for all runs together. Passes in which covariances
        close to singular are looked at once more are not counted.
    remaining_gain_ : float
        How much more the mean log likelihood of a row would gain, from `lower_bound_`
        on, as the rows that were drawn predict it; NaN where EM was not accelerated,
        or nothing predicts it. It is no bound: with hundreds of drawn rows for each
        parameter the truth was 1 to 4 times as much, with 40 a fifth of it to 30 times.
    n_rows_skipped_ : int
        Rows that were left out of the fit, as they have NaN.
    history_ : dict of ndarrays, each of shape (m,)
        For each pass, and each run that took part in it: `n_pass`, from 1; `run`, from
        0; `bound`, and its `change`; and of the pass, `seconds`, `n_rows`, and
        `n_bytes` that were read, as they are in memory. As `lower_bounds_`, the bound
        of a run that a pass left where it was is repeated. See `daskgmm.history`.
    arithmetic_ : {'single', 'double'}
        The precision of the best run's last pass.
    n_features_in_ : int
        Number of features, d.
    feature_names_in_ : ndarray of shape (d,)
        Names of the features, where X has columns, variables or labels that are all
        strings.

    Notes
    -----
    Wherever rows are given as `X`, answers come back in their kind:

    - array-like, memory map or pandas DataFrame: NumPy arrays, and the work is done on
      this process's threads;
    - Dask array, `zarr.Array`, or the path or URL of a Zarr array or Parquet files:
      lazy Dask arrays chunked like X, and the work is done by Dask's scheduler, as for
      all that is lazy;
    - Dask DataFrame: lazy Series, or a DataFrame with columns 0, …, K - 1, with X's
      index and divisions;
    - xarray Dataset, whose variables are the features; DataArray of two dimensions,
      samples and features; or either by way of `from_xarray`, which says where the
      features are: DataArrays with the dimensions and coordinates of the samples, and
      "component" for responsibilities, lazy if X is on Dask.

    Columns must be numbers, and the model knows their names, as in scikit-learn.
    Nullable and Arrow's dtypes are taken where there is no null. Sample weights may be
    of any of these kinds; labelled ones are laid beside an xarray's samples by name,
    all others by place.

    float32 stays float32 in attributes and results, but for attributes that float32
    cannot hold, as a covariance is too close to singular. For the arithmetic see the
    parameter of that name.

    Examples
    --------
    >>> import dask.array as da
    >>> from daskgmm import GaussianMixture
    >>> x = da.random.RandomState(0).normal(size=(10_000, 2), chunks=(1_000, 2))
    >>> gm = GaussianMixture(2, random_state=0).fit(da.concatenate([x, x + 10]))
    >>> gm.means_.round(0) + 0.0
    array([[10., 10.],
           [ 0.,  0.]])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn_mixture.GaussianMixture._parameter_constraints,
        "accelerate": [StrOptions({"auto"}), "boolean"],
        "init_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "missing_chunks": [StrOptions({"error", "fill"})],
        "nan": [StrOptions({"error", "skip"})],
        "arithmetic": [StrOptions({"auto", "double"})],
    }

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: ArrayLike | None = None,
        means_init: ArrayLike | None = None,
        precisions_init: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        init_size: InitSize = "auto",
        accelerate: Accelerate = "auto",
        missing_chunks: Missing = "error",
        nan: Nan = "error",
        arithmetic: Arithmetic = "auto",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.init_size = init_size
        self.accelerate = accelerate
        self.missing_chunks = missing_chunks
        self.nan = nan
        self.arithmetic = arithmetic

    @classmethod
    @functools.cache
    def _get_param_names(cls) -> list[str]:
        """Found once: to read the signature takes as long as a pass over few rows."""
        names: list[str] = super()._get_param_names()
        return names

    def fit(
        self,
        X: Any,
        y: None = None,
        sample_weight: Any = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_interval: int | str = "1 minute",
    ) -> Self:
        """Fit the mixture.

        Parameters
        ----------
        X : rows of shape (n, d)
            See the class's notes.
        y : ignored
        sample_weight : array-like of shape (n,), default=None
            Of X's kind. A row of weight 2 counts as two rows, one of weight 0 is
            absent. A constant factor changes nothing.
        callback : callable, default=None
            Called with a `Progress` after each pass over the data: the number of the
            pass, the best bound and its change, rows and seconds. If it raises, the fit
            ends with that error, and the estimator is as it was before.
        checkpoint : str or path, default=None
            Where to keep the state of all runs: a folder, or any URL that fsspec
            knows. If the state of the same fit to the same data is there, the fit goes
            on from it, and ends with the same bits as one that was never broken off.
        checkpoint_interval : int or str, default='1 minute'
            How often: after so many passes over the data, or after a time such as
            '30s'. The starts and the end are kept in any case.

            A fit with a larger `max_iter`, a lower `tol`, more restarts or
            acceleration goes on from there too; the first two end with the same bits
            as one that had them from the start.

        Returns
        -------
        GaussianMixture
            The estimator itself.

        Raises
        ------
        CheckpointError
            If the checkpoint is of other data, parameters or another version.
        DataError
            If the data cannot be used; the message names the block and row.
        IllDefinedCovarianceError
            If a covariance is not positive definite, in all runs; the message names a
            `reg_covar` that would do.
        StoreError
            If there is no Zarr array at a path or URL.
        """
        self._validate_params()
        self._check_array_api()
        if callback is not None and not callable(callback):
            raise TypeError(
                f"callback must be callable with a Progress, got {callback!r}."
            )
        interval = parse_interval(checkpoint_interval)
        read = {"X": place_of(X), "sample_weight": place_of(sample_weight)}
        check_apart({"checkpoint": checkpoint}, read)
        with self._restored_on_error(), single_threaded_blas():
            source = self._taken(X, sample_weight, reset=True).source()
            settings = self._settings(source.n_features)
            reporter = Reporter(self.verbose, self.verbose_interval)

            def observe(progress: Progress) -> None:
                reporter.report(progress)
                if callback is not None:
                    callback(progress)

            warm = self._warm_run(source.n_features)
            keeper = (
                None
                if checkpoint is None
                else Checkpoint(
                    checkpoint,
                    interval,
                    self._what_is_fitted(source, warm),
                )
            )
            with random_state_of(self.random_state) as random_state:
                outcome = train(source, settings, random_state, warm, observe, keeper)
            self._set_attributes(outcome, source.dtype)
        if not self.converged_ and self.max_iter > 0:
            goes_on = (
                ""
                if checkpoint is None
                else f" With a larger max_iter, fit goes on from {checkpoint}."
            )
            warnings.warn(
                "Best performing initialization did not converge. "
                "Try different init parameters, or increase max_iter, "
                "tol, or check for degenerate data." + goes_on,
                ConvergenceWarning,
                stacklevel=2,
            )
        if self.n_rows_skipped_:
            warnings.warn(
                f"{self.n_rows_skipped_} rows with NaN were left out of the fit.",
                SkippedRowsWarning,
                stacklevel=2,
            )
        return self

    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """Fit the mixture and return the most probable component of each row.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        array of int64, shape (n,)
        """
        return self.fit(X, y, sample_weight).predict(X)

    def _check_array_api(self) -> None:
        """Refuse what scikit-learn refuses where array API dispatch is enabled."""
        allowed = ["random", "random_from_data"]
        needs_k_means = self.n_components > 1 and self.init_params not in allowed
        if get_config()["array_api_dispatch"] and needs_k_means:
            raise NotImplementedError(
                f"Allowed `init_params` are {allowed} if 'array_api_dispatch' is "
                f"enabled. You passed init_params={self.init_params!r}, which are not "
                "implemented to work with 'array_api_dispatch' enabled. Please disable "
                f"'array_api_dispatch' to use init_params={self.init_params!r}."
            )

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """Leave the estimator as it was if anything, an interrupt too, breaks a fit."""
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _settings(self, n_features: int) -> Settings:
        shape = SHAPES[self.covariance_type]
        k = self.n_components
        precisions = given(
            self.precisions_init,
            f"{shape.name} precision",
            shape.stored(k, n_features),
        )
        if precisions is not None:
            shape.factors_of_precisions(precisions)
        start = Start(
            n_components=k,
            shape=shape,
            method=self.init_params,
            weights=given_weights(self.weights_init, k),
            means=given(self.means_init, "means", (k, n_features)),
            precisions=precisions,
        )
        stopping = Stopping(self.tol, self.max_iter)
        return Settings(
            start,
            stopping,
            self.reg_covar,
            self.n_init,
            self.init_size,
            self.accelerate,
            self.arithmetic,
        )

    def _likely_passes(self, n_features: int, n_rows: int) -> int | None:
        """Passes that a fit to so many rows likely takes, None if that is not known."""
        sampled = sampled_of(self._settings(n_features), n_features, n_rows)
        return likely_passes(sampled)

    def _what_is_fitted(
        self, source: Source, warm: Run[Mixture] | None
    ) -> dict[str, Any]:
        """What a checkpoint must agree in, by name."""
        # What the last two come to depends on the number of rows too.
        silent = ("verbose", "verbose_interval", "accelerate", "init_size")
        parameters = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in silent
        }
        kinds = {"number of features": source.n_features, "dtype": str(source.dtype)}
        if warm is not None:
            kinds["parameters to go on from"] = describe(
                np.concatenate([np.ravel(getattr(self, name)) for name in PARAMETERS])
            )
        return {**parameters, **kinds}

    def _warm_run(self, n_features: int) -> Run[Mixture] | None:
        if not (self.warm_start and hasattr(self, "converged_")):
            return None
        mixture = self._mixture()
        self._check_n_features(
            n_features,
            " With warm_start=True a fit goes on from the parameters of the last one: "
            "to begin anew, set it to False.",
        )
        return Run(mixture, previous=self.lower_bound_)

    def _set_attributes(self, outcome: Outcome, dtype: np.dtype[Any]) -> None:
        mixture, run = outcome.mixture, outcome.run
        if dtype == np.float32 and not mixture.fits_in_single:
            dtype = np.dtype(np.float64)
        precisions = mixture.shape.precisions(mixture.factors)
        found = mixture.weights, mixture.means, mixture.covariances, mixture.factors
        for name, numbers in zip(
            (*PARAMETERS, "precisions_"), (*found, precisions), strict=True
        ):
            setattr(self, name, np.require(numbers, dtype, ["C", "W"]))
        self.converged_ = run.status is Status.CONVERGED
        self.n_iter_ = run.n_iter
        self.lower_bound_ = run.bound
        self.lower_bounds_ = list(run.bounds)
        self.n_passes_ = outcome.n_passes
        self.n_rows_skipped_ = outcome.n_skipped
        self.remaining_gain_ = outcome.remaining_gain
        self.history_ = as_columns(outcome.history)
        self.arithmetic_ = outcome.arithmetic

    def to_sklearn(self) -> sklearn_mixture.GaussianMixture:
        """The same model as scikit-learn's estimator, fitted if this one is."""
        parameters = self.get_params(deep=False)
        for name in _OURS:
            del parameters[name]
        theirs = sklearn_mixture.GaussianMixture(**parameters)
        _copy_fitted(self, theirs)
        return theirs

    @classmethod
    def from_sklearn(cls, model: sklearn_mixture.GaussianMixture) -> Self:
        """A scikit-learn model as this estimator, fitted if that one is."""
        ours = cls(**model.get_params(deep=False))
        _copy_fitted(model, ours)
        return ours

    def save(self, url: str, *, overwrite: bool = False) -> None:
        """Write the fitted model to a Zarr group.

        Parameters
        ----------
        url : str or path
            A folder, or any URL that Zarr can write to.
        overwrite : bool, default=False
            Whether a model that is there already is replaced.

        Raises
        ------
        PlaceError
            If something is there and `overwrite` is false.
        """
        check_is_fitted(self)
        fitted = {n: getattr(self, n) for n in _fitted_names(self)}
        if "history_" in fitted:
            fitted["history_"] = from_columns(fitted["history_"])
        models.save(
            url,
            models.Model(type(self).__name__, self.get_params(deep=False), fitted),
            overwrite=overwrite,
        )


def load(url: str) -> GaussianMixture:
    """Read a model that `GaussianMixture.save` wrote.

    Parameters
    ----------
    url : str or path

    Returns
    -------
    GaussianMixture
        With the same parameters and, bit for bit, the same fitted attributes.

    Raises
    ------
    ModelFileError
        If there is no model, or it is damaged, or of a newer version.

    Examples
    --------
    >>> from daskgmm import GaussianMixture, load
    >>> gm = GaussianMixture(1).fit([[0.0], [1.0], [5.0]])
    >>> gm.save("model.zarr")
    >>> load("model.zarr").means_
    array([[2.]])
    """
    saved = models.load(url)
    if saved.kind != GaussianMixture.__name__:
        raise ModelFileError(f"{url} holds a {saved.kind}, not a GaussianMixture.")
    model = GaussianMixture(**saved.parameters)
    for name, value in saved.fitted.items():
        setattr(model, name, as_columns(value) if name == "history_" else value)
    return model


def history(model: GaussianMixture) -> Any:
    """What each pass of a fit found, as a table.

    Parameters
    ----------
    model : GaussianMixture
        Fitted.

    Returns
    -------
    pandas.DataFrame
        Of `history_`: a row for each pass and each run that took part in it.

    Raises
    ------
    MissingLibraryError
        If pandas is not installed.

    Examples
    --------
    >>> import daskgmm
    >>> gm = daskgmm.GaussianMixture(1).fit([[0.0], [1.0], [5.0]])
    >>> daskgmm.history(gm)[["n_pass", "run", "bound", "n_rows"]]
       n_pass  run     bound  n_rows
    0       1    0 -2.189161       3
    1       2    0 -2.189161       3
    """
    check_is_fitted(model)
    return as_table(getattr(model, "history_", as_columns(np.empty((0, 7)))))


def _fitted_names(model: BaseEstimator) -> list[str]:
    names = [*_FITTED, *_FITTED_OURS, "feature_names_in_"]
    return [name for name in names if hasattr(model, name)]


def _copy_fitted(source: BaseEstimator, target: BaseEstimator) -> None:
    for name in _fitted_names(source):
        setattr(target, name, copy(getattr(source, name)))
