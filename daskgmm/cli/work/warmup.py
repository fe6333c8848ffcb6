"""``daskgmm warmup``."""

from __future__ import annotations

from time import perf_counter

import click
import numpy as np

from daskgmm import steps
from daskgmm.cli.work.report import Report
from daskgmm.display.words import seconds
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows


def warmup() -> None:
    """See the command."""
    said: list[object] = []
    began = perf_counter()
    with Report(as_json=False).steps(said.append):
        passes.first_not_finite(as_rows(np.zeros((1, 1))))
    time = seconds(perf_counter() - began)
    compiled = any(isinstance(step, steps.Step) and step.name for step in said)
    click.echo(f"Compiled in {time}." if compiled else "It was compiled before.")
