"""Log joints that cannot matter are left out, and nothing changes by it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import LONG, log_joint

from daskgmm.data.block import Block
from daskgmm.kernel import passes
from daskgmm.kernel.layout import as_rows, readonly
from daskgmm.mixtures import bounds
from daskgmm.mixtures.e_step import EStep, e_step, message, plan
from daskgmm.mixtures.single import shift_of

MANY = 10**6


def mixture_of(seed, n_components=6, n_features=24, spread=6.0):
    rng = np.random.default_rng(seed)
    return random_mixture(rng, "full", n_components, n_features, spread=spread)


def rows_of(mixture, seed, n=700):
    return mixture.sample(n, np.random.RandomState(seed))[0]


def log_prob(plan, x):
    step = EStep(plan)
    found = np.empty(len(x))
    given_plan, rows = step.given(x)
    passes.evaluate(given_plan, rows, step.scratch(), {"log_prob": found})
    return found


def labels(plan, x):
    step = EStep(plan)
    found = np.empty(len(x), dtype=np.int64)
    given_plan, rows = step.given(x)
    passes.evaluate(given_plan, rows, step.scratch(), {"labels": found})
    return found


def unbounded(plan):
    nothing = readonly(np.empty((0, 0), dtype=plan.means.dtype))
    return plan._replace(axes=nothing, axis_means=nothing)


@pytest.mark.slow
@given(
    seed=st.integers(0, 10**6),
    n_components=st.integers(4, 21),
    n_features=st.integers(24, 45),
    spread=st.sampled_from([0.1, 1.0, 3.0, 30.0]),
    offset=st.sampled_from([0.0, 1e3, 1e7]),
    scale=st.sampled_from([None, 1.0, 1e-30, 1e30]),
    single=st.booleans(),
    by_column=st.booleans(),
)
@settings(max_examples=60)
def test_no_bit_changes(
    seed, n_components, n_features, spread, offset, scale, single, by_column
):
    """Of sums, of two mixtures in one pass, and of answers."""
    mixtures = [
        mixture_of(seed + i, n_components + i, n_features, spread) for i in range(2)
    ]
    for mixture in mixtures:
        mixture.means[...] += offset
    x = np.vstack([rows_of(mixture, seed, 400) for mixture in mixtures])
    if single:
        x = x.astype(np.float32)
    rows = np.asfortranarray(x) if by_column else x
    rng = np.random.default_rng(seed)
    weights = None if scale is None else scale * rng.uniform(0, 2, len(x))
    shifts = [shift_of(mixtures[0])] * 2 if single else None
    sums = {}
    for n_rows in (0, MANY):
        sent = message(mixtures, shifts, n_rows)
        assert any(len(its.plan.axes) > 0 for its in sent.e_steps) == (n_rows > 0)
        found = e_step(sent, iter([Block(0, rows, weights)]))
        sums[n_rows] = found.buffer
    assert sums[0].tobytes() == sums[MANY].tobytes()
    with_axes = plan(mixtures[0], single=single, n_rows=MANY).plan
    for answer in (log_prob, labels):
        got, wanted = answer(with_axes, x), answer(unbounded(with_axes), x)
        assert got.tobytes() == wanted.tobytes()


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.1, 3.0, 1e4]))
@settings(max_examples=20)
def test_bounds_are_bounds(seed, spread):
    """Coordinates along axes are never more than the distance: in long double."""
    mixture = mixture_of(seed, 5, 30, spread)
    x = rows_of(mixture, seed, 50)
    found = bounds.axes([mixture])
    packed = found["axes"].reshape(-1, 30, 2, 2)  # pairs, features, components, axes
    axes = packed.transpose(0, 2, 1, 3).reshape(-1, 30, 2)[:5]
    off = x[:, np.newaxis].astype(LONG) - mixture.means
    along = np.einsum("nkd,kda->nka", off, axes)
    whitened = np.einsum("nkd,kde->nke", off, mixture.factors)
    distances = (whitened**2).sum(axis=2)
    assert ((along**2).sum(axis=2) <= distances * (1 - 1e-4)).all()
    # And they are of use: most of what lies along two of thirty axes.
    if spread > 1:
        others = distances > 4 * 30
        assert ((along**2).sum(axis=2) / distances)[others].mean() > 0.2
    means = np.einsum("kda,kd->ka", axes, mixture.means)
    np.testing.assert_allclose(found["axis_means"][:, :2], -means, rtol=1e-9)
    # What a coordinate may be off by, as the kernel finds it.
    plain = (x @ axes.transpose(1, 0, 2).reshape(30, -1)).reshape(50, 5, 2)
    plain += found["axis_means"][:, :2]
    reach = np.linalg.norm(x, axis=1).max()
    allowed = found["axis_means"][:, 2] * reach + found["axis_means"][:, 3]
    assert (np.abs(plain - along).sum(axis=2) <= allowed).all()


@pytest.mark.parametrize("single", [False, True])
def test_what_cannot_matter_is_not_looked_at(single):
    """A component that is far from all rows may as well be everywhere, once asked."""
    mixture = mixture_of(3, 7, 40, 30.0)
    x = rows_of(mixture, 3)
    joint = log_joint(x, mixture.weights, mixture.means, mixture.factors, "full")
    x = x[joint.argmax(axis=1) != 2]
    assert len(x) > 100
    whole = plan(mixture, single=single, n_rows=MANY).plan
    if single:
        x = x.astype(np.float32)
    wanted = log_prob(whole, x)
    dense = whole.dense.copy()
    dense[2] = 0.0
    broken = whole._replace(dense=readonly(dense))
    assert log_prob(broken, x).tobytes() == wanted.tobytes()
    assert (log_prob(unbounded(broken), x) > wanted).all()


def test_responsibilities_are_told_however_small_they_are():
    mixture = mixture_of(4, 6, 24, 3.0)
    x = rows_of(mixture, 4)
    step = plan(mixture, n_rows=MANY)
    found = np.empty((len(x), 6))
    passes.evaluate(
        step.compiled_plan, as_rows(x), step.scratch(), {"responsibilities": found}
    )
    assert ((found > 0) & (found < 1e-60)).any()


def test_rows_that_nothing_explains_are_as_without_bounds():
    """So far away that squares overflow, or that no component is nearer."""
    mixture = mixture_of(5, 6, 24)
    x = rows_of(mixture, 5, 300)
    x[::3] *= 1e160
    x[1::3] *= 1e12
    with_axes = plan(mixture, n_rows=MANY).plan
    for answer in (log_prob, labels):
        got, wanted = answer(with_axes, x), answer(unbounded(with_axes), x)
        assert got.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("size", [1.0, 1e-110, 1e110])
def test_without_axes_nothing_is_left_out(size):
    """As of rows so large or small that their scatter leaves the range of numbers."""
    mixture = mixture_of(7, 5, 30)
    x = rows_of(mixture, 7) * size
    mixture.means[...] *= size
    mixture.covariances[...] = mixture.covariances * size * size
    mixture.factors[...] /= size
    found = plan(mixture, n_rows=MANY).plan
    if size == 1.0:
        nothing = readonly(np.full(found.axes.shape, np.nan))
        found = found._replace(axes=nothing)
    wanted = log_prob(unbounded(found), x)
    assert np.isfinite(wanted).all()
    assert log_prob(found, x).tobytes() == wanted.tobytes()


def test_axes_that_do_not_fit_are_refused():
    step = plan(mixture_of(6), n_rows=MANY)
    x = rows_of(mixture_of(6), 6)
    for name, wrong in (
        ("plan.axes", {"axes": step.plan.axes[:-1]}),
        ("plan.axis_means", {"axis_means": step.plan.axis_means[:, :3]}),
    ):
        its = EStep(step.plan._replace(**wrong))
        with pytest.raises(ValueError, match=name):
            log_prob(its.plan, x)
