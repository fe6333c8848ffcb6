"""Models that were saved, and what a fit tells of its passes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from sklearn import mixture
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from daskgmm.data.columns import as_table
from daskgmm.em.progress import as_columns
from daskgmm.errors import ModelFileError
from daskgmm.estimators.bayesian import BayesianGaussianMixture
from daskgmm.estimators.gaussian import GaussianMixture
from daskgmm.estimators.trained import TrainedMixture
from daskgmm.storage import models

_KINDS: Final[dict[str, type[TrainedMixture]]] = {
    kind.__name__: kind for kind in (GaussianMixture, BayesianGaussianMixture)
}


def load(url: str) -> TrainedMixture:
    """Read a model that its method `save` wrote.

    Parameters
    ----------
    url : str or path

    Returns
    -------
    GaussianMixture or BayesianGaussianMixture
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
    if saved.kind not in _KINDS:
        names = " or ".join(f"a {name}" for name in _KINDS)
        raise ModelFileError(f"{url} holds a {saved.kind}, not {names}.")
    model = _KINDS[saved.kind](**saved.parameters)
    for name, value in saved.fitted.items():
        setattr(model, name, model._as_fitted(name, value))
    return model


def history(model: TrainedMixture) -> Any:
    """What each pass of a fit found, as a table.

    Parameters
    ----------
    model : GaussianMixture or BayesianGaussianMixture
        Fitted.

    Returns
    -------
    pandas.DataFrame
        Of `history_`: a row for each pass and each run that took part in it.

    Raises
    ------
    TypeError
        If it is no mixture. Of a search, `results_` has what became of candidates.
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
    check_is_mixture(model, "history")
    return as_table(getattr(model, "history_", as_columns(np.empty((0, 7)))))


def check_is_mixture(model: Any, function: str) -> None:
    """Raise an error where a model is not fitted, or is no mixture."""
    if isinstance(model, BaseEstimator):
        check_is_fitted(model)
    if isinstance(model, TrainedMixture):
        return
    holds = [name for name in ("best_estimator_", "estimator_") if hasattr(model, name)]
    advice = f": its {holds[0]} is one" if holds else ""
    if isinstance(model, mixture.GaussianMixture | mixture.BayesianGaussianMixture):
        kind = type(model).__name__
        advice = f" of scikit-learn: pass daskgmm.{kind}.from_sklearn(model)"
    raise TypeError(
        f"{function} takes a fitted mixture, not a {type(model).__name__}{advice}."
    )
