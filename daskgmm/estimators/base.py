"""What every fitted mixture answers, and how rows are taken and checked for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from daskgmm.data.block import block_rows
from daskgmm.data.columns import float_dtype
from daskgmm.data.gaps import Gaps
from daskgmm.data.inputs import Rows, is_plain_frame, open_input
from daskgmm.data.source import Source
from daskgmm.em.comparison import Comparison, compare
from daskgmm.em.loop import evaluated
from daskgmm.em.precision import may_be_single
from daskgmm.em.predict import Kind, Question, Score, ask, score, score_block
from daskgmm.em.quantiles import Quantiles
from daskgmm.errors import DaskGMMError, DataError, ParameterError
from daskgmm.estimators.documented import Documented
from daskgmm.mixtures.covariance import SHAPES
from daskgmm.mixtures.criteria import Fit, fit_of, look_at
from daskgmm.mixtures.gaussian import Mixture
from daskgmm.mixtures.refinement import look_again, refine

_FLOATS = [np.float64, np.float32]
_NO_ROWS = (
    "There are no rows to score: X has none, or all have weight 0, or NaN and are "
    "skipped."
)
PARAMETERS = ("weights_", "means_", "covariances_", "precisions_cholesky_")


@final
@dataclass(frozen=True, slots=True)
class _Taken:
    """Rows that were opened and validated, and their weights."""

    given: Rows
    rows: Any
    weights: Any

    @property
    def is_one_block(self) -> bool:
        """Whether they are in memory, and few."""
        if self.given.is_lazy:
            return False
        return len(self.rows) <= block_rows(*self.rows.shape)

    def source(self) -> Source:
        """What a fit reads."""
        return self.given.source(self.rows, self.weights)


def _n_rows(rows: Any) -> float:
    """Rows of an array, or of files; infinity where nobody knows."""
    n = float(rows.shape[0] if hasattr(rows, "shape") else rows.n_rows)
    return math.inf if math.isnan(n) else n


class MixtureBase(Documented, DensityMixin, BaseEstimator):  # type: ignore[misc]
    """A mixture by its attributes: `GaussianMixture`'s are described there."""

    def _taken(self, X: Any, sample_weight: Any, *, reset: bool) -> _Taken:
        """Rows and weights, of whatever kind, opened once and validated."""
        given = open_input(X, self._gaps)
        rows = self._validated(given, reset=reset)
        weights = given.weights(sample_weight)
        if weights is not None and not given.is_lazy:
            weights = _check_sample_weight(
                weights, rows, dtype=np.float64, ensure_non_negative=True
            )
        return _Taken(given, rows, weights)

    @property
    def _gaps(self) -> Gaps:
        return Gaps(self.missing_chunks, self.nan)

    def _validated(self, given: Rows, *, reset: bool) -> Any:
        """Check names and number of features, and make an array of rows in memory."""
        try:
            return self._checked(given, reset=reset)
        except DaskGMMError:
            raise
        except ValueError as error:  # scikit-learn's: its frames say nothing more
            raise DataError(str(error)) from None

    def _checked(self, given: Rows, *, reset: bool) -> Any:
        rows = given.rows
        if given.is_lazy:
            names = given.names
            validate_data(self, names, reset=reset, skip_check_array=True)
            n_features = names.shape[1]
        else:
            if reset or not self._is_plain(rows):
                rows = self._validated_in_memory(rows, reset=reset)
            n_features = rows.shape[1]
        if not reset:
            self._check_n_features(n_features)
        return rows

    def _validated_in_memory(self, rows: Any, *, reset: bool) -> Any:
        if _is_table_of_floats(rows) and len(rows) > 1:
            # Taken as they are: to find that out takes longer than a pass over few.
            if reset:
                self._forget_names(rows.shape[1])
                return rows
            return validate_data(self, rows, reset=False, skip_check_array=True)
        # Blocks are converted one by one, and looked through for NaN: what is more than
        # numbers, such as text, scikit-learn converts.
        is_plain = is_plain_frame(rows) or (
            isinstance(rows, np.ndarray) and rows.dtype.kind in "fiub"
        )
        checked: NDArray[Any] = validate_data(
            self,
            np.ma.getdata(rows) if isinstance(rows, np.ma.MaskedArray) else rows,
            reset=reset,
            dtype=None if is_plain else _FLOATS,
            ensure_all_finite=False,
            ensure_min_samples=2 if reset else 1,
        )
        if isinstance(rows, np.ma.MaskedArray):
            return np.ma.MaskedArray(checked, np.ma.getmaskarray(rows), copy=False)
        return checked

    def _forget_names(self, n_features: int) -> None:
        """Learn of a plain array what scikit-learn does; that it is no table is known.

        It takes longer to find that out than a pass over few rows.
        """
        self.n_features_in_ = n_features
        self.__dict__.pop("feature_names_in_", None)

    def _is_plain(self, rows: Any) -> bool:
        """Whether scikit-learn would take rows as they are, and say nothing.

        It takes longer to find out than to answer for a few rows.
        """
        return bool(
            _is_table_of_floats(rows)
            and not hasattr(self, "feature_names_in_")
            and rows.shape[1] == getattr(self, "n_features_in_", rows.shape[1])
        )

    def _check_n_features(self, n_features: int, why: str = "") -> None:
        """Refuse rows of another number of features than the means have."""
        _, expected = self._shape_of_means()
        if n_features != expected:
            # scikit-learn's words where it knows the number from a fit.
            raise ParameterError(
                f"X has {n_features} features, but {type(self).__name__} is expecting "
                f"{expected} features as input.{why}"
            )

    def __sklearn_is_fitted__(self) -> bool:
        """For `check_is_fitted`, which else goes through the names of all attributes.

        That takes a tenth of a question about a row.
        """
        return any(name in self.__dict__ for name in PARAMETERS)

    def _mixture(self) -> Mixture:
        """The fitted mixture, from the attributes.

        Raises
        ------
        ValueError
            If their shapes do not fit each other, or `covariance_type`.
        """
        shape = SHAPES[self.covariance_type]
        parameters = {
            name: np.asarray(getattr(self, name), dtype=np.float64)
            for name in PARAMETERS
            if hasattr(self, name) or name != "covariances_"
        }
        self._check_shapes(parameters)
        factors = parameters["precisions_cholesky_"]
        # To predict, scikit-learn does without.
        if "covariances_" not in parameters:
            parameters["covariances_"] = shape.covariances_of_factors(factors)
        weights, means, covariances, _ = (parameters[name] for name in PARAMETERS)
        return Mixture(shape, weights, means, covariances, factors)

    def _check_shapes(self, parameters: Mapping[str, NDArray[np.float64]]) -> None:
        means = self._shape_of_means()
        stored = SHAPES[self.covariance_type].stored(*means)
        for name, parameter in parameters.items():
            expected = {"weights_": means[:1], "means_": means}.get(name, stored)
            if parameter.shape != expected:
                raise ParameterError(
                    f"{name} has the shape {parameter.shape}, and must have {expected} "
                    f"where means_ has {means} and covariance_type is "
                    f"{self.covariance_type!r}: attributes or parameters were set that "
                    "do not fit each other. Set them all, or fit again."
                )

    def _shape_of_means(self) -> tuple[int, int]:
        means = np.shape(self.means_)
        if len(means) != 2 or 0 in means:
            raise ParameterError(f"means_ must have the shape (K, d), and has {means}.")
        return means

    def predict(self, X: Any) -> Any:
        """Most probable component of each row.

        Parameters
        ----------
        X : rows of shape (n, d)

        Returns
        -------
        array of int64, shape (n,)
        """
        return self._answer(X, "labels")

    def predict_proba(self, X: Any) -> Any:
        """Responsibility of each component for each row.

        Parameters
        ----------
        X : rows of shape (n, d)

        Returns
        -------
        array of shape (n, K)
        """
        return self._answer(X, "responsibilities")

    def score_samples(self, X: Any) -> Any:
        """Log density of each row.

        Parameters
        ----------
        X : rows of shape (n, d)

        Returns
        -------
        array of shape (n,)
        """
        return self._answer(X, "log_prob")

    def _answer(self, X: Any, kind: Kind) -> Any:
        check_is_fitted(self)
        given = open_input(X, self._gaps)
        rows = self._validated(given, reset=False)
        return given.map(self._question(kind, rows, is_lazy=given.is_lazy), rows)

    def _question(self, kind: Kind, rows: Any, *, is_lazy: bool) -> Question:
        """A question about some rows, as it suits them."""
        single = hasattr(rows, "dtype") and may_be_single(
            self.arithmetic, rows.dtype, _n_rows(rows), *self._shape_of_means()
        )
        return ask(
            self._mixture(),
            kind,
            n_rows=None if is_lazy else len(rows),
            owner=self,
            nan=self.nan,
            single=single,
        )

    def score(self, X: Any, y: None = None, sample_weight: Any = None) -> float:
        """Mean log density of a row.

        Parameters
        ----------
        X : rows of shape (n, d)
        y : ignored
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        float
        """
        found, dtype = self._score(X, sample_weight)
        return float(dtype.type(found.mean))

    def _score(self, X: Any, sample_weight: Any) -> tuple[Score, np.dtype[Any]]:
        """Sum of the rows' log densities, and the dtype that results have."""
        check_is_fitted(self)
        taken = self._taken(X, sample_weight, reset=False)
        question = self._question("log_prob", taken.rows, is_lazy=taken.given.is_lazy)
        if taken.is_one_block:
            rows, weights = taken.rows, taken.weights
            found, dtype = score_block(question, rows, weights), float_dtype(rows.dtype)
        else:
            source = taken.source()
            found, dtype = score(question, source.shards()), source.dtype
            source.check_unchanged()
        if not found.weight > 0:
            raise DataError(_NO_ROWS)
        return found, dtype

    def entropy(self, X: Any, sample_weight: Any = None) -> float:
        """Entropy of the responsibilities: zero where components are apart.

        Parameters
        ----------
        X : rows of shape (n, d)
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        float
            In nats, of all rows together: -Σ Σ r log r.
        """
        return self._fit_to(X, sample_weight).entropy

    def _fit_to(self, X: Any, sample_weight: Any) -> Fit:
        """How well the mixture fits rows, in one pass over them."""
        check_is_fitted(self)
        source = self._taken(X, sample_weight, reset=False).source()
        mixture = self._mixture()
        shards = source.shards()
        [moments] = evaluated(shards, [mixture], check=True)
        if not moments.weight > 0.0:
            raise DataError(_NO_ROWS)
        fit = fit_of(mixture, moments)
        if (look := look_at(mixture, fit)) is not None:
            [refined] = shards.reduce(refine, look_again([look])).runs
            fit = fit_of(mixture, moments, refined)
        source.check_unchanged()
        return fit

    def score_quantile(
        self, X: Any, q: Any, sample_weight: Any = None, *, exact: bool = True
    ) -> Any:
        """Quantiles of the rows' log densities, without a number for each row.

        Parameters
        ----------
        X : rows of shape (n, d)
        q : float, or array-like of floats
            From 0 to 1.
        sample_weight : array-like of shape (n,), default=None
            A row of weight 2 counts as two.
        exact : bool, default=True
            Whether they are as `numpy.quantile` of `score_samples(X)` has them, which
            takes two passes, of over some billions of rows three. Else one pass tells
            between what they lie.

        Returns
        -------
        float or ndarray, as q is; or, if not exact, a `Bracket` or a list of them
            `low` and `high`, between which the row of that rank lies, about a
            thousandth apart, and `rank_error`, how many rows do.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> rows = [[0.0], [1.0], [2.0], [3.0], [10.0]]
        >>> gm = GaussianMixture(1).fit(rows)
        >>> bool(gm.score_quantile(rows, 0.0) == gm.score_samples(rows).min())
        True
        """
        check_is_fitted(self)
        shares = np.asarray(q, dtype=np.float64)
        if shares.ndim > 1 or not ((shares >= 0.0) & (shares <= 1.0)).all():
            raise ParameterError(f"q must be from 0 to 1, or several such, got {q!r}.")
        source = self._taken(X, sample_weight, reset=False).source()
        question = ask(self._mixture(), "log_prob", nan=self.nan)
        rows = Quantiles(question, source.shards())
        if not rows.weight > 0.0:
            raise DataError(_NO_ROWS)
        ranks = np.atleast_1d(shares) * max(rows.weight - 1.0, 0.0)
        found = [] if exact else [rows.bracket(rank) for rank in ranks]
        quantiles = rows.interpolated(ranks) if exact else ranks
        source.check_unchanged()
        if not exact:
            return found if shares.ndim else found[0]
        return quantiles if shares.ndim else float(quantiles[0])

    def compare(self, other: Any, X: Any, sample_weight: Any = None) -> Comparison:
        """Beside another model on the same rows, in one pass over them.

        Parameters
        ----------
        other : fitted mixture of this package
            Of as many features.
        X : rows of shape (n, d)
        sample_weight : array-like of shape (n,), default=None

        Returns
        -------
        Comparison
            `mean` and `other_mean`, the mean log densities of a row; their `difference`
            with its `standard_error`, paired by rows; and `n_rows`, by weight.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> rows = [[0.0], [1.0], [2.0], [8.0], [9.0], [10.0]]
        >>> one, two = (GaussianMixture(k, random_state=0).fit(rows) for k in (1, 2))
        >>> two.compare(one, rows).difference > 0
        True
        """
        check_is_fitted(self)
        if not isinstance(other, MixtureBase):
            raise TypeError(
                "other must be a fitted mixture of this package, and is "
                f"{type(other).__name__}."
            )
        check_is_fitted(other)
        taken = self._taken(X, sample_weight, reset=False)
        other._check_n_features(self._shape_of_means()[1])
        source = taken.source()
        one, two = (
            ask(model._mixture(), "log_prob", nan=self.nan) for model in (self, other)
        )
        found = compare(one, two, source.shards())
        source.check_unchanged()
        if not found.n_rows > 0:
            raise DataError(_NO_ROWS)
        return found

    def sample(
        self, n_samples: int = 1
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Draw rows from the fitted mixture.

        Parameters
        ----------
        n_samples : int, default=1

        Returns
        -------
        X : ndarray of shape (n_samples, d)
        y : ndarray of shape (n_samples,)
            The component of each.
        """
        check_is_fitted(self)
        if not isinstance(n_samples, Integral):
            raise TypeError(f"n_samples must be an integer, got {n_samples!r}.")
        if n_samples < 1:
            raise ParameterError(
                f"Invalid value for 'n_samples': {n_samples}. The sampling requires at "
                "least one sample."
            )
        random_state = check_random_state(self.random_state)
        try:
            return self._mixture().sample(int(n_samples), random_state)
        except (MemoryError, OverflowError) as error:
            raise ParameterError(
                f"{n_samples} rows do not fit into memory: draw fewer, or let the "
                "command `daskgmm sample` write them part by part."
            ) from error


def _is_table_of_floats(rows: Any) -> bool:
    """Whether rows are a plain array such as scikit-learn does not convert."""
    return bool(
        type(rows) is np.ndarray
        and rows.ndim == 2
        and rows.dtype in _FLOATS
        and rows.size > 0
    )
