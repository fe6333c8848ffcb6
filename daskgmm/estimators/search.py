"""Choosing the number of components and the shape of covariances, in shared passes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from numbers import Integral, Real
from types import NoneType
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.gaps import Nan
from daskgmm.data.opening import place_of
from daskgmm.data.source import Source
from daskgmm.display import page, words
from daskgmm.em.acceleration import Accelerate, InitSize
from daskgmm.em.checkpoint import Checkpoint, describe
from daskgmm.em.interval import parse_interval
from daskgmm.em.precision import Arithmetic
from daskgmm.em.search import (
    CRITERIA,
    Criterion,
    Scored,
    SearchCallback,
    SearchOutcome,
    SearchProgress,
    SearchSettings,
    search,
)
from daskgmm.errors import ParameterError
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.callbacks import CallbackSupportMixin, Tasks, with_callbacks
from daskgmm.estimators.documented import Documented
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.trained import TrainedMixture, said_in_one_line, warn_of
from daskgmm.execution.threads import single_threaded_blas
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.storage.urls import check_apart
from daskgmm.storage.zarr_store import Missing

_SHARED = (
    "tol",
    "reg_covar",
    "max_iter",
    "n_init",
    "init_params",
    "init_size",
    "missing_chunks",
    "nan",
)
"""Parameters that all candidates have as they are given,"""
_OF_GAUSSIAN = ("accelerate", "arithmetic")
"""those of them that no Bayesian mixture has,"""
_OF_BAYESIAN = (
    "weight_concentration_prior_type",
    "mean_precision_prior",
    "mean_prior",
    "degrees_of_freedom_prior",
    "covariance_prior",
)
"""and those that only one has."""
_CONCENTRATION = "weight_concentration_prior"


def _has_criteria(search: MixtureSearch) -> bool:
    """As scikit-learn has it, a Bayesian mixture has none."""
    return not search.bayesian


class MixtureSearch(
    CallbackSupportMixin,  # type: ignore[misc]
    Documented,
    DensityMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Chooses the number of components and the shape of covariances.

    All candidates, one for each pair of them, train in the same passes over the data.
    Each ends with the same bits as a `GaussianMixture` fitted alone with its parameters
    and the search's seed. The data are read as often as the slowest candidate takes,
    and twice more: to count, check and draw rows before, and to find the criteria of
    what ended last. Where lengths are not known, or rows have weights, rows are drawn
    in a read of their own; priors of Bayesian mixtures take another one.

    Parameters
    ----------
    n_components : int or sequence of int, default=(1, 2, ..., 10)
        Numbers of components, K.
    covariance_type : str or sequence of str, default=all four
        Shapes of covariances, as of `GaussianMixture`.
    criterion : {'bic', 'aic', 'icl', 'held_out'}, default='bic'
        What the best candidate is chosen by. Of the information criteria, and the
        integrated completed likelihood, which asks for components apart from each
        other, the lowest is the best; of 'held_out', the mean log density of rows that
        no candidate trained on, the highest.
    held_out : float, default=0.1
        Share of the rows that are held out, if that is the criterion: chosen by a hash
        of their numbers, and the same in each pass. All other criteria are of the rows
        that are left then. Bayesian mixtures have but this one: nobody counts their
        parameters, and bounds with different priors are not to be compared.
    stop_losers : bool, default=False
        Whether a candidate ends once it can win no more: if its criterion would be
        worse than that of one which has ended, with all that its bound may still gain.
        That is predicted from its last two gains (Aitken's acceleration), so it is not
        certain. Candidates that are accelerated, and with criterion='held_out' all,
        always run to the end.
    n_init, tol, reg_covar, max_iter, init_params : optional
        As of `GaussianMixture`, for each candidate.
    random_state : int, RandomState instance or None, default=None
        Seed that each candidate starts with. What is no int is drawn from, once.
    verbose : int, default=0
        1 prints a line for each pass.
    init_size, accelerate, missing_chunks, nan, arithmetic : optional
        As of `GaussianMixture`, for each candidate. Where 'auto' would come to
        something else for some of them, all have what suits the one with most
        parameters: see `init_size_` and `accelerated_`.
    bayesian : bool, default=False
        Whether candidates are `BayesianGaussianMixture`: those are not accelerated, and
        always double.
    weight_concentration_prior : float, None, or sequence of them, default=None
        Of Bayesian mixtures: there is a candidate for each, and for each pair of the
        other two. None is 1 / K.
    weight_concentration_prior_type, mean_precision_prior, mean_prior, \
degrees_of_freedom_prior, covariance_prior : optional
        As of `BayesianGaussianMixture`, for each candidate.

    Attributes
    ----------
    results_ : dict of ndarrays, each of shape (n_candidates,)
        `params`, `param_n_components` and `param_covariance_type`, of Bayesian mixtures
        also `param_weight_concentration_prior`; `bic`, `aic`, `icl`
        and `held_out` at the last parameters: what `best_estimator_.bic(X)` gives, of
        the rows trained on; `rank`, by the criterion, from 1; `lower_bound`, `n_iter`
        and `n_passes` of the best run, `converged`; `status`, why it ended, which is
        'converged', 'exhausted' after `max_iter`, 'outdone' or 'failed', and `error`;
        and the `batch` that it trained in: see `daskgmm.search-memory`.
    best_estimator_ : GaussianMixture or BayesianGaussianMixture
        Fitted with the best parameters.
    best_params_ : dict
        Of the best candidate, the parameters in which candidates differ.
    best_index_ : int
        Its place in `results_`.
    best_score_ : float
        Its criterion.
    n_passes_ : int
        Passes of EM over the data, for all candidates together.
    n_batches_ : int
        Groups of candidates that shared their passes.
    init_size_ : int
        Rows that were drawn, for all candidates.
    accelerated_ : bool
        Whether all candidates were accelerated, or none.
    random_state_ : int
        The seed: a fit alone with it ends with the same bits.
    n_features_in_ : int
        Number of features, d.
    feature_names_in_ : ndarray of shape (d,)
        As of `GaussianMixture`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import MixtureSearch
    >>> rows = np.random.default_rng(0).normal(size=(3000, 2))
    >>> rows[:1000] += 8
    >>> rows[1000:2000] -= 8
    >>> search = MixtureSearch(range(1, 6), random_state=0).fit(rows)
    >>> search.best_params_
    {'n_components': 3, 'covariance_type': 'tied'}
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **{
            name: constraint
            for name, constraint in GaussianMixture._parameter_constraints.items()
            if name in (*_SHARED, *_OF_GAUSSIAN, "random_state")
        },
        **{
            name: constraint
            for name, constraint in (
                BayesianGaussianMixture._parameter_constraints.items()
            )
            if name in _OF_BAYESIAN
        },
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "n_components": [Interval(Integral, 1, None, closed="left"), "array-like"],
        "covariance_type": [StrOptions(set(SHAPES)), "array-like"],
        "criterion": [StrOptions(set(CRITERIA))],
        "held_out": [Interval(Real, 0, 1, closed="neither")],
        "stop_losers": ["boolean"],
        "bayesian": ["boolean"],
        _CONCENTRATION: [
            None,
            Interval(Real, 0.0, None, closed="neither"),
            "array-like",
        ],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        n_components: int | Sequence[int] = tuple(range(1, 11)),
        *,
        covariance_type: str | Sequence[str] = ("full", "tied", "diag", "spherical"),
        criterion: Criterion = "bic",
        held_out: float = 0.1,
        stop_losers: bool = False,
        n_init: int = 1,
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        init_params: str = "kmeans",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        init_size: InitSize = "auto",
        accelerate: Accelerate = "auto",
        missing_chunks: Missing = "error",
        nan: Nan = "error",
        arithmetic: Arithmetic = "auto",
        bayesian: bool = False,
        weight_concentration_prior: float | Sequence[float | None] | None = None,
        weight_concentration_prior_type: str = "dirichlet_process",
        mean_precision_prior: float | None = None,
        mean_prior: ArrayLike | None = None,
        degrees_of_freedom_prior: float | None = None,
        covariance_prior: ArrayLike | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.criterion = criterion
        self.held_out = held_out
        self.stop_losers = stop_losers
        self.n_init = n_init
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.init_params = init_params
        self.random_state = random_state
        self.verbose = verbose
        self.init_size = init_size
        self.accelerate = accelerate
        self.missing_chunks = missing_chunks
        self.nan = nan
        self.arithmetic = arithmetic
        self.bayesian = bayesian
        self.weight_concentration_prior = weight_concentration_prior
        self.weight_concentration_prior_type = weight_concentration_prior_type
        self.mean_precision_prior = mean_precision_prior
        self.mean_prior = mean_prior
        self.degrees_of_freedom_prior = degrees_of_freedom_prior
        self.covariance_prior = covariance_prior

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: None = None,
        sample_weight: Any = None,
        *,
        callback: SearchCallback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_interval: int | str = "1 minute",
    ) -> Self:
        """Train all candidates, and keep the best.

        Parameters
        ----------
        X : rows of shape (n, d)
            As of `GaussianMixture`.
        y : ignored
        sample_weight : array-like of shape (n,), default=None
        callback : callable, default=None
            Called with a `SearchProgress` after each pass over the data. Callbacks of
            scikit-learn (`set_callbacks`) are told of passes too; those that would end
            a fit do not end a search.
        checkpoint : str or path, default=None
            Where to keep the state of all candidates: the same search of the same data
            resumes from there, and ends with the same bits.
        checkpoint_interval : int or str, default='1 minute'
            As of `GaussianMixture.fit`.

        Returns
        -------
        MixtureSearch
            The estimator itself.

        Raises
        ------
        CheckpointError
            If the checkpoint is of other data, parameters or another version.
        DataError
            If the data cannot be used; the message names the block and row.
        IllDefinedCovarianceError
            If no candidate is left.
        InterruptedFit
            A `KeyboardInterrupt`, in one line.
        StoreError
            If there is no Zarr array at a path or URL.
        """
        self._validate_params()
        if callback is not None and not callable(callback):
            raise TypeError(
                f"callback must be callable with a SearchProgress, got {callback!r}."
            )
        interval = parse_interval(checkpoint_interval)
        read = {"X": place_of(X), "sample_weight": place_of(sample_weight)}
        check_apart({"checkpoint": checkpoint}, read)
        tasks = Tasks(self, X, y, sample_weight, None)
        seed = self._seed()
        candidates = self._candidates(seed)

        def observe(progress: SearchProgress) -> None:
            if self.verbose:
                print(_line(progress))
            if callback is not None:
                callback(progress)
            tasks.passed(goes_on=progress.n_ended < len(progress.scored))

        tasks.begin_pass()
        with said_in_one_line(checkpoint) as keepers, single_threaded_blas():
            # Of a candidate, so that rows are taken as a fit alone takes them.
            source = candidates[0]._taken(X, sample_weight, reset=True).source()
            keeper = None
            if checkpoint is not None:
                described = self._described(source)
                keeper = Checkpoint(checkpoint, interval, described)
                keepers.append(keeper)
            holds_out = self.criterion == "held_out"
            settings = SearchSettings(
                [its._settings(source.n_features) for its in candidates],
                self.criterion,
                self.held_out if holds_out else 0.0,
                self.stop_losers and not holds_out,
            )
            outcome = search(source, settings, seed, observe, keeper)
        self._set(outcome, candidates, source.dtype)
        tasks.ended()
        warn_of(self.best_estimator_, None)
        return self

    def _fitted_html(self) -> str:
        if not hasattr(self, "results_"):
            return ""
        found, order = self.results_, np.argsort(self.results_["rank"])
        names = [*self.best_params_]
        rows = [
            [
                str(found["rank"][i]),
                *(str(found["params"][i][name]) for name in names),
                words.number(self.criterion, found[self.criterion][i]),
                str(found["n_iter"][i]),
                found["status"][i],
            ]
            for i in order
        ]
        head = ["rank", *names, self.criterion, "iterations", "status"]
        said = f"{len(rows)} candidates in {self.n_passes_} passes"
        return page.candidates(head, rows, said)

    def _candidates(self, seed: int) -> list[TrainedMixture]:
        self._check_kind()
        numbers = _values("n_components", self.n_components, Integral)
        shapes = _values("covariance_type", self.covariance_type, str)
        grid: dict[str, list[Any]] = {
            "covariance_type": shapes,
            "n_components": numbers,
        }
        kind: type[TrainedMixture] = GaussianMixture
        names = [*_SHARED, *_OF_GAUSSIAN]
        if self.bayesian:
            kind, names = BayesianGaussianMixture, [*_SHARED, *_OF_BAYESIAN]
            grid[_CONCENTRATION] = _values(
                _CONCENTRATION, getattr(self, _CONCENTRATION), (Real, NoneType)
            )
        shared = {name: getattr(self, name) for name in names}
        candidates = [
            kind(**dict(zip(grid, its, strict=True)), random_state=seed, **shared)
            for its in product(*grid.values())
        ]
        for candidate in candidates:
            candidate._validate_params()
            candidate._check_array_api()
        return candidates

    def _check_kind(self) -> None:
        """Refuse parameters of mixtures of the other kind."""
        if not self.bayesian:
            defaults = type(self)().get_params(deep=False)
            for name in (_CONCENTRATION, *_OF_BAYESIAN):
                given = getattr(self, name)
                is_default = isinstance(given, str) and given == defaults[name]
                if given is not None and not is_default:
                    raise ParameterError(
                        f"{name} is of Bayesian mixtures: set bayesian=True."
                    )
            return
        if self.accelerate is True:
            raise ParameterError(
                "Bayesian mixtures are not accelerated: leave accelerate at 'auto'."
            )
        if self.criterion != "held_out":
            raise ParameterError(
                f"Bayesian mixtures have no {self.criterion}, as nobody counts their "
                "parameters: set criterion='held_out'."
            )

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _described(self, source: Source) -> dict[str, Any]:
        """What a checkpoint must agree in, by name."""
        silent = ["verbose"]
        silent += ["stop_losers"] if self.criterion == "held_out" else ["held_out"]
        # None of them may grow into another one, as max_iter of a fit alone may.
        parameters = {
            f"{name} of the search": describe(value)
            for name, value in self.get_params(deep=False).items()
            if name not in silent
        }
        kinds = {"number of features": source.n_features, "dtype": str(source.dtype)}
        return {**parameters, **kinds}

    def _set(
        self,
        outcome: SearchOutcome,
        candidates: Sequence[TrainedMixture],
        dtype: np.dtype[Any],
    ) -> None:
        taken, best = vars(candidates[0]), candidates[outcome.best]
        best.random_state = outcome.seed
        best._set_attributes(outcome.fitted, dtype)
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if name in taken:
                setattr(self, name, taken[name])
                setattr(best, name, taken[name])
        self.results_ = _results(outcome.scored, candidates, self.criterion)
        self.best_estimator_ = best
        self.best_index_ = outcome.best
        self.best_params_ = self.results_["params"][outcome.best]
        self.best_score_ = outcome.scored[outcome.best].value(self.criterion)
        self.n_passes_ = outcome.n_passes
        self.n_batches_ = outcome.n_batches
        self.init_size_ = outcome.sampled.size
        self.accelerated_ = outcome.sampled.accelerated
        self.random_state_ = outcome.seed

    def fit_predict(self, X: Any, y: None = None, sample_weight: Any = None) -> Any:
        """Train all candidates, and label the rows by the best: see `predict`."""
        return self.fit(X, y, sample_weight).predict(X)

    def predict(self, X: Any) -> Any:
        """Most probable component of each row: see `GaussianMixture.predict`."""
        return self._best().predict(X)

    def predict_proba(self, X: Any) -> Any:
        """Responsibilities: see `GaussianMixture.predict_proba`."""
        return self._best().predict_proba(X)

    def score_samples(self, X: Any) -> Any:
        """Log density of each row: see `GaussianMixture.score_samples`."""
        return self._best().score_samples(X)

    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Mean log density of a row: see `GaussianMixture.score`."""
        return self._best().score(X, sample_weight=sample_weight)

    @available_if(_has_criteria)  # type: ignore[untyped-decorator]
    def aic(self, X: Any, sample_weight: Any = None) -> float:
        """Akaike's information criterion: see `GaussianMixture.aic`."""
        return float(self._best().aic(X, sample_weight))

    @available_if(_has_criteria)  # type: ignore[untyped-decorator]
    def bic(self, X: Any, sample_weight: Any = None) -> float:
        """Bayesian information criterion: see `GaussianMixture.bic`."""
        return float(self._best().bic(X, sample_weight))

    def sample(
        self, n_samples: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Draw rows: see `GaussianMixture.sample`."""
        return self._best().sample(n_samples)

    def save(self, url: str, *, overwrite: bool = False) -> None:
        """Write the best candidate: see `GaussianMixture.save`."""
        self._best().save(url, overwrite=overwrite)

    def _best(self) -> TrainedMixture:
        check_is_fitted(self)
        return self.best_estimator_


_KINDS = {
    Integral: "whole numbers",
    str: "names of shapes",
    (Real, NoneType): "numbers, or None",
}


def _values(name: str, given: Any, kind: Any) -> list[Any]:
    """Values of a parameter, in their order, each once."""
    if isinstance(given, kind):
        return [given]
    values = list(given) if np.iterable(given) else []
    plain = [v.item() if isinstance(v, np.generic) else v for v in values]
    if not plain or not all(isinstance(value, kind) for value in plain):
        raise ParameterError(
            f"{name} must be one or more {_KINDS[kind]}: a sequence of them, got "
            f"{given!r}."
        )
    return [*dict.fromkeys(plain)]


def _results(
    scored: Sequence[Scored],
    candidates: Sequence[TrainedMixture],
    criterion: Criterion,
) -> dict[str, NDArray[Any]]:
    """What is known of each candidate, by name."""
    names = ["n_components", "covariance_type"]
    if isinstance(candidates[0], BayesianGaussianMixture):
        names.append(_CONCENTRATION)
    params = [{name: getattr(its, name) for name in names} for its in candidates]
    order = np.argsort([its.loss(criterion) for its in scored], kind="stable")
    rank = np.empty(len(scored), dtype=np.int64)
    rank[order] = np.arange(1, len(scored) + 1)
    statuses = [its.status.value for its in scored]
    return {
        "params": np.array(params, dtype=object),
        "param_n_components": np.array([its["n_components"] for its in params]),
        **{
            f"param_{name}": np.array([its[name] for its in params], dtype=object)
            for name in names[1:]
        },
        **{name: np.array([its.value(name) for its in scored]) for name in CRITERIA},
        "rank": rank,
        "lower_bound": np.array([its.run.bound for its in scored]),
        "n_iter": np.array([its.run.n_iter for its in scored]),
        "n_passes": np.array([its.n_passes for its in scored]),
        "converged": np.array([status == "converged" for status in statuses]),
        "status": np.array(statuses, dtype=object),
        "error": np.array([its.run.error for its in scored], dtype=object),
        "batch": np.array([its.batch for its in scored]),
    }


def _line(progress: SearchProgress) -> str:
    """What `verbose` prints of a pass."""
    ended = words.of_candidates(progress)
    return f"Pass {progress.n_pass}: {ended} ({progress.seconds:.3g} s)"
