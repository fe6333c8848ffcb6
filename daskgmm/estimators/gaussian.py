"""The scikit-learn estimator: it validates, calls down and sets attributes."""

from __future__ import annotations

from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from sklearn import mixture as sklearn_mixture
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.data.gaps import Nan
from daskgmm.em.acceleration import Accelerate, InitSize
from daskgmm.em.fit import Outcome, Settings
from daskgmm.em.initialization import Start
from daskgmm.em.plain import Stopping
from daskgmm.em.precision import Arithmetic
from daskgmm.estimators.start_parameters import given, given_weights
from daskgmm.estimators.trained import FITTED, FITTED_OURS, TrainedMixture
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.storage.zarr_store import Missing

_OURS = ("accelerate", "init_size", "missing_chunks", "nan", "arithmetic")


class GaussianMixture(TrainedMixture):
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
        Whether another `fit` continues where the last one ended.
    verbose : int, default=0
        1 prints each pass that takes more than a second, with its bound, some of the
        others, and how runs end; 2 also times and changes of the bound.
    verbose_interval : int, default=10
        Iterations from print to print, where passes take less than a second.
    init_size : 'auto' or int, default='auto'
        Starts are found from this many rows, drawn uniformly: from all rows if there
        are no more. The draw depends on the number of rows and `random_state`, not on
        how the data are chunked. 'auto' draws 100,000, and where EM is accelerated 40
        for each free parameter of the mixture, if that is more, or as many as
        `daskgmm.sample-memory` of Dask's configuration holds, if that is fewer.
    accelerate : 'auto' or bool, default='auto'
        Whether EM also runs on the rows that were drawn, before the first pass and
        between two passes, so that far fewer passes lead to the same place. Its fixed
        points are those of EM on all rows; `tol` ends it likewise. With 'auto' it does
        if there are 20 rows or more for each of those that are drawn, and the start is
        not given completely; without more rows than are drawn, it never does. Restarts
        begin on the rows that were drawn; the best three of them see all rows.
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
        Mixing proportions, which sum to one.
    means_ : ndarray of shape (K, d)
        Mean of each component.
    covariances_, precisions_, precisions_cholesky_ : ndarray
        Covariances, their inverses, and the upper triangular factors U of these, with
        U Uᵀ the inverse: (K, d, d), (d, d), (K, d) or (K,) by `covariance_type`.
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
    init_size_ : int
        What `init_size` came to: rows that are drawn, if there are more.
    accelerated_ : bool
        Whether EM also ran on the rows that were drawn: see `accelerate`.
    history_ : dict of ndarrays, each of shape (m,)
        For each pass, and each run that took part in it: `n_pass`, from 1; `run`, from
        0; `bound`, and its `change`; and of the pass, `seconds`, `n_rows`, and
        `n_bytes` that were read, as they are in memory. As `lower_bounds_`, the bound
        of a run that a pass left where it was is repeated. See `daskgmm.history`.
    arithmetic_ : {'single', 'double'}
        The precision of the best run's last pass.
    cluster_sizes_ : ndarray of shape (K,)
        Rows of each component, by weight: sums of responsibilities. As `lower_bound_`,
        this and the next two are of the last pass: under the parameters before the last
        M-step.
    entropy_ : float
        Entropy of the responsibilities of all rows, in nats: see `entropy`. NaN, and
        the next one too, where covariances are so close to singular that the sums of a
        pass do not tell.
    icl_ : float
        Integrated completed likelihood: see `icl`.
    n_features_in_ : int
        Number of features, d.
    feature_names_in_ : ndarray of shape (d,)
        Names of the features, where X has columns, variables or labels that are all
        strings.

    Notes
    -----
    Answers are of the kind that rows are given in as `X`:

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

    _fitted: ClassVar[tuple[str, ...]] = (*FITTED, *FITTED_OURS, "icl_")
    _of_sklearn: ClassVar[type[BaseEstimator]] = sklearn_mixture.GaussianMixture
    _ours: ClassVar[tuple[str, ...]] = _OURS
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

    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike's information criterion: the lower, the better.

        Parameters
        ----------
        X : rows of shape (n, d)
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        float
        """
        found, _ = self._score(X, sample_weight)
        return found.aic(self._n_parameters())

    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion: the lower, the better.

        Parameters
        ----------
        X : rows of shape (n, d)
        sample_weight : array-like of shape (n,), default=None
            The number of rows is their sum.

        Returns
        -------
        float
        """
        found, _ = self._score(X, sample_weight)
        return found.bic(self._n_parameters())

    def icl(self, X: Any, sample_weight: Any = None) -> float:
        """Integrated completed likelihood: the lower, the better.

        BIC and twice the entropy of the responsibilities (McLachlan and Peel, Finite
        Mixture Models, 6.10.4): it asks for components apart from each other.

        Parameters
        ----------
        X : rows of shape (n, d)
        sample_weight : array-like of shape (n,), default=None
            The number of rows is their sum.

        Returns
        -------
        float
        """
        return self._fit_to(X, sample_weight).icl

    def _set_estimated(self, outcome: Outcome, dtype: np.dtype[Any]) -> Mixture:
        fit = outcome.run.fit
        self.icl_ = np.nan if fit is None else fit.icl
        return outcome.mixture

    def _n_parameters(self) -> int:
        """Free parameters of the model."""
        return self._mixture().n_parameters

    def _estimated(self) -> Mixture:
        return self._mixture()

    def _made_of(self, mixture: Mixture, names: Any) -> GaussianMixture:
        return made_of(mixture, names, self)


def made_of(mixture: Mixture, names: Any, like: TrainedMixture) -> GaussianMixture:
    """A fitted model of a mixture, which answers questions as another one does."""
    model = GaussianMixture(
        mixture.n_components,
        covariance_type=mixture.shape.name,
        random_state=like.random_state,
        missing_chunks=like.missing_chunks,
        nan=like.nan,
    )
    model._set_mixture(mixture, np.asarray(like.means_).dtype)
    model.n_features_in_ = mixture.n_features
    if names is not None:
        model.feature_names_in_ = names
    return model
