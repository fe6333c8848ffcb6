"""The package's part of Dask's configuration; `daskgmm.yaml` says what there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import dask
import yaml  # type: ignore[import-untyped]
from dask.utils import parse_bytes, parse_timedelta

dask.config.update_defaults(
    yaml.safe_load(Path(__file__).with_name("daskgmm.yaml").read_text("utf-8"))
)

OPENMP_THREADS: Final = os.environ.get("OMP_NUM_THREADS", "")
"""As it was when the package was imported; Dask may change it for its workers."""


def seconds(name: str) -> float:
    """A time limit."""
    return float(parse_timedelta(dask.config.get(f"daskgmm.{name}"), default="s"))


def size(name: str) -> float:
    """A number of bytes."""
    return float(parse_bytes(dask.config.get(f"daskgmm.{name}")))


def count(name: str) -> int:
    """A number of times."""
    return int(dask.config.get(f"daskgmm.{name}"))
