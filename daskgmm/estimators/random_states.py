"""The random state of a fit: one that is at hand, seeded anew, or the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Final

import numpy as np
from sklearn.utils import check_random_state

_at_hand: Final[list[np.random.RandomState]] = []
"""Those that nobody uses: whoever takes one takes it out of here."""


@contextmanager
def random_state_of(
    seed: int | np.random.RandomState | None,
) -> Iterator[np.random.RandomState]:
    """What scikit-learn's `check_random_state` gives, for as long as a fit lasts.

    NumPy takes as long to make one as a pass over few rows; to seed one takes nothing.
    """
    if not isinstance(seed, Integral):
        yield check_random_state(seed)
        return
    try:
        random_state = _at_hand.pop()
    except IndexError:
        random_state = np.random.RandomState()
    random_state.seed(int(seed))
    yield random_state
    _at_hand.append(random_state)
