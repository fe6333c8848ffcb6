"""scikit-learn's callbacks, where it has them: they are told of each pass as a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

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
    most : int or None
        Tasks within, at most; None if that is not known.
    """

    def __init__(
        self, estimator: Any, X: Any, y: Any, sample_weight: Any, most: int | None
    ) -> None:
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        self._about = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._fit: Any = None
        self._pass: Any = None
        if not getattr(estimator, "_skl_callbacks", None):
            return
        self._fit = estimator._init_callback_context(max_subtasks=most)
        self._fit.call_on_fit_task_begin(**self._about)

    def begin_pass(self) -> None:
        """Tell that a pass begins."""
        if self._fit is None:
            return
        self._pass = self._fit.subcontext(task_name="pass")
        self._pass.call_on_fit_task_begin(**self._about)

    def passed(
        self,
        attributes: Callable[[], Mapping[str, Any]] | None = None,
        *,
        goes_on: bool,
    ) -> bool:
        """Tell of a pass; whether a callback asks to stop after it.

        Parameters
        ----------
        attributes : callable, optional
            What a fit that ended here would set, by name.
        goes_on : bool
            Whether there is another pass, as far as that is known.
        """
        if self._fit is None:
            return False
        if self._pass is None:
            self.begin_pass()  # it was not known that there would be one
        stop = self._pass.call_on_fit_task_end(
            **self._about, reconstruction_attributes=attributes
        )
        self._pass = None
        if goes_on and not stop:
            self.begin_pass()
        return bool(stop)

    @contextmanager
    def handed_on(self, model: Any) -> Iterator[None]:
        """Have callbacks told of the fit of a model, as a task of this one."""
        if self._fit is None:
            yield
            return
        task = self._fit.subcontext(task_name="mixture")
        with task.propagate_callback_context(model):
            task.call_on_fit_task_begin(**self._about)
            yield
            task.call_on_fit_task_end(**self._about)

    def ended(self) -> None:
        """Tell that the fit is done."""
        if self._fit is not None:
            self._fit.call_on_fit_task_end(**self._about, reconstruction_attributes={})
