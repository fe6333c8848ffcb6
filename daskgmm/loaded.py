"""Classes of libraries that may not be loaded: asked of, without loading them."""

from __future__ import annotations

import sys
from typing import Any


def is_a(value: Any, module: str, *names: str) -> bool:
    """Whether a value is of a class of a module; whoever made it has loaded that."""
    loaded = sys.modules.get(module)
    # A name may be missing while another thread still imports the module.
    classes = [getattr(loaded, name, None) for name in names]
    return isinstance(value, tuple(c for c in classes if c is not None))
