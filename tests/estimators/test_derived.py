"""Mixtures that follow from a fitted one, against quadrature, SciPy and Monte Carlo."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import COVARIANCE_TYPES, random_mixture
from scipy import integrate, stats
from sklearn.exceptions import NotFittedError

from daskgmm import BayesianGaussianMixture, GaussianMixture
from daskgmm.estimators.gaussian import made_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:X does not have valid feature names"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def model_of(covariance_type, k=3, d=4, seed=0):
    """A mixture, as if it were fitted."""
    mixture = random_mixture(np.random.default_rng(seed), covariance_type, k, d)
    like = GaussianMixture().fit([[0.0], [1.0]])
    return made_of(mixture, np.array([f"f{i}" for i in range(d)], dtype=object), like)


def components(model):
    """SciPy's distributions."""
    k, d = model.means_.shape
    matrices = {
        "full": lambda c: c,
        "tied": lambda c: np.stack([c] * k),
        "diag": lambda c: np.stack([np.diag(v) for v in c]),
        "spherical": lambda c: np.stack([v * np.eye(d) for v in c]),
    }[model.covariance_type](model.covariances_)
    return [
        stats.multivariate_normal(m, c)
        for m, c in zip(model.means_, matrices, strict=True)
    ]


def test_a_marginal_is_what_integrals_over_the_rest_are(covariance_type):
    model = model_of(covariance_type, d=2)
    one = model.marginal("f1")
    for y in (-1.0, 0.5, 2.0):
        expected, _ = integrate.quad(
            lambda x, y=y: np.exp(model.score_samples([[x, y]])[0]),
            *(-60, 60),
            points=model.means_[:, 0],
            limit=300,
        )
        assert np.exp(one.score_samples([[y]])[0]) == pytest.approx(expected, rel=1e-6)
    assert [*one.feature_names_in_] == ["f1"]


def test_a_marginal_has_the_features_in_the_order_asked_for(covariance_type):
    model = model_of(covariance_type)
    some = model.marginal([3, "f0"])
    assert [*some.feature_names_in_] == ["f3", "f0"]
    np.testing.assert_array_equal(some.means_, model.means_[:, [3, 0]])
    x = np.random.default_rng(1).normal(size=(5, 2))
    at = [3, 0]
    densities = [
        w * stats.multivariate_normal(c.mean[at], c.cov[np.ix_(at, at)]).pdf(x)
        for w, c in zip(model.weights_, components(model), strict=True)
    ]
    np.testing.assert_allclose(np.exp(some.score_samples(x)), sum(densities))


@pytest.mark.parametrize("given", [[0], [2, 1], ["f3", "f0", "f2"]])
def test_a_conditional_is_the_joint_density_over_the_marginal(covariance_type, given):
    model = model_of(covariance_type)
    rng = np.random.default_rng(2)
    places = [int(str(name)[-1]) for name in given]
    others = [i for i in range(4) if i not in places]
    for _ in range(5):
        x = rng.normal(size=4) * 2
        left = model.conditional(given, x[places])
        joint = model.score_samples(x[np.newaxis])[0]
        of_given = model.marginal(given).score_samples(x[np.newaxis, places])[0]
        got = left.score_samples(x[np.newaxis, others])[0]
        assert got == pytest.approx(joint - of_given, rel=1e-9, abs=1e-9)
        assert left.weights_.sum() == pytest.approx(1.0)
        assert [*left.feature_names_in_] == [f"f{i}" for i in others]
    # Far from all components, too, weights are no 0 / 0.
    assert np.isfinite(model.conditional(given, 1e4 * np.ones(len(given))).means_).all()


def test_divergences_are_what_integrals_are():
    model = model_of("full", k=3, d=1)
    kl, bhattacharyya = model.kl_divergence(), model.bhattacharyya()
    some = [
        stats.norm(m[0], np.sqrt(c[0, 0]))
        for m, c in zip(model.means_, model.covariances_, strict=True)
    ]
    for i, p in enumerate(some):
        for j, q in enumerate(some):
            expected, _ = integrate.quad(
                lambda x, p=p, q=q: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)),
                *(p.mean() - 12 * p.std(), p.mean() + 12 * p.std()),
                limit=300,
            )
            assert kl[i, j] == pytest.approx(expected, rel=1e-6, abs=1e-9)
            overlap, _ = integrate.quad(
                lambda x, p=p, q=q: np.sqrt(p.pdf(x) * q.pdf(x)),
                *(-80, 80),
                points=[p.mean(), q.mean()],
                limit=500,
            )
            assert np.exp(-bhattacharyya[i, j]) == pytest.approx(overlap, rel=1e-6)


def test_divergences_are_those_of_draws(covariance_type):
    model = model_of(covariance_type, k=3, d=3, seed=4)
    some = components(model)
    kl, bhattacharyya = model.kl_divergence(), model.bhattacharyya()
    for i, p in enumerate(some):
        x = p.rvs(40_000, random_state=i)
        for j, q in enumerate(some):
            logs = p.logpdf(x) - q.logpdf(x)
            within = 6 * logs.std() / 200 + 1e-9
            assert kl[i, j] == pytest.approx(logs.mean(), abs=within)
            if kl[i, j] > 5.0:
                continue  # draws from one hardly ever come near the other
            roots = np.exp(-0.5 * logs)
            within = 6 * roots.std() / 200 + 1e-9
            assert np.exp(-bhattacharyya[i, j]) == pytest.approx(
                roots.mean(), abs=within
            )
    np.testing.assert_array_equal(bhattacharyya, bhattacharyya.T)


def total(model):
    """Mean and covariance of the whole mixture."""
    mean = model.weights_ @ model.means_
    matrices = np.stack([component.cov for component in components(model)])
    off = model.means_ - mean
    within = np.einsum("k,kij->ij", model.weights_, matrices)
    return mean, within + np.einsum("k,ki,kj->ij", model.weights_, off, off)


def test_merged_components_lose_no_more_than_is_said(covariance_type):
    model = model_of(covariance_type, k=6, d=2, seed=3)
    x, _ = model.set_params(random_state=0).sample(20_000)
    before, losses = model.score_samples(x), []
    for n in range(6, 0, -1):
        fewer, loss = model.merge_components(n)
        assert fewer.n_components == n == len(fewer.weights_)
        assert fewer.weights_.sum() == pytest.approx(1.0)
        logs = before - fewer.score_samples(x)
        assert logs.mean() <= loss + 5 * logs.std() / np.sqrt(len(x)) + 1e-9
        losses.append(loss)
        mean, covariance = total(fewer)
        np.testing.assert_allclose(mean, total(model)[0], atol=1e-12)
        expected = total(model)[1]
        if covariance_type == "diag":
            covariance, expected = np.diag(covariance), np.diag(expected)
        if covariance_type == "spherical":
            covariance, expected = np.trace(covariance), np.trace(expected)
        np.testing.assert_allclose(covariance, expected, rtol=1e-10, atol=1e-12)
    assert losses[0] == 0.0
    assert losses == sorted(losses)
    expected = "full" if covariance_type == "tied" else covariance_type
    assert fewer.covariance_type == expected


def test_those_that_lose_least_are_merged_first():
    """Of three, two are nearly the same."""
    like = GaussianMixture().fit([[0.0], [1.0]])
    mixture = random_mixture(np.random.default_rng(0), "diag", 3, 2)
    mixture.means[:] = [[0.0, 0.0], [9.0, 9.0], [0.1, 0.0]]
    mixture.covariances[:], mixture.factors[:] = 1.0, 1.0
    model = made_of(mixture, None, like)
    fewer, loss = model.merge_components(2)
    np.testing.assert_allclose(fewer.means_[0], [9.0, 9.0])
    # By the plain formula, from the two covariances and the one that they become.
    a, b = model.weights_[0], model.weights_[2]
    between = a * b / (a + b) ** 2 * 0.1**2
    expected = 0.5 * (a + b) * np.log1p(between)
    assert loss == pytest.approx(expected, rel=1e-9)
    assert not hasattr(fewer, "feature_names_in_")


def test_a_bayesian_mixture_has_them_too():
    x = np.random.default_rng(0).normal(size=(200, 3)) * [1, 2, 3]
    model = BayesianGaussianMixture(n_components=3, random_state=0).fit(x)
    one = model.marginal(2)
    assert type(one) is GaussianMixture
    np.testing.assert_array_equal(one.weights_, model.weights_)
    assert model.kl_divergence().shape == (3, 3)
    fewer, loss = model.merge_components(1)
    np.testing.assert_allclose(fewer.means_[0], model.weights_ @ model.means_)
    assert loss >= 0.0


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.marginal(4), "no feature 4: features are numbers from 0 to 3"),
        (lambda m: m.marginal("g"), "or one of the names f0, f1, f2, f3"),
        (lambda m: m.marginal(True), "no feature True"),
        (lambda m: m.marginal([]), "one or more features, each once"),
        (lambda m: m.marginal([1, "f1"]), "each once"),
        (lambda m: m.conditional([0, 1], [1.0]), "one number for each of 2 features"),
        (lambda m: m.conditional([0, 1, 2, 3], np.zeros(4)), "none is left"),
        (lambda m: m.conditional(0, np.nan), "values contains NaN"),
        (lambda m: m.merge_components(0), "whole number from 1 to 3"),
        (lambda m: m.merge_components(4), "whole number from 1 to 3"),
        (lambda m: m.merge_components(1.5), "whole number from 1 to 3"),
    ],
)
def test_what_cannot_be_is_named(ask, message):
    with pytest.raises(ValueError, match=message):
        ask(model_of("full"))


def test_what_is_not_fitted_says_so():
    for ask in (
        lambda m: m.marginal(0),
        lambda m: m.conditional(0, 1.0),
        lambda m: m.kl_divergence(),
        lambda m: m.bhattacharyya(),
        lambda m: m.merge_components(1),
    ):
        with pytest.raises(NotFittedError):
            ask(GaussianMixture(2))


def test_all_shapes_are_tested():
    assert set(COVARIANCE_TYPES) == {"full", "tied", "diag", "spherical"}
