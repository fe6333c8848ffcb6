"""Models saved and loaded: bit for bit, or a clear error."""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import zarr
from conftest import blobs
from sklearn.mixture import GaussianMixture as Reference

import daskgmm
from daskgmm import GaussianMixture, ModelFileError, StoreError
from daskgmm.storage import models

FITTED = (
    "weights_",
    "means_",
    "covariances_",
    "precisions_",
    "precisions_cholesky_",
    "converged_",
    "n_iter_",
    "lower_bound_",
    "lower_bounds_",
    "n_features_in_",
    "n_passes_",
)


def _fitted(covariance_type="full", dtype=np.float64, **parameters):
    x = blobs(0, 300, 2, 2).astype(dtype)
    return GaussianMixture(
        2, covariance_type=covariance_type, random_state=0, **parameters
    ).fit(x)


def _assert_equal(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, np.ndarray):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        assert got.tobytes() == expected.tobytes()
    else:
        assert got == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_model_comes_back_bit_for_bit(tmp_path, covariance_type, dtype):
    model = _fitted(covariance_type, dtype)
    model.save(tmp_path / "model")
    again = daskgmm.load(tmp_path / "model")
    assert again.get_params() == model.get_params()
    for name in FITTED:
        _assert_equal(getattr(again, name), getattr(model, name))
    x = blobs(1, 50, 2, 2)
    np.testing.assert_array_equal(again.score_samples(x), model.score_samples(x))


def test_zeros_and_infinity_come_back(tmp_path):
    x = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    model = GaussianMixture(1, max_iter=0, random_state=0).fit(x)
    model.means_ = np.zeros((1, 2))
    assert model.lower_bound_ == -np.inf
    model.save(tmp_path / "model")
    again = daskgmm.load(tmp_path / "model")
    assert again.lower_bound_ == -np.inf
    assert again.lower_bounds_ == []
    _assert_equal(again.means_, model.means_)


def test_every_kind_of_parameter_comes_back(tmp_path):
    model = _fitted(
        means_init=[[0.0, 1.0], [2.0, 3.0]],
        weights_init=np.array([0.25, 0.75]),
        tol=np.float64(1e-5),
    )
    state = np.random.RandomState(3)
    state.normal()  # leaves a second number cached
    model.set_params(random_state=state)
    model.save(tmp_path / "model")
    again = daskgmm.load(tmp_path / "model")
    np.testing.assert_array_equal(again.means_init, [[0.0, 1.0], [2.0, 3.0]])
    np.testing.assert_array_equal(again.weights_init, [0.25, 0.75])
    assert again.tol == 1e-5
    for drawn, expected in zip(again.sample(5), model.sample(5), strict=True):
        np.testing.assert_array_equal(drawn, expected)


def test_feature_names_come_back(tmp_path):
    frame = pd.DataFrame(blobs(0, 100, 2, 2), columns=["height", "größe"])
    GaussianMixture(2, random_state=0).fit(frame).save(tmp_path / "model")
    again = daskgmm.load(tmp_path / "model")
    assert list(again.feature_names_in_) == ["height", "größe"]
    again.predict(frame)


def test_a_url_will_do():
    model = _fitted()
    url = f"memory://{uuid.uuid4().hex}/model"
    model.save(url)
    _assert_equal(daskgmm.load(url).means_, model.means_)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("pickle was used")

    model = _fitted()
    for name in ("dumps", "loads", "dump", "load"):
        monkeypatch.setattr(pickle, name, refuse)
    model.save(tmp_path / "model")
    daskgmm.load(tmp_path / "model")


def test_a_model_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "model"
    _fitted().save(path)
    other = _fitted("diag")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        other.save(path)
    assert daskgmm.load(path).covariance_type == "full"
    other.save(path, overwrite=True)
    assert daskgmm.load(path).covariance_type == "diag"
    states = [p.name for p in path.iterdir() if p.is_dir()]
    assert len(states) == 1


def test_other_files_are_never_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not a model"):
        _fitted().save(tmp_path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    zarr.create_array(str(tmp_path / "rows"), data=np.arange(4.0))
    with pytest.raises((FileExistsError, ModelFileError)):
        _fitted().save(tmp_path / "rows", overwrite=True)
    np.testing.assert_array_equal(zarr.open(str(tmp_path / "rows"))[:], np.arange(4.0))


@pytest.mark.parametrize("renamed", [True, False])
@pytest.mark.parametrize("described", ["whole", "empty", "not"])
def test_what_a_write_left_that_broke_off_is_no_model(tmp_path, described, renamed):
    """Killed at any moment: Zarr gives a file its name once all of it is written."""
    path = tmp_path / "model"
    zarr.open_group(path).create_group("state-1234")
    if described == "empty":
        (path / "zarr.json").write_bytes(b"")
    elif described == "not":
        (path / "zarr.json").unlink()
    if not renamed:
        (path / "zarr.0123456789abcdef.partial").write_bytes(b'{"attri')
    models.check_ours(path)
    with pytest.raises(ModelFileError):
        models.load(path)
    _fitted().save(path)
    assert daskgmm.load(path).n_components == _fitted().n_components


def test_what_a_write_left_beside_a_model_is_not_in_its_way(tmp_path):
    path = tmp_path / "model"
    _fitted().save(path)
    (path / "zarr.0123456789abcdef.partial").write_bytes(b'{"attri')
    assert daskgmm.load(path).n_components == _fitted().n_components
    _fitted("diag").save(path, overwrite=True)
    assert daskgmm.load(path).covariance_type == "diag"


def test_a_write_that_breaks_off_leaves_the_old_model(tmp_path, monkeypatch):
    path = tmp_path / "model"
    old = _fitted()
    old.save(path)

    def stop(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr.core.attributes.Attributes, "__setitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        _fitted("diag").save(path, overwrite=True)
    monkeypatch.undo()
    _assert_equal(daskgmm.load(path).means_, old.means_)
    _fitted("tied").save(path, overwrite=True)
    assert daskgmm.load(path).covariance_type == "tied"


def test_a_missing_model(tmp_path):
    with pytest.raises(ModelFileError, match="no model at"):
        daskgmm.load(tmp_path / "nothing")
    zarr.create_group(str(tmp_path / "other"))
    with pytest.raises(ModelFileError, match="no model at"):
        daskgmm.load(tmp_path / "other")
    zarr.create_array(str(tmp_path / "rows"), data=np.arange(4.0))
    with pytest.raises(ModelFileError, match="Zarr array"):
        daskgmm.load(tmp_path / "rows")


def test_a_newer_format_is_refused(tmp_path):
    path = tmp_path / "model"
    _fitted().save(path)
    document = json.loads((path / "zarr.json").read_text())
    document["attributes"]["daskgmm"]["format"] = models.FORMAT + 1
    (path / "zarr.json").write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="format 2.*install a newer"):
        daskgmm.load(path)


def _files(path):
    return sorted(p for p in path.rglob("*") if p.is_file())


def test_any_damage_is_found(tmp_path):
    """Each file in turn: missing, cut short, or with one byte changed."""
    path, copy = tmp_path / "model", tmp_path / "copy"
    _fitted().save(path)
    kept = [f.relative_to(path) for f in _files(path)]
    assert len(kept) > 10
    for name in kept:
        for damage in ("missing", "cut", "changed"):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
            victim = copy / name
            content = victim.read_bytes()
            if damage == "missing":
                victim.unlink()
            elif damage == "cut":
                victim.write_bytes(content[: len(content) // 2])
            else:
                middle = len(content) // 2
                changed = bytes([content[middle] ^ 1])
                victim.write_bytes(content[:middle] + changed + content[middle + 1 :])
            try:
                model = daskgmm.load(copy)
            except ModelFileError as error:
                assert str(copy) in str(error)
                continue
            # Some bytes are of no consequence: then all that counts is intact.
            expected = daskgmm.load(path)
            assert model.get_params() == expected.get_params(), (name, damage)
            for attribute in FITTED:
                _assert_equal(getattr(model, attribute), getattr(expected, attribute))


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(Exception, match="not fitted"):
        GaussianMixture(2).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_to_and_from_scikit_learn(covariance_type):
    x = blobs(2, 300, 2, 2)
    model = _fitted(covariance_type)
    theirs = model.to_sklearn()
    assert type(theirs) is Reference
    np.testing.assert_allclose(
        theirs.predict_proba(x), model.predict_proba(x), atol=1e-9
    )
    back = GaussianMixture.from_sklearn(theirs)
    assert back.get_params() == model.get_params()
    for name in FITTED:
        if name != "n_passes_":
            _assert_equal(getattr(back, name), getattr(model, name))
    fitted = Reference(2, covariance_type=covariance_type, random_state=1).fit(x)
    ours = GaussianMixture.from_sklearn(fitted)
    np.testing.assert_allclose(
        ours.score_samples(x), fitted.score_samples(x), rtol=1e-9
    )
    unfitted = GaussianMixture(5).to_sklearn()
    assert unfitted.n_components == 5
    assert not hasattr(unfitted, "means_")
    theirs.means_[...] = 0  # a copy: ours does not change
    assert not (model.means_ == 0).any()


@contextmanager
def no_file_larger_than(n_bytes):
    """The operating system refuses to let this process's files grow any further."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_the_disk_refuses_leaves_nothing_of_itself(tmp_path):
    """Not what was written before the refusal, either: it would stay for ever."""
    path = tmp_path / "model"
    model = _fitted()
    model.save(path)
    before = {p.relative_to(path): p.read_bytes() for p in _files(path)}
    start = np.random.default_rng(0).normal(size=(50_000, 2))
    large = _fitted().set_params(means_init=start)
    with no_file_larger_than(100_000), pytest.raises(StoreError, match="no room left"):
        large.save(path, overwrite=True)
    assert {p.relative_to(path): p.read_bytes() for p in _files(path)} == before
    assert len([p for p in path.iterdir() if p.is_dir()]) == 1
