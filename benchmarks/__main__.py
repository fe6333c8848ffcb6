"""Run the benchmarks, print the table and write it as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import dask
from sklearn.exceptions import ConvergenceWarning

from benchmarks import (
    clusters,
    growth,
    iterations,
    passes,
    peers,
    picture,
    questions,
    rivals,
    search,
    streaming,
)
from benchmarks.common import HEADER, Row, environment, measure_machine

SECTIONS = {
    "iterations": iterations.iterations,
    "restarts": iterations.restarts,
    "small": iterations.small,
    "bayesian": iterations.bayesian,
    "rivals": rivals.rivals,
    "predictions": iterations.predictions,
    "questions": questions.questions,
    "first-pass": iterations.first_pass,
    "few-passes": passes.few_passes,
    "sample-work": passes.sample_work,
    "whole-fits": passes.whole_fits,
    "search": search.search,
    "zarr": streaming.local_stores,
    "parquet": streaming.parquet_files,
    "kept": streaming.kept,
    "slow-store": streaming.slow_store,
    "streamed": clusters.streamed,
    "resident": clusters.resident,
    "workers": clusters.workers,
    "plain-dask": peers.plain_dask,
    "spark": peers.spark,
    "rows": growth.with_rows,
    "components": growth.with_components,
    "many-components": growth.with_many_components,
    "features": growth.with_features,
}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    # Data are larger than memory but where it is said: every pass reads all rows.
    dask.config.set({"daskgmm.cache-memory": 0})
    machine, about = measure_machine(), environment()
    print(about)
    print({name: f"{rate:.3g}" for name, rate in machine.items()})
    print(HEADER)
    options.into.mkdir(parents=True, exist_ok=True)
    target = options.into / "results.json"
    before = json.loads(target.read_text())["rows"] if target.exists() else []
    measured = [(name, row) for name in options.only for row in _run(name, machine)]
    # What was not measured this time stays, each row with its own date.
    kept = [row for row in before if row["of"] not in options.only]
    rows = kept + [
        {"of": name, "date": about["date"], **asdict(row)} for name, row in measured
    ]
    rows.sort(key=lambda row: list(SECTIONS).index(row["of"]))
    target.write_text(json.dumps({**about, "machine": machine, "rows": rows}, indent=1))
    fields = Row.__dataclass_fields__
    drawn = [Row(**{k: v for k, v in row.items() if k in fields}) for row in rows]
    picture.draw(drawn, target.with_suffix(".png"), str(about["date"]))
    print(f"written to {options.into}")


def _run(name: str, machine: dict[str, float]) -> Iterator[Row]:
    for row in SECTIONS[name](machine):
        row.show()
        yield row


if __name__ == "__main__":
    main()
