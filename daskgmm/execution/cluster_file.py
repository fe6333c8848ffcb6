"""Cluster files as they are written, read without Dask, which is slow to load."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]

from daskgmm.errors import ParameterError

SECTIONS: Final = ("arguments", "scale", "adapt", "security", "dask")
"""What a cluster file may have besides its class; see `deploy.Deployment`."""


def content_of(file: Path) -> dict[str, Any]:
    """What a cluster file says, by section.

    Raises
    ------
    ParameterError
        If it is no YAML, names no class, or has something else; it names file and key.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{file} is no YAML: {error}") from error
    known = {"cluster", *SECTIONS}
    if not isinstance(content, dict) or not isinstance(content.get("cluster"), str):
        raise ParameterError(
            f"{file}: cluster: name a class such as distributed.LocalCluster. A "
            f"cluster file has {listed(known)}."
        )
    if unknown := {str(key) for key in content} - known:
        raise ParameterError(f"{file}: {min(unknown)}: known are {listed(known)}.")
    # A section with nothing below it is None in YAML.
    return {key: value for key, value in content.items() if value is not None}


def listed(names: set[str]) -> str:
    """Names in a row."""
    return ", ".join(sorted(names))
