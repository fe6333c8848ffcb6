"""Fits that break off go on from their checkpoint, and end with the same bits."""

from __future__ import annotations

import json
import shutil
import sys
from copy import deepcopy
from dataclasses import replace

import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from conftest import blobs, create_zarr, random_mixture
from services import kill_until_done
from sklearn.exceptions import ConvergenceWarning
from stored import Reader

from daskgmm import GaussianMixture, load
from daskgmm.data.sources import open_source
from daskgmm.em.acceleration import Sampling
from daskgmm.em.checkpoint import FORMAT, Checkpoint
from daskgmm.em.interval import Interval, parse_interval
from daskgmm.em.scan import survey
from daskgmm.em.state import Run, State, Status
from daskgmm.errors import CheckpointError, IllDefinedCovarianceError, ModelFileError
from daskgmm.storage import models

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

FITTED = (
    "weights_",
    "means_",
    "covariances_",
    "precisions_cholesky_",
    "lower_bound_",
    "lower_bounds_",
    "n_iter_",
    "n_passes_",
    "converged_",
    "remaining_gain_",
)


SAMPLED = Sampling(100, 100)


class Broken(Exception):
    """What ends a fit before its time."""


def assert_same(got, expected):
    for name in FITTED:
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))


def break_off(model, X, place, after, interval=1, sample_weight=None):
    """Fit, but let nothing go on after a pass."""

    def observe(progress):
        if progress.n_pass == after:
            raise Broken

    with pytest.raises(Broken):
        model.fit(
            X,
            sample_weight=sample_weight,
            callback=observe,
            checkpoint=place,
            checkpoint_interval=interval,
        )


def model(covariance_type="full", **parameters):
    return GaussianMixture(
        3,
        covariance_type=covariance_type,
        **{"n_init": 3, "random_state": 0, "tol": 1e-6, "max_iter": 25, **parameters},
    )


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("after", [1, 4])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_fit_goes_on_with_the_same_bits(
    tmp_path, covariance_type, after, lazy, accelerate
):
    def model_of():
        return model(covariance_type, accelerate=accelerate, init_size=200)

    x = blobs(0, 3000, 3, 3, spread=1.5)
    rows = da.from_array(x, chunks=(400, 3)) if lazy else x
    weights = np.random.default_rng(0).random(3000)
    expected = model_of().fit(rows, sample_weight=weights)
    break_off(model_of(), rows, tmp_path, after, sample_weight=weights)
    resumed = model_of()
    passes = []
    resumed.fit(
        rows,
        sample_weight=weights,
        callback=lambda p: passes.append(p.n_pass),
        checkpoint=tmp_path,
        checkpoint_interval=1,
    )
    assert passes[0] == after + 1
    assert_same(resumed, expected)


LONGER = {
    "a larger max_iter": ({"max_iter": 3}, {}),
    "a lower tol": ({"tol": 1e-2}, {}),
    "both": ({"max_iter": 3, "tol": 1e-3}, {}),
}


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize("change", LONGER)
def test_a_longer_fit_goes_on_with_the_same_bits(
    tmp_path, covariance_type, change, accelerate
):
    x = blobs(0, 3000, 3, 3, spread=1.5)
    shorter, longer = LONGER[change]
    common = {"accelerate": accelerate, "init_size": 200}
    expected = model(covariance_type, **common, **longer).fit(x)
    first = model(covariance_type, **common, **shorter).fit(x, checkpoint=tmp_path)
    assert first.n_passes_ < expected.n_passes_
    passes = []
    resumed = model(covariance_type, **common, **longer)
    resumed.fit(x, checkpoint=tmp_path, callback=lambda p: passes.append(p.n_pass))
    assert passes[0] == first.n_passes_ + 1
    for name in FITTED:
        if name != "n_passes_":  # a restart that had ended goes on later
            np.testing.assert_array_equal(
                getattr(resumed, name), getattr(expected, name)
            )
    # The way back is another fit.
    with pytest.raises(CheckpointError, match=next(iter(shorter))):
        model(covariance_type, **common, **shorter).fit(x, checkpoint=tmp_path)


def test_more_restarts_train_alone(tmp_path):
    x = blobs(0, 3000, 3, 3, spread=1.5)
    first = model(n_init=2).fit(x, checkpoint=tmp_path)
    live = []
    more = model(n_init=4)
    more.fit(x, checkpoint=tmp_path, callback=lambda p: live.append(p.n_live))
    assert max(live) <= 2
    assert len(live) < first.n_passes_ + more.n_passes_
    expected = model(n_init=4).fit(x)
    for name in ("weights_", "means_", "covariances_", "lower_bounds_"):
        np.testing.assert_array_equal(getattr(more, name), getattr(expected, name))


def test_plain_em_goes_on_accelerated(tmp_path, covariance_type):
    x = blobs(0, 3000, 3, 3, spread=1.5)
    plain = model(covariance_type, n_init=1, accelerate=False)
    break_off(plain, x, tmp_path, after=2)
    bounds = []
    ours = model(covariance_type, n_init=1, accelerate=True, init_size=200)
    ours.fit(x, checkpoint=tmp_path, callback=lambda p: bounds.append(p.bound))
    plain.fit(x)
    assert ours.lower_bounds_[:3] == plain.lower_bounds_[:3]
    assert len(ours.lower_bounds_) == len(bounds) + 2
    assert ours.n_iter_ < plain.n_iter_
    with pytest.raises(CheckpointError, match="accelerate was True and is False"):
        plain.fit(x, checkpoint=tmp_path)


@pytest.mark.parametrize("seed", [0, np.random.RandomState(0)])
@pytest.mark.usefixtures("nothing_kept")
def test_a_fit_that_goes_on_reads_once_before_its_passes(tmp_path, seed):
    """Its rows are drawn in the read that makes sure of the data."""
    x = blobs(0, 3000, 3, 3, spread=1.5)
    parameters = {"accelerate": True, "init_size": 200, "random_state": seed}
    state, reader, passes = deepcopy(seed), Reader(x, 500), []
    first = model(n_init=1, max_iter=2, **parameters)
    first.fit(reader.array(), checkpoint=tmp_path)
    reader.counts[:] = 0
    parameters["random_state"] = state
    model(n_init=1, max_iter=4, **parameters).fit(
        reader.array(), checkpoint=tmp_path, callback=passes.append
    )
    assert passes[0].n_pass == first.n_passes_ + 1
    assert (reader.counts == 1 + len(passes)).all()


def test_what_collapsed_at_last_is_not_gone_on_from(tmp_path):
    """A fit that had the larger max_iter from the start would have ended there."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 2)) + rng.integers(0, 3, size=(60, 1)) * 3
    one = GaussianMixture(
        6, covariance_type="spherical", reg_covar=0, random_state=2, tol=0
    )

    def fails_at(max_iter, **parameters):
        with pytest.raises(IllDefinedCovarianceError) as raised:
            one.set_params(max_iter=max_iter).fit(x, **parameters)
        return str(raised.value)

    error = fails_at(100)
    kept = 0
    for kept in range(1, 100):  # the last one that scikit-learn would keep
        try:
            one.set_params(max_iter=kept + 1).fit(x)
        except IllDefinedCovarianceError:
            break
    one.set_params(max_iter=kept).fit(x, checkpoint=tmp_path)
    passes = []
    assert fails_at(100, checkpoint=tmp_path, callback=passes.append) == error
    assert passes == []


def test_the_warning_says_that_a_longer_fit_goes_on(tmp_path):
    x = blobs(0, 3000, 3, 3, spread=1.5)
    with pytest.warns(ConvergenceWarning, match="larger max_iter, fit resumes from"):
        model(max_iter=2).fit(x, checkpoint=tmp_path)
    with pytest.warns(ConvergenceWarning) as caught:
        model(max_iter=2).fit(x)
    assert "resumes" not in str(caught[0].message)


def test_what_was_ended_is_not_done_again(tmp_path):
    x = blobs(1, 2000, 2, 3)
    first = model().fit(x, checkpoint=tmp_path)
    again, passes = model(), []
    again.fit(x, sample_weight=None, callback=passes.append, checkpoint=tmp_path)
    assert passes == []
    assert_same(again, first)


@pytest.mark.parametrize(("interval", "first"), [("1us", 5), ("1 hour", 1)])
def test_a_state_is_written_once_its_time_is_over(tmp_path, interval, first):
    x = blobs(2, 2000, 2, 3, spread=1.5)
    break_off(model(), x, tmp_path, after=4, interval=interval)
    passes = []
    model().fit(x, callback=lambda p: passes.append(p.n_pass), checkpoint=tmp_path)
    assert passes[0] == first


def resume(x, place, interval):
    """A fit that goes on from a checkpoint, and the number of its first pass."""
    resumed, passes = model(), []
    resumed.fit(
        x,
        callback=lambda p: passes.append(p.n_pass),
        checkpoint=place,
        checkpoint_interval=interval,
    )
    return resumed, passes[0]


def test_passes_since_the_last_state_are_done_again(tmp_path):
    x = blobs(2, 2000, 2, 3, spread=1.0)
    expected = model().fit(x)
    break_off(model(), x, tmp_path, after=5, interval=3)
    resumed, first_pass = resume(x, tmp_path, interval=3)
    assert first_pass == 4
    assert_same(resumed, expected)


def test_the_users_random_state_goes_on_too(tmp_path):
    x = blobs(3, 2000, 2, 3)
    expected = model(random_state=np.random.RandomState(5)).fit(x).sample(10)[0]
    break_off(model(random_state=np.random.RandomState(5)), x, tmp_path, after=2)
    resumed = model(random_state=np.random.RandomState(5)).fit(x, checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.sample(10)[0], expected)


def test_every_kind_of_run_is_kept(tmp_path, covariance_type):
    mixture = random_mixture(np.random.default_rng(4), covariance_type, 3, 2)
    runs = (
        Run(None, Status.FAILED, error="ill-defined from the start"),
        Run(mixture, Status.TRAINING, (-5.0, -4.5), previous=-6.0),
        Run(mixture, Status.FAILED, (-5.0,), error="a singleton – collapsed"),
        Run(mixture, Status.CONVERGED, (-5.0, -np.inf, np.nan)),
        Run(mixture),
    )
    state = State(runs, 7, np.random.RandomState(3), np.random.RandomState(4))
    found = survey(open_source(blobs(0, 50, 2, 3)).shards(), digest=True)

    def keeper():
        return Checkpoint(tmp_path, Interval(1, None), {"n_components": 3})

    first = keeper()
    assert first.recall(found, SAMPLED) is None
    first.keep(state, at_once=True)
    got = keeper().recall(found, SAMPLED)
    assert got.n_passes == 7
    for kept, seed in ((got.random_state, 3), (got.before_draw, 4)):
        assert kept.randint(10**6) == np.random.RandomState(seed).randint(10**6)
    for run, expected in zip(got.runs, runs, strict=True):
        assert (run.status, run.error) == (expected.status, expected.error)
        assert run.previous == expected.previous
        np.testing.assert_array_equal(run.bounds, expected.bounds)
        assert (run.parameters is None) == (expected.parameters is None)
        for name in ("weights", "means", "covariances", "factors"):
            if run.parameters is not None:
                np.testing.assert_array_equal(
                    getattr(run.parameters, name), getattr(mixture, name)
                )


def _keeper(tmp_path):
    return Checkpoint(tmp_path, Interval(1, None), {"tol": 0.0})


def test_runs_of_any_shape_and_memory_are_kept(tmp_path):
    rng = np.random.default_rng(4)
    kinds = (("full", 3), ("tied", 2), ("diag", 5), ("spherical", 1))
    mixtures = [random_mixture(rng, name, k, 2) for name, k in kinds]
    memory = {"path.of.means": rng.normal(size=(2, 3)), "labels": np.arange(4)}
    runs = (
        *map(Run, mixtures),
        Run(None, Status.FAILED, error="ill-defined"),
        Run(mixtures[2], bounds=(-3.0,), memory=memory),
    )
    found = survey(open_source(blobs(0, 50, 2, 3)).shards(), digest=True)
    first = _keeper(tmp_path)
    assert first.recall(found, SAMPLED) is None
    drawn_by = np.random.RandomState(3)
    first.keep(State(runs, 1, drawn_by, drawn_by), at_once=True)
    got = _keeper(tmp_path).recall(found, SAMPLED).runs
    assert [len(run.memory) for run in got] == [0, 0, 0, 0, 0, 2]
    for name, kept in memory.items():
        np.testing.assert_array_equal(got[5].memory[name], kept)
    assert got[4].parameters is None
    for run, mixture in zip(got[:4], mixtures, strict=True):
        assert run.parameters.shape is mixture.shape
        for name in ("weights", "means", "covariances", "factors"):
            np.testing.assert_array_equal(
                getattr(run.parameters, name), getattr(mixture, name)
            )


@pytest.mark.parametrize("theirs", [None, FORMAT - 1, FORMAT + 1])
def test_another_format_is_refused_by_name(tmp_path, theirs):
    """The first one did not say which it was; nothing is written over."""
    x = blobs(3, 1000, 2, 3)
    break_off(model(), x, tmp_path, after=2)
    passes = []
    for slot in (0, 1):
        place = tmp_path / f"slot-{slot}"
        kept = models.load(place)
        fitted = {k: v for k, v in kept.fitted.items() if k != "format"}
        if theirs is not None:
            fitted["format"] = theirs
        models.write(place, replace(kept, fitted=fitted))
        passes.append(fitted["n_passes"])
    with pytest.raises(CheckpointError, match=f"has format {theirs or 1}, and this"):
        model().fit(x, checkpoint=tmp_path)
    kept = [models.load(tmp_path / f"slot-{slot}").fitted for slot in (0, 1)]
    assert [fitted["n_passes"] for fitted in kept] == passes


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_components": 2}, "n_components was 3 and is 2"),
        ({"tol": 1e-3}, r"tol was 1e-06 and is 0\.001"),
        ({"random_state": 1}, "random_state was 0 and is 1"),
        ({"means_init": np.zeros((3, 2))}, "means_init was None and is 'array of"),
    ],
)
def test_other_parameters_are_refused(tmp_path, change, words):
    x = blobs(5, 1000, 2, 3)
    break_off(model(), x, tmp_path, after=2)
    with pytest.raises(CheckpointError, match=words):
        model().set_params(**change).fit(x, checkpoint=tmp_path)


def test_other_data_are_refused(tmp_path):
    x = blobs(6, 1000, 2, 3)
    break_off(model(), x, tmp_path, after=2)
    moved = x.copy()
    moved[567, 1] = np.nextafter(moved[567, 1], np.inf)
    for other, words in (
        (moved, "contents of X was"),
        (x[::-1], "contents of X was"),
        (x[:-1], "number of X's rows was 1000 and is 999"),
        (x.astype(np.float32), "dtype was 'float64' and is 'float32'"),
        (da.from_array(x, chunks=(300, 2)), "rows of X's blocks was"),
        (np.column_stack([x, x]), "number of features was 2 and is 4"),
    ):
        with pytest.raises(CheckpointError, match=words):
            model().fit(other, checkpoint=tmp_path)
    with pytest.raises(CheckpointError, match="contents of sample_weight was"):
        model().fit(x, sample_weight=np.arange(1000.0), checkpoint=tmp_path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    x = blobs(7, 1000, 2, 3)
    break_off(model(), x, tmp_path, after=2)
    monkeypatch.setattr("daskgmm.em.checkpoint.version", lambda _: "99.0")
    with pytest.raises(CheckpointError, match=r"version of daskgmm .* and is '99\.0'"):
        model().fit(x, checkpoint=tmp_path)


def test_verbosity_is_no_other_fit(tmp_path):
    x = blobs(8, 1000, 2, 3)
    break_off(model(), x, tmp_path, after=2)
    model(verbose_interval=3).fit(x, checkpoint=tmp_path)


def short():
    return model(max_iter=6, n_init=1, tol=0)


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_write_that_breaks_off_at_any_byte_leaves_the_state_before(tmp_path):
    """Every file of the younger slot, cut at several places, and gone."""
    x = blobs(9, 600, 2, 3, spread=1.0)
    expected = short().fit(x)
    break_off(short(), x, tmp_path, after=4)
    slots = [tmp_path / f"slot-{slot}" for slot in (0, 1)]
    passes = [zarr.open_group(s).attrs["daskgmm"]["fitted"]["n_passes"] for s in slots]
    assert abs(passes[0] - passes[1]) == 1
    younger = slots[int(np.argmax(passes))]
    cuts = 0
    for path in _files(younger):
        whole = path.read_bytes()
        for length in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:length])
            assert_goes_on(x, tmp_path, min(passes), expected)
            cuts += 1
        path.unlink()
        assert_goes_on(x, tmp_path, min(passes), expected)
        path.write_bytes(whole)
    assert cuts > 20
    assert_goes_on(x, tmp_path, max(passes), expected)


def assert_goes_on(x, place, after, expected):
    """From a copy, so that the slots stay as they are."""
    copy = place.with_name(f"{place.name}-copy")
    shutil.copytree(place, copy)
    resumed, passes = short(), []
    resumed.fit(
        x,
        sample_weight=None,
        callback=lambda p: passes.append(p.n_pass),
        checkpoint=copy,
        checkpoint_interval=1000,
    )
    shutil.rmtree(copy)
    assert passes[0] == after + 1
    assert_same(resumed, expected)


def test_a_checkpoint_of_a_newer_format_is_refused_and_kept(tmp_path):
    x = blobs(10, 600, 2, 3)
    break_off(model(), x, tmp_path, after=3)
    path = tmp_path / "slot-0" / "zarr.json"
    document = json.loads(path.read_text())
    document["attributes"]["daskgmm"]["format"] += 1
    path.write_text(json.dumps(document))
    before = {path: path.read_bytes() for path in _files(tmp_path)}
    with pytest.raises(ModelFileError, match="slot-0 has format 2.*install a newer"):
        model().fit(x, checkpoint=tmp_path)
    assert {path: path.read_bytes() for path in _files(tmp_path)} == before


def test_both_slots_damaged_is_a_new_start(tmp_path):
    x = blobs(10, 600, 2, 3)
    expected = model().fit(x)
    break_off(model(), x, tmp_path, after=3)
    for path in _files(tmp_path):
        path.write_bytes(b"{")
    assert_same(model().fit(x, checkpoint=tmp_path), expected)


def test_any_fsspec_url():
    x = blobs(11, 600, 2, 3)
    place = "memory://checkpoints/one"
    expected = model().fit(x)
    break_off(model(), x, place, after=3)
    assert fsspec.filesystem("memory").ls("/checkpoints/one")
    resumed, first_pass = resume(x, place, interval=1)
    assert first_pass == 4
    assert_same(resumed, expected)


@pytest.mark.parametrize(
    ("value", "interval"),
    [
        (1, Interval(1, None)),
        (np.int64(20), Interval(20, None)),
        ("30s", Interval(None, 30.0)),
        ("5 minutes", Interval(None, 300.0)),
        ("0s", Interval(None, 0.0)),
    ],
)
def test_intervals(value, interval):
    assert parse_interval(value) == interval


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "soon", "-3s", None, ""])
def test_wrong_intervals_are_refused(value):
    with pytest.raises(ValueError, match="checkpoint_interval must be"):
        GaussianMixture().fit(np.zeros((5, 2)), checkpoint_interval=value)


def _command(tmp_path, out):
    return [
        *(sys.executable, "-m", "daskgmm", "fit", str(tmp_path / "x.zarr"), str(out)),
        *("-k", "4", "--seed", "0", "--tol", "0", "--max-iter", "60", "--n-init", "2"),
        *("--workers", "2", "--threads-per-worker", "1"),
        *("--checkpoint", str(tmp_path / "checkpoint"), "--checkpoint-interval", "1"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_killed_client_goes_on_with_the_same_bits(tmp_path, seed):
    """SIGKILL at random times, again and again, of the command and its cluster."""
    x = blobs(12, 200_000, 3, 4, spread=1.5)
    create_zarr(tmp_path / "x.zarr", x, chunks=(5_000, 3))
    expected = GaussianMixture(4, random_state=0, tol=0, max_iter=60, n_init=2).fit(
        tmp_path / "x.zarr"
    )
    model = tmp_path / "model.zarr"
    kill_until_done(_command(tmp_path, model), model, seed)
    found = load(model)
    for name in ("weights_", "means_", "covariances_", "lower_bound_", "n_iter_"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_random_state_that_cannot_be_kept_is_named(tmp_path):
    x = blobs(0, 300, 2, 2)
    gm = model(random_state=np.random.RandomState(np.random.PCG64(0)), init_size=100)
    gm.fit(x)
    with pytest.raises(TypeError, match="random_state that draws by PCG64 cannot be"):
        gm.save(tmp_path / "model")
    with pytest.raises(TypeError, match="random_state that draws by PCG64 cannot be"):
        gm.fit(x, checkpoint=tmp_path / "fit")
    assert not list(tmp_path.iterdir())
