"""``daskgmm demo``."""

from __future__ import annotations

from pathlib import Path

import click

from daskgmm.cli.work.report import Report
from daskgmm.demo import run as demonstration


def demo(folder: Path, gigabytes: float, seed: int, keep: bool, as_json: bool) -> None:
    """See the command."""
    report = Report(as_json=as_json)
    if not demonstration.run(folder, gigabytes, seed, keep, report.console):
        raise click.ClickException("The demo did not go as it should have.")
    report.end(folder=str(folder), gigabytes=gigabytes, seed=seed, passed=True)
