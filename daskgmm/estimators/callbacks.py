"""scikit-learn's callbacks, where it has them: they are told of each pass as a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from daskgmm.em.progress import Progress

try:  # from version 1.9 on
    from sklearn.callback import CallbackSupportMixin as CallbackSupportMixin
    from sklearn.callback import with_callbacks as with_callbacks
except ImportError:

    class CallbackSupportMixin:  # type: ignore[no-redef]
        """Nothing: this scikit-learn has no callbacks."""

    def with_callbacks(method: Any) -> Any:
        """The method as it is."""
        return method


@final
class Tasks:
    """A fit and its passes, as scikit-learn's callbacks know them.

    Parameters
    ----------
    estimator : estimator
        Whose `fit` begins, before anything of it has changed.
    X, y, sample_weight
        As they were given.
    """

    def __init__(self, estimator: Any, X: Any, y: Any, sample_weight: Any) -> None:
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._about = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._pass: Any = None
        if not getattr(estimator, "_skl_callbacks", None):
            return
        self._fit = estimator._init_callback_context(max_subtasks=estimator.max_iter)
        self._fit.call_on_fit_task_begin(**self._about)
        if estimator.max_iter:
            self._begin()

    def _begin(self) -> None:
        self._pass = self._fit.subcontext(task_name="pass")
        self._pass.call_on_fit_task_begin(**self._about)

    def passed(
        self, progress: Progress, attributes: Callable[[], Mapping[str, Any]]
    ) -> bool:
        """Tell of a pass; whether a callback asks to stop after it.

        Parameters
        ----------
        progress : Progress
        attributes : callable
            What a fit that ended here would set, by name.
        """
        if self._fit is None:
            return False
        stop = self._pass.call_on_fit_task_end(
            **self._about, reconstruction_attributes=attributes
        )
        if progress.n_live and not stop:
            self._begin()
        return bool(stop)

    def ended(self) -> None:
        """Tell that the fit is done."""
        if self._fit is not None:
            self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})
