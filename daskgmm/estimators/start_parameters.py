"""Starting parameters that a user gives, checked as scikit-learn checks them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_array

from daskgmm.errors import ParameterError


def given(
    parameter: ArrayLike | None, name: str, shape: tuple[int, ...]
) -> NDArray[np.float64] | None:
    """A user's starting parameter, checked."""
    if parameter is None:
        return None
    if np.ma.is_masked(parameter):
        raise ParameterError(f"The parameter '{name}' has masked entries: fill them.")
    array = check_array(
        parameter,
        dtype=np.float64,
        ensure_2d=False,
        allow_nd=True,
        input_name=f"parameter '{name}'",
    )
    if array.shape != shape:
        raise ParameterError(
            f"The parameter '{name}' should have the shape of {shape}, "
            f"but got {array.shape}"
        )
    # What is made of it is the user's to write to.
    return np.array(array, dtype=np.float64)


def given_weights(
    parameter: ArrayLike | None, n_components: int
) -> NDArray[np.float64] | None:
    """A user's starting weights, checked."""
    weights = given(parameter, "weights", (n_components,))
    if weights is None:
        return None
    if (weights < 0.0).any() or (weights > 1.0).any():
        # scikit-learn's words to the letter: the two values stand swapped in them.
        raise ParameterError(
            "The parameter 'weights' should be in the range [0, 1], but got max value "
            f"{weights.min():.5f}, min value {weights.max():.5f}"
        )
    is_single = np.asarray(parameter).dtype == np.float32
    if abs(1.0 - weights.sum()) > (1e-6 if is_single else 1e-8):
        raise ParameterError(
            "The parameter 'weights' should be normalized, but got sum(weights) = "
            f"{weights.sum():.5f}"
        )
    return weights
