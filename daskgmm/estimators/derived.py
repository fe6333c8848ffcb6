"""What can be made of a fitted mixture: parts of it, and how far apart they are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.inputs import Rows, open_input
from daskgmm.em.predict import ask
from daskgmm.em.regression import Regression, RegressionQuestion
from daskgmm.errors import ParameterError
from daskgmm.estimators.base import MixtureBase
from daskgmm.mixtures import parts
from daskgmm.mixtures.gaussian import Mixture

Features = str | int | Sequence[str] | Sequence[int]


class DerivedMixtures(MixtureBase):
    """Other mixtures that follow from one, and how far apart its components are."""

    def _plain_mixture(self) -> Mixture:
        """Weights, means and covariances as the attributes have them."""
        return MixtureBase._mixture(self)

    @abstractmethod
    def _made_of(self, mixture: Mixture, names: Any) -> MixtureBase:
        """A fitted `GaussianMixture`, for features of these names or None."""

    def marginal(self, features: Features) -> MixtureBase:
        """The mixture of some features.

        Parameters
        ----------
        features : int, str, or sequence of them
            Numbers of features, from 0, or their names.

        Returns
        -------
        GaussianMixture
            Fitted: its features are those, in that order.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> gm = GaussianMixture(1).fit([[0.0, 1.0], [1.0, 5.0], [5.0, 3.0]])
        >>> gm.marginal(1).means_
        array([[3.]])
        """
        check_is_fitted(self)
        places = self._places(features)
        mixture = parts.marginal(self._plain_mixture(), places)
        return self._made_of(mixture, self._names(places))

    def conditional(self, features: Features, values: ArrayLike) -> MixtureBase:
        """The mixture of the other features, where some have these values.

        Parameters
        ----------
        features : int, str, or sequence of them
            Numbers of the features that are given, from 0, or their names.
        values : float, or array-like of shape (m,)
            Their values.

        Returns
        -------
        GaussianMixture
            Fitted: its features are the others, in their order.

        Examples
        --------
        >>> from daskgmm import GaussianMixture
        >>> gm = GaussianMixture(1).fit([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
        >>> gm.conditional(0, 3.0).means_.round(3)
        array([[7.]])
        """
        check_is_fitted(self)
        places = self._places(features)
        mixture, others = self._plain_mixture(), self._others(places, features)
        given: NDArray[np.float64] = check_array(
            np.atleast_1d(np.asarray(values)),
            dtype=np.float64,
            ensure_2d=False,
            input_name="values",
        )
        if given.shape != places.shape:
            raise ParameterError(
                f"values must have one number for each of {len(places)} features, and "
                f"have the shape {given.shape}."
            )
        found = parts.Conditional.of(mixture, places).at(given)
        return self._made_of(found, self._names(others))

    def predict_conditional(
        self, X: Any, features: Features | None = None
    ) -> Regression:
        """What the other features of rows are, given some: mixture regression.

        Parameters
        ----------
        X : rows of shape (n, m)
            Of any kind that `fit` takes, with the features that are given alone, in
            their order.
        features : int, str, or sequence of them, default=None
            Numbers of these features, from 0, or their names; by default the names of
            X's columns.

        Returns
        -------
        Regression
            `mean`, (n, u), and `covariance`, (n, u, u), of the other features in their
            order, and `log_density`, (n,), of what is given. Of X's kind, and lazy if
            it is.

        Examples
        --------
        >>> import numpy as np
        >>> from daskgmm import GaussianMixture
        >>> x = np.linspace(0, 6, 1000)
        >>> rows = np.column_stack([x, np.sin(x)])
        >>> gm = GaussianMixture(8, random_state=0).fit(rows)
        >>> found = gm.predict_conditional([[1.0], [4.0]], features=0)
        >>> found.mean.round(1)
        array([[ 0.8],
               [-0.7]])
        """
        check_is_fitted(self)
        given = open_input(X, self._gaps)
        places = self._places(self._names_of(given) if features is None else features)
        mixture = self._plain_mixture()
        others = self._others(places, features)
        of_given = self._made_of(parts.marginal(mixture, places), self._names(places))
        rows = of_given._validated(given, reset=False)
        names = self._names(others)
        labels = None if names is None else tuple(map(str, names))
        shares = ask(of_given._mixture(), "responsibilities", nan=self.nan)
        conditional = parts.Conditional.of(mixture, places)

        def asked(wanted: Literal["mean", "covariance"]) -> Any:
            question = RegressionQuestion(shares, conditional, wanted, labels, self.nan)
            return given.map(question, rows)

        log_density = of_given._question("log_prob", rows, is_lazy=given.is_lazy)
        return Regression(
            asked("mean"), asked("covariance"), given.map(log_density, rows)
        )

    def _names_of(self, given: Rows) -> list[str]:
        """Names of the features that rows have."""
        names = getattr(given.names, "columns", None)
        if names is None or not hasattr(self, "feature_names_in_"):
            raise ParameterError(
                "features must be given, as X has no names of features, or the mixture "
                "knows none: numbers of the features that X has, such as features=[0]."
            )
        return list(names)

    def _others(self, places: NDArray[np.intp], features: Any) -> NDArray[np.intp]:
        """Numbers of the other features."""
        n_features = self._plain_mixture().n_features
        if len(places) == n_features:
            raise ParameterError(
                f"features={features!r} are all features: none is left to be asked "
                "about."
            )
        return np.setdiff1d(np.arange(n_features), places)

    def kl_divergence(self) -> NDArray[np.float64]:
        """Kullback and Leibler's divergence of each component from each other.

        Returns
        -------
        ndarray of shape (K, K)
            In nats: of component i from component j at [i, j].
        """
        check_is_fitted(self)
        return parts.kl_divergences(self._plain_mixture())

    def bhattacharyya(self) -> NDArray[np.float64]:
        """Bhattacharyya's distance of each two components.

        Returns
        -------
        ndarray of shape (K, K)
            In nats: exp of minus it is the integral of the root of the product of both
            densities, one where they are the same.
        """
        check_is_fitted(self)
        return parts.bhattacharyya_distances(self._plain_mixture())

    def merge_components(self, n_components: int) -> tuple[MixtureBase, float]:
        """A mixture of fewer components, those joined that lose least.

        Two at a time become one of their mean and covariance, by the bound of Runnalls
        (2007) on what that loses.

        Parameters
        ----------
        n_components : int
            How many are left.

        Returns
        -------
        model : GaussianMixture
            Fitted; full where the covariance was tied, as it is not the same any more.
        loss : float
            The divergence of the old density from the new one, in nats, is no more.
        """
        check_is_fitted(self)
        mixture = self._plain_mixture()
        if not isinstance(n_components, Integral) or not (
            1 <= n_components <= mixture.n_components
        ):
            raise ParameterError(
                "n_components must be a whole number from 1 to "
                f"{mixture.n_components}, as many as there are, got {n_components!r}."
            )
        found, loss = parts.merged(mixture, int(n_components))
        return self._made_of(found, self._names(np.arange(mixture.n_features))), loss

    def _names(self, places: NDArray[np.intp]) -> Any:
        names = getattr(self, "feature_names_in_", None)
        return None if names is None else names[places]

    def _places(self, features: Any) -> NDArray[np.intp]:
        """Numbers of features, each once."""
        several = not isinstance(features, str | Integral) and np.iterable(features)
        given = list(features) if several else [features]
        places = [self._place(feature) for feature in given]
        if not places or len(set(places)) < len(places):
            raise ParameterError(
                f"features must be one or more features, each once, got {features!r}."
            )
        return np.array(places, dtype=np.intp)

    def _place(self, feature: Any) -> int:
        n_features = self._plain_mixture().n_features
        names = list(getattr(self, "feature_names_in_", ()))
        if isinstance(feature, str) and feature in names:
            return names.index(feature)
        is_number = isinstance(feature, Integral) and not isinstance(feature, bool)
        if is_number and 0 <= feature < n_features:
            return int(feature)
        known = f" or one of the names {', '.join(names)}" if names else ""
        raise ParameterError(
            f"There is no feature {feature!r}: features are numbers from 0 to "
            f"{n_features - 1}{known}."
        )
