"""What a user should be told once, wherever it comes up."""

from __future__ import annotations

import warnings

from distributed import get_worker


def notify(message: str) -> None:
    """Warn the user: on a worker, in the processes of its clients."""
    try:
        worker = get_worker()
    except ValueError:
        warnings.warn(message, stacklevel=2)
    else:
        worker.log_event("warn", message)
