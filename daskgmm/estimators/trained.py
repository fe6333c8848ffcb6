"""How mixtures are fitted, saved and handed to scikit-learn, whatever their rule."""

from __future__ import annotations

import functools
import os
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.opening import place_of
from daskgmm.data.source import Source
from daskgmm.display import page, words
from daskgmm.em.acceleration import likely_passes
from daskgmm.em.checkpoint import Checkpoint, describe
from daskgmm.em.fit import Outcome, Settings, sampled_of, train
from daskgmm.em.interval import parse_interval
from daskgmm.em.progress import Callback, Progress, Reporter, as_columns, from_columns
from daskgmm.em.state import Run, Status
from daskgmm.errors import (
    InterruptedFit,
    SkippedRowsWarning,
    show_interrupts_quietly,
)
from daskgmm.estimators.base import PARAMETERS
from daskgmm.estimators.callbacks import CallbackSupportMixin, Tasks, with_callbacks
from daskgmm.estimators.derived import DerivedMixtures
from daskgmm.estimators.random_states import random_state_of
from daskgmm.execution.threads import single_threaded_blas
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.storage import models
from daskgmm.storage.urls import check_apart

FITTED = (
    *PARAMETERS,
    "precisions_",
    "converged_",
    "n_iter_",
    "lower_bound_",
    "lower_bounds_",
    "n_features_in_",
)
"""Attributes that scikit-learn's mixtures have, too;"""
FITTED_OURS = (
    "n_passes_",
    "n_rows_skipped_",
    "remaining_gain_",
    "history_",
    "arithmetic_",
    "cluster_sizes_",
    "entropy_",
    "init_size_",
    "accelerated_",
)
"""and those that they have not."""


_CALLER = 4 if hasattr(CallbackSupportMixin, "set_callbacks") else 3
"""How far above `warn_of` the code stands that called `fit`: callbacks wrap that."""


class TrainedMixture(CallbackSupportMixin, DerivedMixtures):  # type: ignore[misc]
    """A mixture that can be fitted."""

    _fitted: ClassVar[tuple[str, ...]] = (*FITTED, *FITTED_OURS)
    """Names of what a fit finds."""
    _of_sklearn: ClassVar[type[BaseEstimator]]
    """scikit-learn's class of this name,"""
    _ours: ClassVar[tuple[str, ...]]
    """and the parameters that it has not."""

    @classmethod
    @functools.cache
    def _get_param_names(cls) -> list[str]:
        """Found once: to read the signature takes as long as a pass over few rows."""
        names: list[str] = super()._get_param_names()
        return names

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: Any,
        y: None = None,
        sample_weight: Any = None,
        *,
        callback: Callback | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_interval: int | str = "1 minute",
        keep_on_interrupt: bool = False,
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
            knows. If the state of the same fit to the same data is there, the fit
            resumes from it, and ends with the same bits as one that never stopped.
        checkpoint_interval : int or str, default='1 minute'
            How often: after so many passes over the data, or after a time such as
            '30s'. The starts and the end are kept in any case.

            A fit with a larger `max_iter`, a lower `tol`, more restarts or
            acceleration resumes from there too; the first two end with the same bits
            as one that had them from the start.
        keep_on_interrupt : bool, default=False
            Whether an interrupt, as by Ctrl-C or by stopping a notebook's cell, ends
            the fit with what was found so far, and a warning. Without it, and before
            the first pass is over, the estimator is as it was before, and an
            `InterruptedFit` says what was kept.

        Returns
        -------
        estimator
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
        InterruptedFit
            A `KeyboardInterrupt`, in one line.
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
        tasks = Tasks(self, X, y, sample_weight, self.max_iter)
        if self.max_iter:
            tasks.begin_pass()
        with (
            said_in_one_line(checkpoint) as keepers,
            self._restored_on_error(),
            single_threaded_blas(),
        ):
            source = self._taken(X, sample_weight, reset=True).source()
            settings = self._settings(source.n_features)
            reporter = Reporter(self.verbose, self.verbose_interval)

            def observe(progress: Progress, so_far: Callable[[], Outcome]) -> bool:
                reporter.report(progress)
                if callback is not None:
                    callback(progress)
                return tasks.passed(
                    lambda: self._as_fitted_to(so_far(), source.dtype),
                    goes_on=progress.n_live > 0,
                )

            warm = self._warm_run(source.n_features)
            keeper = None
            if checkpoint is not None:
                fitted = self._what_is_fitted(source, warm)
                keeper = Checkpoint(checkpoint, interval, fitted)
                keepers.append(keeper)
            with random_state_of(self.random_state) as random_state:
                outcome = train(
                    source,
                    settings,
                    random_state,
                    warm,
                    observe,
                    keeper,
                    keep_on_interrupt=keep_on_interrupt,
                )
            self._set_attributes(outcome, source.dtype)
        tasks.ended()
        goes_on = f"fit resumes from {checkpoint}" if checkpoint else None
        warn_of(self, goes_on, stopped=outcome.stopped)
        return self

    def _as_fitted_to(self, outcome: Outcome, dtype: np.dtype[Any]) -> dict[str, Any]:
        """The attributes of a fit that ends there."""
        copied = copy(self)
        copied._set_attributes(outcome, dtype)
        return dict(vars(copied))

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

    @abstractmethod
    def _settings(self, n_features: int) -> Settings:
        """How to fit rows of so many features, by the parameters, checked."""

    @abstractmethod
    def _estimated(self) -> Mixture:
        """What the rule of the fit estimated, from the attributes."""

    def _set_mixture(self, mixture: Mixture, dtype: np.dtype[Any]) -> None:
        precisions = mixture.shape.precisions(mixture.factors)
        found = mixture.weights, mixture.means, mixture.covariances, mixture.factors
        for name, numbers in zip(
            (*PARAMETERS, "precisions_"), (*found, precisions), strict=True
        ):
            setattr(self, name, np.require(numbers, dtype, ["C", "W"]))

    def _set_estimated(self, outcome: Outcome, dtype: np.dtype[Any]) -> Mixture:
        """Set what is more than a mixture; returns that, with its weights."""
        return outcome.mixture

    def _sizes(self, outcome: Outcome) -> NDArray[np.float64]:
        """Rows of each component by weight, in the last E-step; NaN without one."""
        fit = outcome.run.fit
        return outcome.mixture.weights * (np.nan if fit is None else fit.weight)

    def _warm_run(self, n_features: int) -> Run[Mixture] | None:
        if not (self.warm_start and hasattr(self, "converged_")):
            return None
        estimated = self._estimated()
        self._check_n_features(
            n_features,
            " With warm_start=True a fit continues from the parameters of the last "
            "one: to begin anew, set it to False.",
        )
        return Run(estimated, previous=self.lower_bound_)

    def _likely_passes(self, n_features: int, n_rows: int) -> int | None:
        """Passes that a fit to so many rows likely takes, None if that is not known."""
        sampled = sampled_of(self._settings(n_features), n_features, n_rows)
        return likely_passes(sampled)

    def _fitted_html(self) -> str:
        if not hasattr(self, "means_"):
            return ""
        mixture = self._plain_mixture()
        k, d = mixture.means.shape
        variances = np.broadcast_to(
            mixture.shape.variances(mixture.covariances, d), (k, d)
        )
        names = getattr(self, "feature_names_in_", None)
        return page.fitted(
            mixture.weights,
            mixture.means,
            np.sqrt(variances),
            [f"x{j}" for j in range(d)] if names is None else list(map(str, names)),
            [getattr(self, "lower_bounds_", [])],
            self._facts_of_fit(),
        )

    def _facts_of_fit(self) -> list[str]:
        """What to know of the fit, in words."""
        if not hasattr(self, "n_passes_"):
            return []
        how = "converged" if self.converged_ else "did not converge"
        facts = [f"{how} in {self.n_iter_} iterations, {self.n_passes_} passes"]
        told = self.history_
        if len(told["n_pass"]):
            # Each run has a line for a pass, and the same time in it.
            _, first = np.unique(told["n_pass"], return_index=True)
            time = words.seconds(float(told["seconds"][first].sum()))
            facts = [f"{told['n_rows'][-1]:,} rows", *facts, f"{time} in passes"]
        return [*facts, f"lower bound {self.lower_bound_:.6g}"]

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

    def _set_attributes(self, outcome: Outcome, dtype: np.dtype[Any]) -> None:
        if dtype == np.float32 and not outcome.mixture.fits_in_single:
            dtype = np.dtype(np.float64)
        self._set_mixture(self._set_estimated(outcome, dtype), dtype)
        run = outcome.run
        self.converged_ = run.status is Status.CONVERGED
        self.n_iter_ = run.n_iter
        self.lower_bound_ = run.bound
        self.lower_bounds_ = list(run.bounds)
        self.n_passes_ = outcome.n_passes
        self.n_rows_skipped_ = outcome.n_skipped
        self.remaining_gain_ = outcome.remaining_gain
        self.history_ = as_columns(outcome.history)
        self.arithmetic_ = outcome.arithmetic
        self.init_size_ = outcome.sampled.size
        self.accelerated_ = outcome.sampled.accelerated
        fit = outcome.run.fit
        self.entropy_ = np.nan if fit is None else fit.entropy
        self.cluster_sizes_ = self._sizes(outcome)

    def to_sklearn(self) -> Any:
        """The same model as scikit-learn's estimator, fitted if this one is."""
        parameters = self.get_params(deep=False)
        for name in self._ours:
            del parameters[name]
        theirs = self._of_sklearn(**parameters)
        self._copy_fitted(self, theirs)
        return theirs

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        """A scikit-learn model as this estimator, fitted if that one is."""
        ours = cls(**model.get_params(deep=False))
        cls._copy_fitted(model, ours)
        return ours

    @staticmethod
    def _as_fitted(name: str, saved: Any) -> Any:
        """An attribute as a fit sets it, from what was saved."""
        return as_columns(saved) if name == "history_" else saved

    @classmethod
    def _fitted_names(cls, model: BaseEstimator) -> list[str]:
        names = [*cls._fitted, "feature_names_in_"]
        return [name for name in names if hasattr(model, name)]

    @classmethod
    def _copy_fitted(cls, source: BaseEstimator, target: BaseEstimator) -> None:
        for name in cls._fitted_names(source):
            setattr(target, name, copy(getattr(source, name)))

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
        fitted = {n: getattr(self, n) for n in self._fitted_names(self)}
        if "history_" in fitted:
            fitted["history_"] = from_columns(fitted["history_"])
        models.save(
            url,
            models.Model(type(self).__name__, self.get_params(deep=False), fitted),
            overwrite=overwrite,
        )


@contextmanager
def said_in_one_line(checkpoint: Any) -> Iterator[list[Checkpoint]]:
    """Say what was kept of a fit that is interrupted, by its keeper if it has one.

    Raises
    ------
    InterruptedFit
        Instead of what an interrupt is otherwise.
    """
    keepers: list[Checkpoint] = []
    try:
        yield keepers
    except KeyboardInterrupt:
        show_interrupts_quietly()
        place = None if checkpoint is None else str(checkpoint)
        if any(keeper.has_state for keeper in keepers):
            message = f"the same fit resumes from the checkpoint {place}."
            raise InterruptedFit(message, place) from None
        advice = (
            "With checkpoint=…, a fit resumes where it stopped; with "
            "keep_on_interrupt=True, it ends with what it has found."
            if place is None
            else f"No state had been written to the checkpoint {place} yet."
        )
        message = f"nothing was kept. {advice}"
        raise InterruptedFit(message, unwritten=place) from None


def warn_of(
    model: TrainedMixture,
    how_to_go_on: str | None,
    *,
    stopped: str = "",
) -> None:
    """Warn, where the caller's caller stands, of what a fit did not do."""
    if stopped == "interrupt":
        n_passes = words.counted(model.n_passes_, "pass")
        warnings.warn(
            f"The fit was interrupted: its model is the best of {n_passes}."
            + (f" Given again, {how_to_go_on}." if how_to_go_on else ""),
            ConvergenceWarning,
            stacklevel=_CALLER,
        )
    elif not model.converged_ and model.max_iter > 0 and not stopped:
        goes_on = f" With a larger max_iter, {how_to_go_on}." if how_to_go_on else ""
        warnings.warn(
            "Best performing initialization did not converge. "
            "Try different init parameters, or increase max_iter, "
            "tol, or check for degenerate data." + goes_on,
            ConvergenceWarning,
            stacklevel=_CALLER,
        )
    if model.n_rows_skipped_:
        warnings.warn(
            f"{model.n_rows_skipped_} rows with NaN were left out of the fit.",
            SkippedRowsWarning,
            stacklevel=_CALLER,
        )
