"""Rows that a mixture holds for improbable, as scikit-learn's detectors tell them."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar, Self

from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from daskgmm.display import page
from daskgmm.estimators.callbacks import CallbackSupportMixin, Tasks, with_callbacks
from daskgmm.estimators.documented import Documented
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.trained import TrainedMixture


class MixtureOutlierDetector(
    CallbackSupportMixin,  # type: ignore[misc]
    Documented,
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Detects rows of low density under a mixture, in data of any size.

    Parameters
    ----------
    estimator : GaussianMixture or BayesianGaussianMixture, default=None
        The mixture, which is not fitted itself: a copy is. By default one Gaussian.
    contamination : float, default=0.1
        Share of the rows that are held for outliers: above 0, and 0.5 at the most.

    Attributes
    ----------
    estimator_ : GaussianMixture or BayesianGaussianMixture
        Fitted.
    offset_ : float
        Log density below which rows are outliers: the quantile of the rows that were
        fitted, found in two more passes over them.
    n_features_in_ : int
        Number of features, d.
    feature_names_in_ : ndarray of shape (d,)
        As of `GaussianMixture`.

    Examples
    --------
    >>> import numpy as np
    >>> from daskgmm import GaussianMixture, MixtureOutlierDetector
    >>> rows = np.append(np.random.default_rng(0).normal(size=99), 50.0)[:, np.newaxis]
    >>> detector = MixtureOutlierDetector(GaussianMixture(1), contamination=0.01)
    >>> np.flatnonzero(detector.fit_predict(rows) == -1)
    array([99])
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "estimator": [TrainedMixture, None],
        "contamination": [Interval(Real, 0.0, 0.5, closed="right")],
    }

    def __init__(
        self, estimator: TrainedMixture | None = None, *, contamination: float = 0.1
    ) -> None:
        self.estimator = estimator
        self.contamination = contamination

    @with_callbacks  # type: ignore[untyped-decorator]
    def fit(
        self, X: Any, y: None = None, sample_weight: Any = None, **fit_params: Any
    ) -> Self:
        """Fit the mixture, and find the offset.

        Parameters
        ----------
        X : rows of shape (n, d)
            As of `GaussianMixture`.
        y : ignored
        sample_weight : array-like of shape (n,), default=None
        **fit_params
            What else `GaussianMixture.fit` takes, such as `checkpoint` and `callback`.

        Returns
        -------
        MixtureOutlierDetector
            The detector itself.

        Raises
        ------
        DataError, IllDefinedCovarianceError, StoreError
            As `GaussianMixture.fit`.
        """
        self._validate_params()
        estimator = GaussianMixture() if self.estimator is None else self.estimator
        model = clone(estimator)
        tasks = Tasks(self, X, y, sample_weight, 1)
        with tasks.handed_on(model):
            model.fit(X, sample_weight=sample_weight, **fit_params)
        offset = model.score_quantile(X, self.contamination, sample_weight)
        self.estimator_, self.offset_ = model, offset
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if hasattr(model, name):
                setattr(self, name, getattr(model, name))
        tasks.ended()
        return self

    def _fitted_html(self) -> str:
        if not hasattr(self, "estimator_"):
            return ""
        mixture: str = self.estimator_._fitted_html()
        return mixture + page.said(f"Outliers: log density below {self.offset_:.5g}")

    def score_samples(self, X: Any) -> Any:
        """Log density of each row: see `GaussianMixture.score_samples`."""
        check_is_fitted(self)
        return self.estimator_.score_samples(X)

    def decision_function(self, X: Any) -> Any:
        """Log density of each row less the offset: below 0 for outliers.

        Parameters
        ----------
        X : rows of shape (n, d)

        Returns
        -------
        array of shape (n,)
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Any:
        """Tell -1 for outliers and 1 for all other rows.

        Parameters
        ----------
        X : rows of shape (n, d)

        Returns
        -------
        array of int64, shape (n,)
            Of X's kind. Rows that are skipped, as they have NaN, get -1.
        """
        return (self.decision_function(X) >= 0.0) * 2 - 1
