"""scikit-learn's Bayesian mixture: it validates, calls down and sets attributes."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import mixture as sklearn_mixture
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

from daskgmm.data.gaps import Nan
from daskgmm.em.acceleration import InitSize
from daskgmm.em.fit import Outcome, Settings
from daskgmm.em.initialization import Start
from daskgmm.em.plain import Stopping
from daskgmm.errors import ParameterError
from daskgmm.estimators.gaussian import GaussianMixture, made_of
from daskgmm.estimators.start_parameters import given
from daskgmm.estimators.trained import FITTED, FITTED_OURS, TrainedMixture
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.variational import Priors, VariationalBayes
from daskgmm.storage.zarr_store import Missing

_OURS = ("init_size", "missing_chunks", "nan")
_POSTERIORS = (
    "weight_concentration_",
    "mean_precision_",
    "degrees_of_freedom_",
)
_PRIORS = (
    "weight_concentration_prior_",
    "mean_precision_prior_",
    "mean_prior_",
    "degrees_of_freedom_prior_",
    "covariance_prior_",
)


class BayesianGaussianMixture(TrainedMixture):
    """Variational Bayesian mixture for data of any size: scikit-learn's, on Dask.

    The parameters, attributes and numbers are those of
    :class:`sklearn.mixture.BayesianGaussianMixture`. Each iteration reads the data
    once, block by block, as of :class:`GaussianMixture`, whose notes say which rows are
    taken. Components that the data do not ask for lose their weight.

    Parameters
    ----------
    n_components : int, default=1
        Number of components, K, at the most.
    covariance_type : {'full', 'tied', 'diag', 'spherical'}, default='full'
        Shape of the covariances, as of `GaussianMixture`.
    tol : float, default=1e-3
        Training ends when the lower bound, of all rows together, gains less than this.
    reg_covar : float, default=1e-6
        Added to the diagonal of what rows say of each covariance.
    max_iter : int, default=100
        Most iterations of a run. With 0, the starting parameters are kept.
    n_init : int, default=1
        Number of restarts, which train in the same passes; the best one is kept.
    init_params : {'kmeans', 'k-means++', 'random', 'random_from_data'}, \
default='kmeans'
        How starting parameters are found.
    weight_concentration_prior_type : {'dirichlet_process', \
'dirichlet_distribution'}, default='dirichlet_process'
        What weights are drawn from.
    weight_concentration_prior : float, default=None
        The lower, the fewer components have weight; 1 / K by default.
    mean_precision_prior : float, default=None
        Rows that the prior mean counts as; 1 by default.
    mean_prior : array-like of shape (d,), default=None
        By default the mean of all rows.
    degrees_of_freedom_prior : float, default=None
        Of the precisions, above d - 1; d by default.
    covariance_prior : float or array-like, default=None
        Of one component: (d, d), (d, d), (d,) or a number by `covariance_type`. By
        default the covariance of all rows, or their variances, or the mean of these.
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
        Starts are found from this many rows, drawn uniformly: by default 100,000. What
        they say counts as if it were of all rows.
    missing_chunks : {'error', 'fill'}, default='error'
        As of `GaussianMixture`.
    nan : {'error', 'skip'}, default='error'
        As of `GaussianMixture`.

    Attributes
    ----------
    weights_ : ndarray of shape (K,)
        Expected mixing proportions.
    means_ : ndarray of shape (K, d)
        Expected mean of each component.
    covariances_, precisions_, precisions_cholesky_ : ndarray
        (K, d, d), (d, d), (K, d) or (K,) by `covariance_type`.
    weight_concentration_ : tuple of two ndarrays, or ndarray, each of shape (K,)
        Of a Dirichlet process both parameters; of a distribution the one.
    mean_precision_ : ndarray of shape (K,)
        How precise each mean is, in units of its component's precision.
    degrees_of_freedom_ : ndarray of shape (K,), or float if tied
        Of the Wishart distribution of each precision.
    weight_concentration_prior_, mean_precision_prior_, mean_prior_, \
degrees_of_freedom_prior_, covariance_prior_
        The priors, those that were not given included.
    converged_, n_iter_, n_passes_, n_rows_skipped_, history_, cluster_sizes_, \
entropy_ : optional
        As of `GaussianMixture`.
    lower_bound_ : float
        scikit-learn's lower bound of the evidence, less constants: of all rows.
    lower_bounds_ : list of float
        The same after each iteration.
    n_features_in_ : int
        Number of features, d.
    feature_names_in_ : ndarray of shape (d,)
        Their names, where all are strings.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import BayesianGaussianMixture
    >>> rows = np.array([[1, 2], [1, 4], [1, 0], [4, 2], [12, 4], [10, 7]])
    >>> bgm = BayesianGaussianMixture(n_components=2, random_state=42).fit(rows)
    >>> bgm.means_.round(1)
    array([[2.5, 2.3],
           [8.5, 4.5]])
    """

    _of_sklearn: ClassVar[type[BaseEstimator]] = sklearn_mixture.BayesianGaussianMixture
    _ours: ClassVar[tuple[str, ...]] = _OURS
    _fitted: ClassVar[tuple[str, ...]] = (
        *FITTED,
        *_POSTERIORS,
        *_PRIORS,
        *FITTED_OURS,
    )
    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **sklearn_mixture.BayesianGaussianMixture._parameter_constraints,
        "init_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "missing_chunks": [StrOptions({"error", "fill"})],
        "nan": [StrOptions({"error", "skip"})],
    }
    arithmetic: ClassVar = "double"

    def __init__(
        self,
        *,
        n_components: int = 1,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weight_concentration_prior_type: str = "dirichlet_process",
        weight_concentration_prior: float | None = None,
        mean_precision_prior: float | None = None,
        mean_prior: ArrayLike | None = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: ArrayLike | None = None,
        random_state: int | np.random.RandomState | None = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        init_size: InitSize = "auto",
        missing_chunks: Missing = "error",
        nan: Nan = "error",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.weight_concentration_prior = weight_concentration_prior
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.init_size = init_size
        self.missing_chunks = missing_chunks
        self.nan = nan

    def _settings(self, n_features: int) -> Settings:
        shape = SHAPES[self.covariance_type]
        start = Start(self.n_components, shape, self.init_params, None, None, None)
        return Settings(
            start,
            Stopping(self.tol, self.max_iter),
            self.reg_covar,
            self.n_init,
            self.init_size,
            False,
            "double",
            self._priors(n_features),
        )

    def _priors(self, d: int) -> Priors:
        """The priors as they are given, checked as in scikit-learn."""
        degrees = self.degrees_of_freedom_prior
        if degrees is not None and not degrees > d - 1.0:
            raise ParameterError(
                "The parameter 'degrees_of_freedom_prior' should be greater than "
                f"{d - 1}, but got {degrees:.3f}."
            )
        concentration, precision = (
            self.weight_concentration_prior,
            self.mean_precision_prior,
        )
        return Priors(
            self.weight_concentration_prior_type == "dirichlet_process",
            1.0 / self.n_components if concentration is None else concentration,
            1.0 if precision is None else precision,
            d if degrees is None else degrees,
            given(self.mean_prior, "means", (d,)),
            self._covariance_prior(d),
        )

    def _covariance_prior(self, d: int) -> NDArray[np.float64] | None:
        shape = SHAPES[self.covariance_type]
        if self.covariance_prior is not None and not shape.stored(1, d)[1:]:
            return np.asarray(_number(self.covariance_prior))
        of_one = shape.stored(1, d)[-2:] if shape.dense else shape.stored(1, d)[1:]
        found = given(self.covariance_prior, f"{shape.name} covariance_prior", of_one)
        if found is not None:
            whole = found if shape.pooled else found[np.newaxis]
            # Refused in scikit-learn's words if it is no covariance.
            shape.factors_of_precisions(whole)
        return found

    def _set_estimated(self, outcome: Outcome, dtype: np.dtype[Any]) -> Mixture:
        priors, mixture = outcome.priors, outcome.mixture
        assert priors is not None
        assert priors.mean is not None and priors.covariance is not None
        rule, counts = VariationalBayes(priors, self.reg_covar), mixture.weights
        concentrations: Any = rule.concentrations(counts).astype(dtype)
        self.weight_concentration_ = (
            tuple(concentrations) if priors.is_process else concentrations
        )
        self.mean_precision_ = rule.mean_precisions(counts).astype(dtype)
        degrees = rule.degrees_of_freedom(mixture.shape, counts)
        self.degrees_of_freedom_ = _plain(degrees, dtype)
        self.weight_concentration_prior_ = priors.weight_concentration
        self.mean_precision_prior_ = priors.mean_precision
        self.mean_prior_ = priors.mean.astype(dtype)
        self.degrees_of_freedom_prior_ = priors.degrees_of_freedom
        self.covariance_prior_ = _plain(priors.covariance, dtype)
        return replace(mixture, weights=rule.weights(counts))

    def _sizes(self, outcome: Outcome) -> NDArray[np.float64]:
        """What is estimated has them as its weights."""
        return outcome.mixture.weights

    @staticmethod
    def _as_fitted(name: str, saved: Any) -> Any:
        """Both parameters of a process are saved as one array."""
        if name == "weight_concentration_" and np.ndim(saved) == 2:
            return tuple(saved)
        return TrainedMixture._as_fitted(name, saved)

    def _made_of(self, mixture: Mixture, names: Any) -> GaussianMixture:
        return made_of(mixture, names, self)

    def _estimated(self) -> Mixture:
        counts = np.asarray(self.mean_precision_, float) - self.mean_precision_prior_
        return replace(super()._mixture(), weights=counts)

    def _mixture(self) -> Mixture:
        """The mixture of expected log densities."""
        estimated = self._estimated()
        return self._rule().message(estimated)

    def _rule(self) -> VariationalBayes:
        priors = Priors(
            self.weight_concentration_prior_type == "dirichlet_process",
            self.weight_concentration_prior_,
            self.mean_precision_prior_,
            self.degrees_of_freedom_prior_,
            np.asarray(self.mean_prior_, float),
            np.asarray(self.covariance_prior_, float),
        )
        return VariationalBayes(priors, self.reg_covar)


def _number(given: Any) -> float:
    """A variance for all features."""
    number = np.asarray(given, dtype=np.float64)
    if number.ndim or not 0.0 < number < np.inf:
        raise ParameterError(
            "The parameter 'spherical covariance_prior' should be a number above 0, "
            f"but got {given!r}."
        )
    return float(number)


def _plain(numbers: NDArray[np.float64], dtype: np.dtype[Any]) -> Any:
    """An array of a dtype, or a float if there is but one number."""
    return numbers.astype(dtype) if numbers.ndim else float(numbers)
