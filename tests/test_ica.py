"""ICA and its kin against quadrature, planted sources and scikit-learn."""

from __future__ import annotations

import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import standin
from cases import not_promised
from scipy.integrate import quad
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln
from scipy.stats import norm
from sklearn.base import clone
from sklearn.decomposition import FastICA
from sklearn.utils.estimator_checks import parametrize_with_checks
from streams import ReplayStream

import energyscape
from energyscape.backend import Purpose, stream, to_host
from energyscape.errors import CapabilityError, DivergenceError, UnnormalizedScoreWarning
from energyscape.evaluation.laws import generic_params
from energyscape.models.ica import ICA
from energyscape.models.overcomplete_ica import OvercompleteICA
from energyscape.optim import Moment
from energyscape.pools import arrangement, log_integral, pooling, torus_pools
from energyscape.trainers import EM, PCD, MaximumLikelihood
from energyscape.trainers.base import Batch
from energyscape.verbs import speaks

MIX = np.random.default_rng(5).standard_normal((4, 4))
ROWS = np.random.default_rng(6).laplace(size=(400, 4)) @ MIX.T + 2
OVERLAP = np.array([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]])
# P(√n D > 2.7) < 1e-6 of Kolmogorov and Smirnov's D.
KOLMOGOROV = 2.7
MODELS = {
    "square": ICA(),
    "subspaces": ICA(pools=2),
    "weighted": ICA(pools=np.array([[1.0, 0, 2, 0], [0, 0.5, 0, 0], [0, 0, 0, 3]]), epsilon=0.5),
    "topography": ICA(pools=OVERLAP),
    "fewer": ICA(3),
    "fewer pools": ICA(2, pools=2),
    "overcomplete": OvercompleteICA(7),
}


def amari(W: np.ndarray, A: np.ndarray) -> float:
    """Distance of WA from a scaled permutation, 0 to 1 (Amari, Cichocki, Yang, 1996, normalised).

    With P = |WA| of k rows and columns:
    (Σ_i (Σ_j P_ij / max_j P_ij - 1) + Σ_j (Σ_i P_ij / max_i P_ij - 1)) / (2k (k - 1)).
    """
    P, k = abs(W @ A), len(W)
    rows = (P / P.max(axis=1, keepdims=True)).sum() - k
    columns = (P / P.max(axis=0, keepdims=True)).sum() - k
    return float((rows + columns) / (2 * k * (k - 1)))


def grid(width: float, n: int) -> tuple[np.ndarray, float]:
    """Points of a square of half-width ``width`` in two dimensions, and the area of each."""
    line = np.linspace(-width, width, n)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), float(line[1] - line[0]) ** 2


def plane(model: ICA, sign: Any = None) -> dict[str, np.ndarray]:
    """Parameters in two dimensions off every symmetry."""
    params = model.init_params(ROWS[:, :2], stream(0, Purpose.INIT))
    params |= {"W": np.array([[1.3, 0.4], [-0.5, 0.9]]), "m": np.array([0.3, -0.2])}
    return params | ({} if sign is None else {"sign": np.array(sign, float)})


# ---------------------------------------------------------------- energies


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_laws(name: str, seed: int) -> None:
    checked = energyscape.check_model(MODELS[name], ROWS[:12], random_state=seed)
    wanted = {"energy_is_free_energy", "gradient_is_central_difference", "gradient_is_additive"}
    assert wanted | {"input_gradient_is_central_difference"} <= set(checked)


def test_laws_hold_for_light_tails() -> None:
    class Light(ICA):
        def init_params(self, x: Any, rng: Any) -> Any:
            return super().init_params(x, rng) | {"sign": np.array([1.0, -1, -1, 1])}

    assert len(energyscape.check_model(Light(), ROWS[:12])) >= 4


@pytest.mark.parametrize(
    ("model", "sign"),
    [
        (ICA(), [1, 1]),
        (ICA(), [-1, -1]),
        (ICA(), [1, -1]),
        (ICA(pools=1, epsilon=0.25), None),
        (ICA(pools=2, epsilon=0.25), None),
        (ICA(pools=[[2.0, 0.8]], epsilon=3.0), None),
        (ICA(1), [1, 0]),
        (ICA(1, pools=1, epsilon=0.25), None),
    ],
)
def test_densities_integrate_to_one(model: ICA, sign: Any) -> None:
    """Tails fall as exp(-|u|) at least: e^-37 is left out. Trapezia of a density that is analytic
    within ±i a of the real line are off by exp(-2π a/step), here below exp(-2π 0.5/0.1)."""
    params = plane(model, sign)
    x, area = grid(40.0, 1201)
    mass = np.exp(-model.free_energy(params, x) - model.log_partition(params)).sum() * area
    assert abs(mass - 1) < 1e-8


@pytest.mark.parametrize("s", [1, 2, 3, 6, 40])
@pytest.mark.parametrize("epsilon", [1e-4, 0.01, 2.0])
def test_the_integral_of_a_pool(s: int, epsilon: float) -> None:
    """Radial quadrature, scaled by its value at ε = 0: the sphere's area times Γ(s)."""
    scale = gammaln(s)

    def ring(r: float) -> float:
        return float(np.exp((s - 1) * np.log(r) - np.sqrt(epsilon + r * r) - scale))

    knots = [0.0, 0.1, 1.0, s, 2.0 * s, 3.0 * s + 100]
    parts = [quad(ring, a, b, epsabs=0, epsrel=1e-11)[0] for a, b in itertools.pairwise(knots)]
    sphere = np.log(2) + 0.5 * s * np.log(np.pi) - gammaln(0.5 * s)
    assert log_integral(s, epsilon) == pytest.approx(sphere + scale + np.log(sum(parts)), abs=1e-8)


def test_log_z_of_overlapping_pools_does_not_depend_on_the_parameters() -> None:
    model = ICA(pools=[[1.0, 0.5], [0, 1]], epsilon=1.0)
    assert speaks(model, ("log_partition",)) and speaks(model, ("sample_exact",))
    assert not speaks(ICA(pools=2), ("log_partition", "sample_exact"))
    x, area = grid(40.0, 1201)
    masses = []
    for W in (np.eye(2), np.array([[1.3, 0.4], [-0.5, 0.9]])):
        params = plane(model) | {"W": W}
        masses.append(np.exp(-model.free_energy(params, x)).sum() * area)
    assert masses[0] == pytest.approx(masses[1], rel=1e-8) and abs(masses[0] - 1) > 0.1


@pytest.mark.parametrize("sign", [[1, 1], [-1, 1]])
def test_the_population_gradient_vanishes_at_the_truth(sign: Any) -> None:
    """Σ p(x) ∂F/∂θ by quadrature, for the density's own parameters and for others."""
    model = ICA()
    params = plane(model, sign)
    x, area = grid(40.0, 1201)
    p = np.exp(-model.free_energy(params, x)) * area
    for grad in model.free_energy_grad(params, x, p).values():
        assert abs(grad).max() < 1e-7
    off = params | {"W": params["W"] @ np.array([[1, 0.1], [0, 1]])}
    assert abs(model.free_energy_grad(off, x, p)["W"]).max() > 1e-2


# ---------------------------------------------------------------- draws


def _apart(x: np.ndarray, cdf: Any) -> float:
    """√n times the largest distance of two distribution functions."""
    n = len(x)
    return float(np.sqrt(n) * abs(cdf(np.sort(x)) - (np.arange(n) + 0.5) / n).max())


def test_draws_of_sources_follow_their_densities() -> None:
    model = ICA()
    params = plane(model, [1, -1])
    x = model.sample_exact(params, 100_000, stream(0, Purpose.SAMPLE))
    heavy, light = model.encode(params, x).T
    laws = {
        "heavy": (heavy, lambda u: 2 / np.pi * np.arctan(np.exp(u))),
        "light": (light, lambda u: 0.5 * (norm.cdf(u - 1) + norm.cdf(u + 1))),
    }
    for u, cdf in laws.values():
        assert _apart(u, cdf) < KOLMOGOROV < _apart(1.1 * u, cdf)
    # Six standard errors, by the fourth and eighth moments: 5π⁴/16 and 10 are E u⁴.
    assert abs(heavy.var() - np.pi**2 / 4) < 6 * np.sqrt((5 - 1) * np.pi**4 / 16 / 1e5)
    assert abs(light.var() - 2) < 6 * np.sqrt((10 - 4) / 1e5)
    assert abs(np.corrcoef(heavy, light)[0, 1]) < 6 / np.sqrt(1e5)


def test_draws_of_pools_follow_their_density() -> None:
    P, n = np.array([[1.0, 0, 2, 0], [0, 0.5, 0, 0], [0, 0, 0, 3]]), 50_000
    model = ICA(pools=P, epsilon=2.0)
    params = generic_params(model, ROWS)
    x = model.sample_exact(params, n, stream(1, Purpose.SAMPLE))
    u = model.encode(params, x)
    for pool, size in zip(P, (2, 1, 1), strict=True):
        r = np.linspace(0, 60, 600_001)
        density = r ** (size - 1) * np.exp(-np.sqrt(2.0 + r * r))
        mass = np.cumsum(density) / density.sum()
        radius = np.sqrt((u * u) @ pool)
        assert _apart(radius, lambda v, m=mass, r=r: np.interp(v, r, m)) < KOLMOGOROV
        assert _apart(1.1 * radius, lambda v, m=mass, r=r: np.interp(v, r, m)) > KOLMOGOROV
    angle = np.arctan2(np.sqrt(2) * u[:, 2], u[:, 0]) / (2 * np.pi) + 0.5
    assert _apart(angle, lambda v: v) < KOLMOGOROV
    fitted = ICA(pools=2, random_state=0, trainer=MaximumLikelihood(n_epochs=1)).fit(ROWS)
    assert fitted.sample(7).shape == (7, 4) and fitted.log_partition_ == 0


# ---------------------------------------------------------------- learning


def test_laplace_sources_are_recovered() -> None:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((8, 8))
    X = rng.laplace(size=(100_000, 8)) @ A.T + 3
    model = ICA(random_state=0).fit(X)
    theirs = FastICA(whiten="unit-variance", random_state=0).fit(X)
    ours = amari(model.components_, A)
    # Errors of a few thousandths by the number of rows; white rows unrotated are at 0.2 to 0.4.
    assert ours < 0.01 and ours < 1.5 * amari(theirs.components_, A)
    assert amari(np.linalg.inv(np.linalg.cholesky(np.cov(X.T))), A) > 0.1
    # The likelihood at the end is at its top: its gradient along W is the rest of E[ψ(u)u'] - I,
    # whose entries have standard errors of 0.003 a batch end; the mean is better than FastICA's.
    u = model.transform(X)
    assert abs(np.tanh(u).T @ u / len(u) - np.eye(8)).max() < 0.02
    assert model.score(X) == pytest.approx(-model.energy(X).mean())


def test_light_and_heavy_tails_together() -> None:
    rng = np.random.default_rng(1)
    light, heavy = rng.uniform(-1, 1, (20_000, 3)), rng.laplace(size=(20_000, 3))
    A = rng.standard_normal((6, 6))
    X = np.concatenate([light, heavy], axis=1) @ A.T
    model = ICA(random_state=0).fit(X)
    owner = abs(model.components_ @ A).argmax(axis=1)
    assert amari(model.components_, A) < 0.03
    np.testing.assert_array_equal(model.params_["sign"], np.where(owner < 3, -1, 1))

    class HeavyOnly(ICA):
        def init_params(self, x: Any, rng: Any) -> Any:
            return super().init_params(x, rng) | {"sign": np.ones(6)}

    assert amari(HeavyOnly(random_state=0).fit(X).components_, A) > 0.05


def test_the_start_is_the_fixed_point_of_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    X = rng.laplace(size=(5000, 5)) @ rng.standard_normal((5, 5))
    W = ICA().init_params(X, stream(0, Purpose.INIT))["W"]
    theirs = FastICA(whiten="unit-variance", tol=1e-10, max_iter=1000, random_state=0).fit(X)
    apart = abs(np.corrcoef((X @ W.T).T, theirs.transform(X).T)[:5, 5:])
    pairs = linear_sum_assignment(-apart)
    # Both are one matrix up to order, sign and scale, where fixed points have converged.
    assert apart[pairs].min() > 1 - 1e-6


def _updates(
    model: ICA, params: dict[str, Any], X: np.ndarray, n: int, size: int = 50, rate: float = 0.3
) -> dict[str, Any]:
    params = {k: v.copy() for k, v in params.items()}
    trainer = MaximumLikelihood(learning_rate=rate)
    carry = trainer.start(model, params, X, None)
    for i in range(n):
        x = X[size * i : size * (i + 1)]
        sums = trainer.collect(model, params, carry, Batch(x, size), None)
        trainer.apply(model, params, carry, sums, Moment(0, i, None))
    return params


def test_the_natural_gradient_learns_the_same_from_mixed_rows() -> None:
    class Plain(ICA):
        def precondition(self, params: Any, grads: Any) -> None:
            return None

    T = np.random.default_rng(3).standard_normal((4, 4)) * 0.3 + np.eye(4)
    shift = np.arange(4.0)
    for model, same in ((ICA(), True), (Plain(), False)):
        one = generic_params(model, ROWS, noise=0.1)
        other = one | {"W": one["W"] @ np.linalg.inv(T), "m": one["m"] @ T.T + shift}
        a = _updates(model, one, ROWS, 8)
        b = _updates(model, other, ROWS @ T.T + shift, 8)
        apart = abs(a["W"] - b["W"] @ T).max() + abs(a["m"] @ T.T + shift - b["m"]).max()
        assert apart < 1e-10 if same else apart > 1e-3
        assert abs(a["W"] - one["W"]).max() > 1e-2
    # It is (I - ψ(u)u'/n) W.
    u = ICA().encode(one, ROWS[:50])
    wanted = one["W"] + 0.3 * (np.eye(4) - np.tanh(u).T @ u / 50) @ one["W"]
    heavy = one | {"sign": np.ones(4)}
    np.testing.assert_allclose(_updates(ICA(), heavy, ROWS, 1)["W"], wanted, atol=1e-12)


def blocks(W: np.ndarray, A: np.ndarray, size: int) -> float:
    """The Amari index of the lengths of size × size blocks of WA: pools come back as pools."""
    P = (W @ A).reshape(len(W) // size, size, -1, size)
    lengths = np.sqrt((P * P).sum(axis=(1, 3)))
    return amari(lengths, np.eye(len(lengths)))


def test_subspaces_are_recovered() -> None:
    rng, n, size = np.random.default_rng(4), 20_000, 2
    energy = np.repeat(rng.exponential(size=(n, 4)) ** 2, size, axis=1)
    A = rng.standard_normal((8, 8))
    X = (rng.standard_normal((n, 8)) * energy) @ A.T
    model = ICA(pools=size, random_state=0).fit(X)
    assert blocks(model.components_, A, size) < 0.01
    alone = ICA(random_state=0).fit(X)  # in no order
    assert blocks(alone.components_, A, size) > 0.1


def test_topographies_put_dependent_sources_side_by_side() -> None:
    """Sources of a 4 × 5 torus whose scales are shared by neighbours, then mixed: the sizes of
    neighbours come back correlated, those of others do not; sources alone know no places."""
    rng, n, pools = np.random.default_rng(7), 8000, torus_pools(4, 5)
    A = rng.standard_normal((20, 20))
    S = rng.standard_normal((n, 20)) * (rng.gamma(0.3, size=(n, 20)) @ pools)
    X = S @ A.T

    def contrast(u: np.ndarray) -> float:
        together = np.corrcoef(abs(u).T)
        near = pools * (1 - np.eye(20)) > 0
        return float(together[near].mean() - together[pools == 0].mean())

    model = ICA(pools=pools, random_state=0).fit(X)
    fitted, u = model.params_, model.transform(X)
    # There are many tops: defects of the order remain, but most of what was planted is there.
    assert contrast(u) > 0.5 * contrast(S) > 0.03
    assert abs(contrast(ICA(random_state=0).fit(X).transform(X))) < 0.25 * contrast(S)
    start = model.init_params(X, stream(0, Purpose.INIT, 2))
    assert model.energy(X).mean() < model.free_energy(start, X).mean()
    # E[ψ(u)u'] = I at a top, as for independent sources.
    assert abs(model.source_grad(fitted, u).T @ u / n - np.eye(20)).max() < 0.1
    with pytest.warns(UnnormalizedScoreWarning):
        model.score(X)
    assert model.sample(3, start=X[:3], n_steps=5).shape == (3, 20)

    unmix = np.linalg.inv(A) / S.std(axis=0)[:, None]
    scales = model._scales({"sign": np.ones(20), "P": pools}, X @ unmix.T)
    planted = fitted | {"W": scales[:, None] * unmix, "m": np.zeros(20)}
    learnt = _updates(model, planted, X, 40, size=200, rate=0.05)
    # Steps at this constant rate leave entries of WA off by √(0.05/400) = 0.011.
    assert amari(learnt["W"], A) < 0.05


def test_sources_that_go_together_come_to_share_pools() -> None:
    rng = np.random.default_rng(0)
    planted = rng.permutation(12)
    together = (pooling(3, 12).T @ pooling(3, 12))[np.ix_(planted, planted)]
    together = together + 0.1 * np.cov(rng.standard_normal((12, 30)))
    order = arrangement(pooling(3, 12), together)
    assert sorted(order) == list(range(12))
    subspaces = planted[order].reshape(4, 3) // 3
    assert (subspaces == subspaces[:, :1]).all()
    # No swap of two sources is left that would help, on a torus with no plan in it either.
    pools = torus_pools(3, 4)
    noise = np.corrcoef(rng.standard_normal((12, 20)))
    order = arrangement(pools, noise)
    shared = (pools.T @ pools) * (1 - np.eye(12))
    best = (shared * noise[np.ix_(order, order)]).sum()
    assert best > (shared * noise).sum()
    for i, j in itertools.combinations(range(12), 2):
        other = order.copy()
        other[[i, j]] = other[[j, i]]
        assert (shared * noise[np.ix_(other, other)]).sum() <= best + 1e-8


def test_fewer_components_leave_a_gaussian() -> None:
    rng, n = np.random.default_rng(9), 20_000
    A = rng.standard_normal((6, 6))
    S = np.concatenate([rng.standard_normal((n, 4)), rng.laplace(size=(n, 2))], axis=1)
    model = ICA(2, random_state=0).fit(S @ A.T)
    W = model.components_ @ A
    assert W.shape == (2, 6) and amari(W[:, 4:], np.eye(2)) < 0.03
    # What of Gaussian sources is left in a component falls with √n: 0.007 of the larger each.
    assert abs(W[:, :4]).max() < 0.05 * abs(W).max()
    np.testing.assert_array_equal(model.params_["sign"], [1, 1, 0, 0, 0, 0])
    # Nearly as likely as by the truth: log p of a row, the Gaussian and the Laplace part.
    truth = norm.logpdf(S[:, :4]).sum(axis=1) - abs(S[:, 4:]).sum(axis=1) - 2 * np.log(2)
    truth -= np.linalg.slogdet(A)[1]
    gap = truth.mean() - model.score(S @ A.T)
    assert -0.01 < gap < 0.1


def test_more_filters_than_features_begin_alike_in_all_directions() -> None:
    """W'W is the inverse covariance times K/d, and Σ_k a_k E[u_k tanh u_k] = d over the rows."""
    model = OvercompleteICA(7)
    p = model.init_params(ROWS, stream(0, Purpose.INIT))
    covariance = np.cov(ROWS.T, bias=True)
    np.testing.assert_allclose(p["W"].T @ p["W"] @ covariance, 7 / 4 * np.eye(4), atol=1e-10)
    u = model.sources(p, ROWS)
    np.testing.assert_allclose((u * np.tanh(u)).mean(axis=0) @ np.exp(p["log_a"]), 4, rtol=1e-10)


def plane_log_likelihood(model: OvercompleteICA, params: Any, x: np.ndarray) -> float:
    points, area = grid(60.0, 601)
    log_z = np.log(np.exp(-model.free_energy(params, points)).sum() * area)
    return float(-model.free_energy(params, x).mean() - log_z)


def test_the_gradient_of_trajectories_is_exact_far_from_0() -> None:
    """In float32 rows at 10⁴ keep three digits after the point: differences from the mean are
    exact, and what is left are roundings of sums of 20 products."""
    rng = np.random.default_rng(0)
    m, W = np.full(5, 1e4, np.float32), rng.standard_normal((20, 5)).astype(np.float32)
    params = {"W": W, "m": m, "log_a": rng.standard_normal(20).astype(np.float32)}
    x = m + rng.standard_normal((7, 5)).astype(np.float32)
    model = OvercompleteICA(20)
    plain = model.input_grad(params, x)
    np.testing.assert_allclose(model.input_grad_function(params)(x), plain, rtol=0, atol=1e-4)


def test_chains_train_more_filters_than_features() -> None:
    """Three sparse directions in the plane: better than the start, and than two sources can do."""
    rng = np.random.default_rng(8)
    truth = OvercompleteICA(3)
    angles = np.array([0.2, 1.2, 2.3])
    params = {
        "W": 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1),
        "m": np.zeros(2),
        "log_a": np.zeros(3),
    }
    points, area = grid(15.0, 601)
    p = np.exp(-truth.free_energy(params, points))
    x = points[rng.choice(len(p), 4000, p=p / p.sum())]
    x += rng.uniform(-0.5, 0.5, x.shape) * np.sqrt(area)
    model = OvercompleteICA(3, random_state=0, trainer=PCD(n_epochs=40, learning_rate=0.05)).fit(x)
    start = model.init_params(x, stream(0, Purpose.INIT, 2))
    best = plane_log_likelihood(truth, params, x)
    reached = plane_log_likelihood(model, model.params_, x)
    begun = plane_log_likelihood(model, start, x)
    # Nine parameters fitted to 4000 rows gain 9/8000 nats over the truth on the rows themselves.
    assert reached > best - 0.1 * (best - begun) and reached < best + 0.01


def test_the_start_of_filters_spreads_as_the_rows_do() -> None:
    model = OvercompleteICA(9)
    params = model.init_params(ROWS, stream(0, Purpose.INIT))
    virial = ((ROWS - params["m"]) * model.input_grad(params, ROWS)).sum(axis=1).mean()
    assert virial == pytest.approx(4)


# ---------------------------------------------------------------- the face


@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@pytest.mark.parametrize("name", MODELS)
def test_fitted_attributes_files_and_codes(name: str, tmp_path: Any) -> None:
    chains = name == "overcomplete"
    trainer = PCD(n_epochs=2, n_chains=10) if chains else MaximumLikelihood(n_epochs=2)
    model = clone(MODELS[name]).set_params(trainer=trainer, random_state=0).fit(ROWS)
    k = {"overcomplete": 7, "fewer": 3, "fewer pools": 2}.get(name, 4)
    assert model.components_.shape == (k, 4) and model.mixing_.shape == (4, k)
    assert len(model.get_feature_names_out()) == k == model.transform(ROWS).shape[1]
    u = (ROWS - model.mean_) @ model.components_.T
    np.testing.assert_allclose(model.transform(ROWS), u, atol=1e-12)
    back = u @ model.mixing_.T + model.mean_
    np.testing.assert_allclose(model.inverse_transform(u), back, atol=1e-9)
    np.testing.assert_allclose(model.transform(back), u, atol=1e-9)
    if k >= 4:
        np.testing.assert_allclose(back, ROWS, atol=1e-9)
    model.save(tmp_path / "m.h5")
    for again in (pickle.loads(pickle.dumps(model)), energyscape.load(tmp_path / "m.h5")):
        np.testing.assert_array_equal(again.transform(ROWS), model.transform(ROWS))
        np.testing.assert_array_equal(again.energy(ROWS), model.energy(ROWS))
        if not speaks(model, ("sample_exact",)):
            np.testing.assert_array_equal(again.sample(3), model.sample(3))


def test_learning_that_goes_astray_says_so() -> None:
    trainer = MaximumLikelihood(n_epochs=20, learning_rate=30.0)
    with pytest.raises(DivergenceError, match="learning rate"):
        ICA(trainer=trainer, random_state=0).fit(ROWS)


def test_rows_of_unequal_scale() -> None:
    """float32 rows whose features are up to 1e4 apart: the same components as of equal ones."""
    scales = np.logspace(-2, 2, 4)
    one = ICA(random_state=0).fit(ROWS.astype(np.float32))
    other = ICA(random_state=0).fit((ROWS * scales).astype(np.float32))
    # To rounding, times the condition number of the mixture (10), and order and sign.
    apart = abs(np.corrcoef(one.transform(ROWS).T, other.transform(ROWS * scales).T)[:4, 4:])
    assert apart[linear_sum_assignment(-apart)].min() > 0.999


def test_float32_rows_stay() -> None:
    model = ICA(random_state=0).fit(ROWS.astype(np.float32))
    assert {v.dtype for v in model.params_.values()} == {np.dtype(np.float32)}
    assert model.sample(2).dtype == np.float32


def test_pools_by_size_and_by_place() -> None:
    np.testing.assert_array_equal(pooling(2, 4), [[1, 1, 0, 0], [0, 0, 1, 1]])
    P = torus_pools(4, 5)
    assert P.shape == (20, 20) and (P.sum(axis=0) == 9).all() and (P == P.T).all()
    assert P[0, 0] == P[0, 1] == P[0, 4] == P[0, 15] == P[0, 19] == 1 and P[0, 2] == 0
    np.testing.assert_array_equal(torus_pools(2, 3, 1), np.eye(6))


def test_errors_say_what_is_wrong() -> None:
    flat = ROWS.copy()
    flat[:, 2] = 7
    for model, rows, message in (
        (ICA(5), ROWS, r"n_components=5 for 4.*OvercompleteICA"),
        (ICA(), ROWS[:4], r"n_samples=4, n_features=4"),
        (ICA(), flat, r"3 of 4 directions.*PCA"),
        (ICA(pools=3), ROWS, "pools of 3 do not divide 4"),
        (ICA(pools=0), ROWS, "pools must be an integer >= 1"),
        (ICA(pools=np.ones((2, 3))), ROWS, r"shape \(2, 3\), wanted \(n_pools, 4\)"),
        (ICA(pools=-np.ones((2, 4))), ROWS, "finite and >= 0"),
        (ICA(pools=np.eye(4)[:3]), ROWS, "every component must be in a pool"),
        (ICA(epsilon=0.0), ROWS, "epsilon must be > 0"),
        (OvercompleteICA(3), ROWS, "n_components=3 for 4"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(rows)
    with pytest.raises(ValueError, match="size must be at most 2"):
        torus_pools(2, 3)
    for model, trainer in ((ICA(), EM()), (OvercompleteICA(5), MaximumLikelihood())):
        with pytest.raises(CapabilityError, match=type(model).__name__):
            model.set_params(trainer=trainer).fit(ROWS)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_both_paths_agree_on_the_same_noise(name: str, dtype: Any, cupy: Any) -> None:
    model, found = MODELS[name], []
    for xp in (np, cupy):
        x, rng = xp.asarray(ROWS.astype(dtype)), ReplayStream(xp)
        params = model.init_params(x, rng)
        passed = model.forward(params, x)
        values = [*params.values(), passed.energy(), passed.input_grad()]
        grads = passed.grad(x[:, 0])
        model.precondition(params, grads)
        values += [*grads.values(), model.decode(params, model.encode(params, x))]
        if not speaks(model, ("sample_exact",)):
            values.append(model.sample_exact(params, 50, rng))
        found.append(values)
    tolerance = 2e-3 if dtype == np.float32 else 1e-8
    for ours, theirs in zip(*found, strict=True):
        assert theirs.dtype == ours.dtype
        scale = max(1.0, float(abs(ours).max()))
        np.testing.assert_allclose(to_host(theirs), ours, atol=tolerance * scale)


@pytest.mark.parametrize("name", ["square", "subspaces", "topography", "fewer"])
def test_an_update_does_not_wait_for_the_gpu(name: str, fake_cupy: Any) -> None:
    model, x = MODELS[name], fake_cupy.asarray(ROWS)
    params = model.init_params(x, ReplayStream(fake_cupy))
    trainer = MaximumLikelihood()
    carry = trainer.start(model, params, x, None)
    standin.Counter.syncs = 0
    sums = trainer.collect(model, params, carry, Batch(x, len(x)), None)
    trainer.apply(model, params, carry, sums, Moment(0, 0, None))
    assert standin.Counter.syncs == 0


@pytest.mark.filterwarnings("ignore::energyscape.errors.UnnormalizedScoreWarning")
@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@parametrize_with_checks(
    [
        ICA(trainer=MaximumLikelihood(n_epochs=2)),
        ICA(pools=1, trainer=MaximumLikelihood(n_epochs=1)),
        OvercompleteICA(12, trainer=PCD(n_epochs=1, n_chains=10)),
    ],
    expected_failed_checks=not_promised,
)
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("epsilon", [0.01, 1.0, 100.0, 1e4])
def test_draws_of_pools_at_any_epsilon(epsilon: float) -> None:
    """Radii of three sources by their distribution, which quadrature gives; and they end."""
    model = ICA(pools=[[1.0, 1.0, 1.0]], epsilon=epsilon)
    u = model._draw_pools(np.ones((1, 3)), 20_000, stream(0, Purpose.SAMPLE))

    def density(r: float) -> float:
        return r * r * float(np.exp(np.sqrt(epsilon) - np.sqrt(epsilon + r * r)))

    grid = np.linspace(0, 40 + 6 * epsilon**0.25, 4001)
    mass = np.concatenate([[0], [quad(density, lo, hi)[0] for lo, hi in itertools.pairwise(grid)]])
    cdf = np.cumsum(mass) / mass.sum()
    assert _apart(np.linalg.norm(u, axis=1), lambda r: np.interp(r, grid, cdf)) < KOLMOGOROV


def test_weights_that_are_not_finite_have_no_inverse() -> None:
    """What ends training is the check of the loop, not LAPACK."""
    W = np.full((5, 3), np.inf)
    assert np.isnan(OvercompleteICA(5).mixing({"W": W})).all()
