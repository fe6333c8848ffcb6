"""Locked containers: nothing can be written to, and nobody knows who the user is."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import zarr
from services import ENVIRONMENT, program

from daskgmm import GaussianMixture, load

pytestmark = pytest.mark.cluster

HOMES = {"none": "/nonexistent", "root": "/", "empty": "", "unset": None}
NOT_KEPT = r"took about \d+ s.*Set the environment variable NUMBA_CACHE_DIR"
FIT = """
import json, os, warnings
import dask.array as da
import numpy as np
from daskgmm import GaussianMixture

x = np.random.default_rng(0).normal(size=(1000, 3))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    models = [
        GaussianMixture(2, random_state=0).fit(rows)
        for rows in (x, da.from_array(x, chunks=(100, 3)))
    ]
    labels = models[0].predict(x)
said = [str(warning.message) for warning in said if "daskgmm" in str(warning.message)]
means = [model.means_.tolist() for model in models]
print(json.dumps({"user": os.getuid(), "means": means, "said": said}))
"""


def run(folder, home, *command, read_only=False):
    """Run in a container where all is read-only, but for a folder if that may be."""
    access = "ro" if read_only else "rw"
    mounts = (
        f"mount --bind {folder} {folder} && mount -o remount,ro,bind / && "
        f"mount -o remount,{access},bind {folder} && mount -t tmpfs -o ro none /dev/shm"
    )
    as_nobody = f"{program('unshare')} --user --map-user=12345"
    shell = f'{mounts} && cd / && exec {as_nobody} -- "$@"'
    environment = {**ENVIRONMENT, "NUMBA_CACHE_DIR": "/root/none"}
    if home is not None:
        environment["HOME"] = home
    return subprocess.run(
        [program("unshare"), "--mount", "sh", "-c", shell, "sh", sys.executable]
        + [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize("home", HOMES)
def test_help_is_given(tmp_path, home):
    found = run(tmp_path, HOMES[home], "-m", "daskgmm", "--help")
    assert found.returncode == 0, found.stderr
    assert "Usage: " in found.stdout
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize("home", ["none", "unset"])
def test_a_fit_works_and_says_once_what_to_set(tmp_path, home):
    found = run(tmp_path, HOMES[home], "-c", FIT, read_only=True)
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert told["user"] == 12345
    x = np.random.default_rng(0).normal(size=(1000, 3))
    expected = GaussianMixture(2, random_state=0).fit(x).means_
    for means in told["means"]:
        np.testing.assert_allclose(means, expected, rtol=1e-9)
    (once,) = told["said"]
    assert re.search(NOT_KEPT, once)


def test_the_command_works_and_says_what_to_set(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2000, 3))
    zarr.create_array(str(tmp_path / "rows"), data=rows, chunks=(500, 3))
    names = tmp_path / "rows", tmp_path / "model"
    found = run(tmp_path, "/nonexistent", "-m", "daskgmm", "fit", *names, "-k", "2")
    assert found.returncode == 0, found.stderr
    said = " ".join((found.stdout + found.stderr).split())
    assert said.count("NUMBA_CACHE_DIR") == 1
    assert re.search(NOT_KEPT, said)
    # Workers as processes need a folder to write to.
    assert re.search(r"No worker processes can be started here .* Set TMPDIR", said)
    fitted = load(str(tmp_path / "model"))
    assert fitted.converged_
    assert fitted.score(rows) == pytest.approx(fitted.lower_bound_, abs=1e-2)


def test_a_model_that_cannot_be_written_is_known_before_the_fit(tmp_path):
    rows = np.random.default_rng(0).normal(size=(2000, 3))
    zarr.create_array(str(tmp_path / "rows"), data=rows, chunks=(500, 3))
    names = tmp_path / "rows", tmp_path / "model"
    args = "-m", "daskgmm", "fit", *names, "-k", "2"
    found = run(tmp_path, "/nonexistent", *args, read_only=True)
    assert found.returncode == 1
    assert re.search(
        r"Error: .*/model cannot be used: nothing can be written to .*[rR]ead-only",
        found.stderr,
    )
    assert "pass   1" not in found.stdout + found.stderr
