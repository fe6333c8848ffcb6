"""`daskgmm predict --outliers`: the rows of lowest density, in Zarr and Parquet."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from conftest import blobs, create_zarr

from daskgmm import GaussianMixture

SHARE = 0.03


@pytest.fixture
def made(tmp_path):
    x = blobs(0, 900, 2, 2)
    model = GaussianMixture(2, random_state=0).fit(x)
    model.save(tmp_path / "model.zarr")
    named = pd.DataFrame(x, columns=["x", "y"])
    GaussianMixture(2, random_state=0).fit(named).save(tmp_path / "named.zarr")
    create_zarr(tmp_path / "rows.zarr", x, chunks=(200, 2))
    table = pa.table({"id": np.arange(900), "x": x[:, 0], "y": x[:, 1]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=250)
    scores = model.score_samples(x)
    return tmp_path, np.where(scores >= np.quantile(scores, SHARE), 1, -1)


def test_labels_of_zarr(run, made):
    folder, expected = made
    out = folder / "out.zarr"
    command = ("predict", folder / "model.zarr", folder / "rows.zarr", out)
    done = run(*command, "--outliers", SHARE)
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(zarr.open_array(out)[:], expected)
    # It is complete, and another one is not written over it unasked.
    assert "complete" in run("info", out, scheduler=False).output
    again = run(*command, "--outliers", 0.2)
    assert again.exit_code == 1
    assert "--overwrite" in again.output


def test_labels_of_parquet(run, made):
    folder, expected = made
    out = folder / "out.parquet"
    done = run(
        *("predict", folder / "named.zarr", folder / "rows.parquet", out),
        *("--columns", "x,y", "--key", "id", "--outliers", SHARE),
    )
    assert done.exit_code == 0, done.output
    found = pq.read_table(out).to_pandas().sort_values("id")
    assert [*found.columns] == ["id", "label"]
    np.testing.assert_array_equal(found["label"], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--outliers", "0.1", "--kind", "proba"), "does not go with --kind proba"),
        (("--outliers", "0"), "--outliers"),
        (("--outliers", "0.7"), "--outliers"),
    ],
)
def test_what_does_not_go_is_refused(run, made, options, message):
    folder, _ = made
    out = folder / "out.zarr"
    done = run("predict", folder / "model.zarr", folder / "rows.zarr", out, *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not out.exists()
