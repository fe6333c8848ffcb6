"""The package's exceptions."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from types import TracebackType
from typing import Final


class DaskGMMError(Exception):
    """Base class of the errors that are this package's own."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: the lines that asked, and the message.

        That says what is wrong and what to do; where it was found says nothing more.
        """
        frames = traceback.extract_tb(self.__traceback__)
        inside = [_HERE in frame.filename for frame in frames]
        asked = frames[: inside.index(True)] if any(inside) else frames
        lines = [frame for frame in asked if not _BETWEEN.search(frame.filename)]
        said = traceback.format_exception_only(self)
        return "".join([*traceback.format_list(lines), *said]).splitlines()


_HERE: Final = os.path.dirname(__file__)
_BETWEEN: Final = re.compile(r"[/\\](IPython|ipykernel|sklearn)[/\\]")


class CheckpointError(DaskGMMError, ValueError):
    """A checkpoint is of another fit: the message says what differs."""


class ClusterError(DaskGMMError, RuntimeError):
    """The cluster lost its workers or its scheduler: the message says what to do."""


class DataError(DaskGMMError, ValueError):
    """The data cannot be used as they are: the message names the place."""


class InterruptedFit(KeyboardInterrupt):
    """A fit was interrupted: the message says what was kept of it.

    Attributes
    ----------
    checkpoint : str or None
        From which the same fit resumes, if a state was kept.
    unwritten : str or None
        The checkpoint to which no state had been written yet.
    """

    def __init__(
        self,
        message: str,
        checkpoint: str | None = None,
        unwritten: str | None = None,
    ) -> None:
        super().__init__(message)
        self.checkpoint, self.unwritten = checkpoint, unwritten

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: whoever stopped it knows where."""
        return [f"Interrupted: {self}"]


_INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status of what Ctrl-C ended, by the custom of shells."""


def show_interrupts_quietly() -> None:
    """Have Python show an interrupted fit in a line, unless others show its errors."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _show


def _show(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What a script that is interrupted ends with: a line, as a notebook's cell."""
    if not isinstance(error, InterruptedFit):
        sys.__excepthook__(kind, error, trace)
        return
    print(f"\nInterrupted: {error}", file=sys.stderr)
    if not hasattr(sys, "ps1"):  # nobody types: those who started it see the status
        raise SystemExit(_INTERRUPTED)


class IllDefinedCovarianceError(DaskGMMError, ValueError):
    """A covariance is not positive definite.

    The message names the components, and a reg_covar with which it would be.
    """


class ModelFileError(DaskGMMError, ValueError):
    """A saved model is missing, damaged or of a version not known here."""


class MissingLibraryError(DaskGMMError, ImportError):
    """A library is not installed: the message says how to install it."""


class NewerFormatError(ModelFileError):
    """A saved model or checkpoint was written by a newer version of the package."""


class ParameterError(DaskGMMError, ValueError):
    """A parameter, or the name of a place, is none: the message says what to give."""


class PlaceError(DaskGMMError, FileExistsError):
    """Something is at a place that must not be written to: the message says what."""


class SkippedRowsWarning(UserWarning):
    """Rows with NaN were left out of a fit, as ``nan='skip'`` says."""


class StoreError(DaskGMMError, OSError):
    """A store of data is missing, or cannot be read: the message names the chunk."""
