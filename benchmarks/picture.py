"""The table as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.common import Row

_OURS, _PEER, _GREY = "#0b7285", "#e8590c", "#868e96"


def draw(rows: list[Row], path: Path, caption: str) -> None:
    """Write the picture as PNG."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8.5), layout="constrained")
    of = {row.section: [r for r in rows if r.section == row.section] for row in rows}
    _ratios(axes[0, 0], of.get("iteration", []))
    _growth(axes[0, 1], of.get("rows", []), "rows (d = 2, K = 3)")
    _growth(axes[0, 2], of.get("features", []), "features (K = 8)", per_row=True)
    _growth(axes[1, 0], of.get("components", []), "components (d = 8)", per_row=True)
    chunks = [row for row in of.get("2 workers", []) if row.size]
    _growth(axes[1, 1], chunks, "chunks of the same rows, persisted on 2 workers")
    _peers(axes[1, 2], of.get("Spark", []) + of.get("plain Dask", []))
    figure.suptitle(f"daskgmm: an EM iteration on two cores  ({caption})")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _bars(axis: Any, rows: list[Row], label: Callable[[Row], str], title: str) -> None:
    names = [label(row) for row in rows][::-1]
    ratios = [row.ratio or 0.0 for row in rows][::-1]
    bars = axis.barh(names, ratios, color=_OURS)
    axis.bar_label(bars, [f" {ratio:.1f}x" for ratio in ratios])
    axis.margins(x=0.15)
    axis.set_title(title)
    axis.spines[["top", "right"]].set_visible(False)


def _ratios(axis: Any, rows: list[Row]) -> None:
    _bars(
        axis, rows, lambda row: row.case.split(",")[0], "times faster than scikit-learn"
    )
    for i, row in enumerate(rows[::-1]):
        target = float(row.target.split()[-1])
        axis.plot([target, target], [i - 0.4, i + 0.4], color=_PEER)


def _peers(axis: Any, rows: list[Row]) -> None:
    def label(row: Row) -> str:
        return "\n".join([row.section, *row.case.split(", ", 1)])

    _bars(axis, rows, label, "times faster than")


def _growth(axis: Any, rows: list[Row], label: str, *, per_row: bool = False) -> None:
    sizes = [row.size for row in rows]

    def scaled(row: Row, seconds: float) -> float:
        n_rows = int(row.case.split(", ")[-1].split()[0]) if per_row else 1
        return seconds / n_rows

    axis.loglog(sizes, [scaled(r, r.seconds) for r in rows], "o-", color=_OURS)
    theirs = [
        (r.size, scaled(r, s)) for r in rows for n, s in r.peers.items() if "sc" in n
    ]
    if theirs:
        axis.loglog(*zip(*theirs, strict=True), "s-", color=_PEER)
    floors = [(r.size, scaled(r, r.floor)) for r in rows if r.floor]
    if floors:
        axis.loglog(*zip(*floors, strict=True), ":", color=_GREY)
    if rows and not (theirs or floors):
        seconds = [row.seconds for row in rows]
        axis.set_ylim(min(seconds) / 3, 3 * max(seconds))
    axis.set_xlabel(label)
    axis.set_ylabel("seconds a row" if per_row else "seconds")
    names = ["daskgmm", *(["scikit-learn"] if theirs else [])]
    axis.legend([*names, *(["the machine's limit"] if floors else [])], frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
