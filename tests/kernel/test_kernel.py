"""The compiled kernel against the plain formula in long double."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, random_mixture, sums_over
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import LONG, log_joint, log_sum_exp, responsibilities

from daskgmm.data.block import Block
from daskgmm.kernel import layout, passes, tile
from daskgmm.kernel.layout import as_rows
from daskgmm.mixtures.e_step import e_step, message, moments, plan


def _moments_by_oracle(mixture, x, weights, covariance_type):
    joint = log_joint(
        x, mixture.weights, mixture.means, mixture.factors, covariance_type
    )
    r = responsibilities(joint) * weights[:, np.newaxis]
    deviations = x[:, np.newaxis].astype(LONG) - mixture.means
    drift = np.einsum("nk,nkd->kd", r, deviations)
    scatter = np.einsum("nk,nkd,nke->kde", r, deviations, deviations)
    return r.sum(axis=0), drift, scatter, (weights * log_sum_exp(joint)).sum()


def _scatter_matrices(covariance_type, scatter, d):
    """Oracle's scatter as the shape keeps it."""
    i, j = np.triu_indices(d)
    diagonals = np.einsum("kii->ki", scatter)
    return {
        "full": scatter[:, i, j],
        "tied": scatter.sum(axis=0, keepdims=True)[:, i, j],
        "diag": diagonals,
        "spherical": diagonals.sum(axis=1, keepdims=True),
    }[covariance_type]


@settings(max_examples=60)
@given(
    covariance_type=st.sampled_from(COVARIANCE_TYPES),
    d=st.integers(1, 6),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    n=st.sampled_from([1, 2, 7, 255, 256, 257, 600]),
    single=st.booleans(),
    weighted=st.booleans(),
    spread=st.sampled_from([0.0, 3.0, 1e4]),
    seed=st.integers(0, 2**31),
)
def test_moments_are_the_oracles(
    covariance_type, d, sizes, n, single, weighted, spread, seed
):
    """For several runs at once, near each other and far apart."""
    rng = np.random.default_rng(seed)
    mixtures = [
        random_mixture(rng, covariance_type, k, d, spread=spread) for k in sizes
    ]
    x = rng.normal(size=(n, d)) * (1 + spread)
    x = x.astype(np.float32 if single else np.float64)
    weights = rng.choice([0.0, 0.5, 1.0, 3.0], size=n) if weighted else None
    sent = message(mixtures)
    found = moments(sent, e_step(sent, iter([Block(0, x, weights)])), mixtures)
    for mixture, got in zip(mixtures, found, strict=True):
        w = np.ones(n) if weights is None else weights
        mass, drift, scatter, log_prob = _moments_by_oracle(
            mixture, x, w, covariance_type
        )
        size = np.abs(x).max() + np.abs(mixture.means).max()
        np.testing.assert_allclose(got.mass, mass, rtol=1e-8, atol=1e-8 * n)
        np.testing.assert_allclose(got.drift, drift, rtol=1e-8, atol=1e-8 * n * size)
        np.testing.assert_allclose(
            got.scatter,
            _scatter_matrices(covariance_type, scatter, d).astype(np.float64),
            rtol=1e-8,
            atol=1e-8 * n * size**2,
        )
        assert got.log_prob == pytest.approx(float(log_prob), rel=1e-9, abs=1e-9)
        assert got.weight == pytest.approx(w.sum())


def _check_moments(mixtures, x):
    sent = message(mixtures)
    found = moments(sent, e_step(sent, iter([Block(0, x, None)])), mixtures)
    size = np.abs(x).max()
    for mixture, got in zip(mixtures, found, strict=True):
        name, d = mixture.shape.name, mixture.n_features
        mass, drift, scatter, log_prob = _moments_by_oracle(
            mixture, x, np.ones(len(x)), name
        )
        expected = _scatter_matrices(name, scatter, d).astype(float)
        largest = np.abs(expected).max()
        np.testing.assert_allclose(got.mass, mass.astype(float), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            got.drift, drift.astype(float), rtol=1e-8, atol=1e-9 * len(x) * size
        )
        np.testing.assert_allclose(got.scatter, expected, rtol=0, atol=1e-9 * largest)
        assert got.log_prob == pytest.approx(float(log_prob), rel=1e-10)
    return sent.e_steps[0].plan


@settings(max_examples=60)
@given(
    kinds=st.lists(
        st.tuples(
            st.sampled_from(["full", "tied", "diag", "spherical"]), st.integers(1, 5)
        ),
        min_size=1,
        max_size=6,
    ),
    d=st.integers(1, 9),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mixtures_of_any_shape_share_a_pass(kinds, d, weighted, seed):
    """Each has the bits that it has alone, but for those that share a plan."""
    rng = np.random.default_rng(seed)
    mixtures = [random_mixture(rng, name, k, d) for name, k in kinds]
    x = rng.normal(size=(60, d))
    weights = rng.random(60) if weighted else None

    def found(some):
        sent = pickle.loads(pickle.dumps(message(some)))
        halves = [
            e_step(sent, iter([Block(i, x[i::2], w)]))
            for i, w in enumerate(
                (None, None) if weights is None else (weights[::2], weights[1::2])
            )
        ]
        return moments(sent, halves[0] + halves[1], some)

    for mixture, got in zip(mixtures, found(mixtures), strict=True):
        [expected] = found([mixture])
        assert got.about is mixture.means
        for name in ("mass", "drift", "scatter", "log_prob", "weight"):
            np.testing.assert_allclose(
                getattr(got, name), getattr(expected, name), rtol=1e-12, atol=1e-12
            )


def test_sums_of_another_message_are_refused():
    rng = np.random.default_rng(0)
    full, diag = (random_mixture(rng, name, 2, 3) for name in ("full", "diag"))
    block = Block(0, rng.normal(size=(20, 3)), None)
    for theirs, ours in (
        ([full], [full, diag]),
        ([full, diag], [diag]),
        ([full], [diag]),
    ):
        sums = e_step(message(theirs), iter([block]))
        with pytest.raises(ValueError, match="must have the same version"):
            moments(message(ours), sums, ours)


def test_moments_of_rows_are_those_of_their_parts(covariance_type):
    rng = np.random.default_rng(1)
    mixture, other = (random_mixture(rng, covariance_type, 3, 2) for _ in range(2))
    x, weights = rng.normal(size=(50, 2)), rng.random(50)

    def found(its, rows):
        sent = message([its])
        return moments(
            sent, e_step(sent, iter([Block(0, x[rows], weights[rows])])), [its]
        )[0]

    added = found(mixture, slice(20)) + found(mixture, slice(20, None))
    expected = found(mixture, slice(None))
    for name in ("about", "mass", "drift", "scatter", "log_prob", "weight"):
        np.testing.assert_allclose(
            getattr(added, name), getattr(expected, name), rtol=1e-12, atol=1e-12
        )
    with pytest.raises(ValueError, match="about different points"):
        added + found(other, slice(20))


@pytest.mark.parametrize("scale", [1.0, 1e-6])
@pytest.mark.parametrize("d", [7, 8, 9, 70, 300])
def test_many_features(covariance_type, d, scale):
    """Whole and broken bands and squares, and tiles of fewer rows."""
    rng = np.random.default_rng(5)
    mixture = random_mixture(rng, covariance_type, 3, d, scale=scale)
    x, _ = mixture.sample(300, np.random.RandomState(5))
    _check_moments([mixture], x)


def test_runs_of_different_sizes_share_a_pass(covariance_type):
    rng = np.random.default_rng(6)
    mixtures = [random_mixture(rng, covariance_type, k, 4) for k in (1, 3, 4, 9, 2)]
    x, _ = mixtures[3].sample(700, np.random.RandomState(6))
    used = _check_moments(mixtures, x)
    assert (len(used.pooled) == 5) == (covariance_type == "tied")


def test_a_shared_covariance_is_whitened_once_where_that_is_exact_and_less_work():
    """Else each component is measured from its own mean."""
    rng = np.random.default_rng(7)
    near = random_mixture(rng, "tied", 3, 4)
    assert len(plan(near).plan.pooled) == 1
    many = random_mixture(rng, "tied", 7, 2)
    far = random_mixture(rng, "tied", 3, 4, scale=1e-6, spread=3.0)
    for mixture in (many, far):
        x, _ = mixture.sample(400, np.random.RandomState(7))
        used = _check_moments([mixture], x)
        assert len(used.pooled) == 0
        assert len(used.dense) == mixture.n_components


def test_scatter_of_a_shared_covariance_between_distant_means():
    """What Σ yyᵀ - Σ r m mᵀ would lose: means 1e5 deviations apart."""
    rng = np.random.default_rng(8)
    mixture = random_mixture(rng, "tied", 3, 3, spread=1e5)
    x, _ = mixture.sample(600, np.random.RandomState(8))
    assert len(_check_moments([mixture], x).pooled) == 1


def layouts(x):
    """The same rows as they may lie in memory."""
    n, d = x.shape
    wide, tall = np.zeros((n, d + 3), x.dtype), np.zeros((n + 5, d), x.dtype, order="F")
    wide[:, 1 : d + 1], tall[2 : n + 2] = x, x
    odd = np.frombuffer(b"?" + x.tobytes(), dtype="u1")[1:].view(x.dtype)
    return [
        x,
        np.asfortranarray(x),
        wide[:, 1 : d + 1],
        tall[2 : n + 2],
        np.repeat(x, 2, axis=0)[::2],
        np.repeat(x, 2, axis=1)[:, ::2],
        x[::-1].copy()[::-1],
        np.asfortranarray(x[:, ::-1])[:, ::-1],
        odd.reshape(n, d),
    ]


@settings(max_examples=60)
@given(
    n=st.integers(0, 20),
    d=st.integers(1, 5),
    single=st.booleans(),
    bad=st.sampled_from([None, np.nan, np.inf, -np.inf]),
    seed=st.integers(0, 2**31),
)
def test_rows_of_any_layout_are_checked(n, d, single, bad, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32 if single else np.float64)
    expected = -1
    if bad is not None and n:
        places = rng.integers(0, n * d, size=2)
        x.flat[places] = bad
        expected = places.min()
    for rows in layouts(x):
        np.testing.assert_array_equal(rows, x)
        assert passes.first_not_finite(as_rows(rows)) == expected


def test_only_rows_in_pieces_are_copied():
    x = np.arange(60.0).reshape(12, 5)
    copied = [not np.shares_memory(as_rows(rows).double, rows) for rows in layouts(x)]
    assert copied == [False] * 5 + [True] * 4


def columns_apart(x, rng):
    """The same rows, each column in memory of its own, in any order there."""
    apart = {}
    for j in rng.permutation(x.shape[1]):
        longer = np.concatenate([rng.normal(size=3).astype(x.dtype), x[:, j]])
        apart[j] = longer[3:]
    return layout.Columns(tuple(apart[j] for j in range(x.shape[1])))


@settings(max_examples=60)
@given(
    n=st.integers(1, 1500),
    d=st.sampled_from([1, 2, 5, 17, 300]),
    single=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_columns_in_parts_give_the_same_bits(n, d, single, seed):
    """Columns are rows as an array is, and sums do not tell where tiles were parted."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(np.float32 if single else np.float64)
    columns = columns_apart(x, rng)
    np.testing.assert_array_equal(columns.array(), x)
    size = tile.tile_rows(d)
    cuts = size * np.unique(rng.integers(0, n // size + 1, size=3))
    its = plan(random_mixture(rng, "diag", 2, d))

    ends = [0, *cuts, n]
    parts = [columns[first:last] for first, last in pairwise(ends) if first < last]
    np.testing.assert_array_equal(sums_over(its, parts), sums_over(its, [x]))
    x[rng.integers(0, n), rng.integers(0, d)] = np.nan
    columns = columns_apart(x, rng)
    found = passes.first_not_finite(as_rows(columns))
    assert found == np.flatnonzero(np.isnan(x))[0]


def test_columns_are_copied_only_if_they_are_not_aligned():
    columns = [np.arange(5.0), np.arange(5.0) + 5]
    rows = as_rows(layout.Columns(tuple(columns)))
    assert any(np.shares_memory(rows.double[:1], column) for column in columns)
    odd = np.frombuffer(b"?" + columns[1].tobytes(), dtype="u1")[1:].view(float)
    rows = as_rows(layout.Columns((columns[0], odd)))
    assert rows.columns.shape == (0,)
    np.testing.assert_array_equal(rows.double, np.stack(columns, axis=1).ravel())


def test_blocks_of_any_layout_give_the_same_sums(covariance_type):
    rng = np.random.default_rng(2)
    mixture = random_mixture(rng, covariance_type, 3, 5)
    x = rng.normal(size=(500, 5))
    sent = message([mixture])

    def sums(rows):
        return e_step(sent, iter([Block(0, rows, None)])).buffer

    expected = sums(x)
    frozen = x.copy()
    frozen.flags.writeable = False
    for rows in (*layouts(x), frozen):
        np.testing.assert_array_equal(sums(rows), expected)


def test_an_empty_block_adds_nothing(covariance_type):
    mixture = random_mixture(np.random.default_rng(3), covariance_type, 2, 3)
    sent = message([mixture])
    sums = e_step(sent, iter([Block(0, np.empty((0, 3)), None)]))
    assert (sums.buffer == 0).all()


def test_one_signature_is_compiled():
    """Neither dtype, layout nor writability makes another."""
    rng = np.random.default_rng(4)
    mixture = random_mixture(rng, "full", 2, 3)
    sent = message([mixture])
    x = rng.normal(size=(10, 3))
    frozen = x.copy()
    frozen.flags.writeable = False
    for rows in (x, frozen, x[::2], np.asfortranarray(x), x.astype(np.float32)):
        for weights in (None, np.ones(len(rows))):
            e_step(sent, iter([Block(0, rows, weights)]))
    its = plan(mixture)
    added, scratch = np.zeros(its.padded_size), its.scratch()
    for held in (x, columns_apart(x, rng)):
        passes.accumulate(its.compiled_plan, as_rows(held), None, added, scratch)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_bad_entry_is_found(dtype):
    x = np.arange(12.0, dtype=dtype).reshape(4, 3)
    assert passes.first_not_finite(as_rows(x)) == -1
    x[2, 1] = np.inf
    x[3, 0] = np.nan
    assert passes.first_not_finite(as_rows(x)) == 2 * 3 + 1


@pytest.mark.slow
def test_processors_with_narrower_registers():
    """The kernel as it is compiled for a processor of 2013: four numbers a vector."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "+avx2,+fma,+avx,+bmi,+bmi2",
    }
    narrow = "from daskgmm.kernel.simd import LANES; assert LANES == 4"
    tests = [__file__, str(Path(__file__).with_name("test_vectors.py"))]
    for command in (["-c", narrow], ["-m", "pytest", "-q", "-m", "not slow", *tests]):
        subprocess.run([sys.executable, *command], env=environment, check=True)
