"""Gated Markov random fields against quadrature, closed forms and the definition."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import oracles
import pytest
from goodness import ALARM
from scipy.integrate import dblquad, quad
from scipy.special import gammaln, hyperu
from scipy.stats import gamma as gamma_law
from scipy.stats import kstest
from streams import ReplayStream

from energyscape.backend import HostStream, Purpose, stream
from energyscape.errors import CapabilityError, DataRangeWarning, DivergenceError
from energyscape.evaluation.laws import generic_params
from energyscape.models import CovarianceRBM, GaussianRBM, McRBM, MPoT, PoT
from energyscape.optim import SGD, Constant
from energyscape.samplers import AIS, HMC
from energyscape.trainers import PCD, MaximumLikelihood

rng = np.random.default_rng(0)
X2 = 3 + rng.standard_normal((40, 2)) @ np.array([[1.0, 0.5], [0.0, 2.0]])
X4 = 3 + rng.standard_normal((200, 4)) @ rng.standard_normal((4, 4))


def strong(model: Any, x: np.ndarray, seed: int = 1) -> dict[str, np.ndarray]:
    """Parameters whose hidden units matter."""
    draw = np.random.default_rng(seed)
    params = dict(generic_params(model, x))
    params["C"] = draw.standard_normal(params["C"].shape)
    if "W" in params:  # so that means lie a few deviations apart
        params["W"] = draw.standard_normal(params["W"].shape) / model.relative_sigma
    return params


def area(energy: Any, centre: np.ndarray, width: float) -> float:
    """∫∫ exp(-energy) over the plane."""

    def density(b: float, a: float) -> float:
        return float(np.exp(-energy(np.array([[a, b]]))[0]))

    (a, b), w = centre, width
    return dblquad(density, a - w, a + w, b - w, b + w, epsabs=1e-11, epsrel=1e-11)[0]


# ---------------------------------------------------------------- hidden units


@pytest.mark.parametrize("features", [1, 3])
@pytest.mark.parametrize(
    "model",
    [PoT(1), CovarianceRBM(1, learn_pools=False), MPoT(1, n_mean_components=1), GaussianRBM(1)],
    ids=lambda model: type(model).__name__,
)
def test_a_single_unit_or_feature_has_the_gradient_of_many_calls(model: Any, features: int) -> None:
    """Where a transposed matrix is no copy of itself."""
    x = X4[:6, :features]
    params = generic_params(model, x)
    np.testing.assert_allclose(
        model.input_grad_function(params)(x), model.input_grad(params, x), rtol=1e-10
    )


def test_the_history_solves_no_more_systems_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """One linear system a row, which at 1000 rows took as long as 100 updates."""
    solved, decode = [], PoT.decode
    monkeypatch.setattr(
        PoT, "decode", lambda self, p, h: solved.append(len(h)) or decode(self, p, h)
    )
    PoT(4, trainer=PCD(n_epochs=2), random_state=0).fit(np.tile(X4, (50, 1)))
    assert solved == [100, 100]


@pytest.mark.parametrize("pools", [None, 2])
@pytest.mark.parametrize("means", [0, 2])
def test_gamma_units_integrate_out(pools: Any, means: int) -> None:
    """F(x) = -log ∫dh Σ_g exp(-E(x, h, g)), one quadrature for every unit."""
    if means:
        model: Any = MPoT(2, n_mean_components=means, pools=pools)
    else:
        model = PoT(2, pools=pools)
    params, x = strong(model, X2), X2[:5]
    units = 1 if pools else 2
    for row, free in zip(x, model.free_energy(params, x), strict=True):
        total = 0.0
        for g in oracles.states(means):

            def weight(*h: float, g: Any = g, row: Any = row) -> float:
                state = np.concatenate([h, g])[None]
                return float(np.exp(-model.joint_energy(params, row[None], state)[0]))

            if units == 1:
                total += quad(weight, 0, np.inf, epsabs=0, epsrel=1e-10)[0]
            else:
                first = quad(lambda t, w=weight: w(t, 1.0), 0, np.inf, epsabs=0, epsrel=1e-10)[0]
                second = quad(lambda t, w=weight: w(1.0, t), 0, np.inf, epsabs=0, epsrel=1e-10)[0]
                total += first * second / weight(1.0, 1.0)  # they are independent
        assert free == pytest.approx(-math.log(total), abs=1e-7)


def test_x_given_hidden_units_is_the_gaussian_of_the_joint_energy() -> None:
    """Λ/s² is the Hessian of E in x, and the mean is where its slope is 0."""
    model = McRBM(5, n_mean_components=3, pools=None)
    params = strong(model, X4)
    h = np.random.default_rng(2).integers(0, 2, (6, 8)).astype(np.float64)
    precision, pull = model.conditional(params, h)
    s, m = params["deviation"], params["mean_v"]
    mean = np.linalg.solve(precision, pull[..., None])[..., 0] * s + m
    away = np.random.default_rng(3).standard_normal((6, 4))
    up, down, at = (model.joint_energy(params, mean + t * away, h) for t in (1, -1, 0))
    np.testing.assert_allclose(up, down, rtol=1e-9)
    np.testing.assert_allclose(
        up - at, 0.5 * np.einsum("ni,nij,nj->n", away, precision, away) / s**2, rtol=1e-9
    )
    np.testing.assert_allclose(model.decode(params, h), mean, rtol=1e-9)


def test_codes_are_shares_of_the_gamma_units() -> None:
    model = MPoT(3, n_mean_components=2, learn_pools=False)
    params = strong(model, X4)
    q = model.encode(params, X4)
    assert (q[:, :3] > 0).all() and ((q >= 0) & (q <= 1)).all() and q.shape == (200, 5)
    shapes = np.exp(params["a"])
    z = 0.5 * (((X4 - params["mean_v"]) / params["deviation"]) @ params["S"] @ params["C"]) ** 2
    np.testing.assert_allclose(q[:, :3] * shapes, shapes / (1 + z), rtol=1e-12)


@pytest.mark.parametrize("of_host", [True, False], ids=["host", "array functions"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gamma_draws(of_host: bool, dtype: Any) -> None:
    shapes = np.array([0.05, 0.5, 0.95, 1.0, 1.5, 7.0, 300.0], dtype)
    draws = HostStream(3, Purpose.SAMPLE, 0) if of_host else ReplayStream(np, 3)
    many = draws.gamma(np.ascontiguousarray(np.broadcast_to(shapes, (40_000, 7))))
    assert many.dtype == dtype
    for shape, column in zip(shapes, many.T, strict=True):
        # float32 has no numbers below 1e-38, where a shape of 0.05 puts one in ten thousand.
        assert kstest(column.astype(np.float64), gamma_law(float(shape)).cdf).pvalue > ALARM
    assert kstest(many[:, 4].astype(np.float64), gamma_law(1.6).cdf).pvalue < ALARM
    assert (draws.gamma(np.zeros(5, dtype)) == 0).all()


# ---------------------------------------------------------------- log Z


@pytest.mark.slow
def test_log_z_of_few_binary_units_is_the_area() -> None:
    for model in (
        CovarianceRBM(3, learn_pools=False),
        CovarianceRBM(4, pools=2, sigma=2.0),
        McRBM(3, n_mean_components=2),
    ):
        params = strong(model, X2)
        params["C"] = params["C"] * 0.7
        s = float(params["deviation"][0] * np.exp(0.5 * params["log_var"][0]))

        def energy(x: np.ndarray, model: Any = model, params: Any = params) -> np.ndarray:
            return model.free_energy(params, x)

        wanted = math.log(area(energy, params["mean_v"], 12 * s))
        assert model.log_partition(params) == pytest.approx(wanted, abs=1e-7)


def test_log_z_of_a_complete_pot_is_the_product_of_its_experts() -> None:
    model = PoT(4, sigma=math.inf)
    params = strong(model, X4)
    shapes, s = 0.5 + np.exp(params["a"]), math.log(params["deviation"][0])
    each = 0.5 * np.log(2 * np.pi) + gammaln(shapes - 0.5) - gammaln(shapes)
    wanted = each.sum() - np.linalg.slogdet(params["S"] @ params["C"])[1] + 4 * s
    assert model.log_partition(params) == pytest.approx(wanted, abs=1e-12)
    grads = model.log_partition_grad(params)
    for name, grad in grads.items():
        for index in np.ndindex(grad.shape):
            sides = []
            for sign in (1, -1):
                moved = params[name].copy()
                moved[index] += sign * 1e-5
                sides.append(model.log_partition(params | {name: moved}))
            assert grad[index] == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-7)


@pytest.mark.slow
def test_log_z_of_orthogonal_filters() -> None:
    """Tricomi's function without b; the area with it."""
    model = PoT(2)
    params = strong(model, X2)
    turn = np.linalg.qr(np.random.default_rng(4).standard_normal((2, 2)))[0]
    params["C"] = np.linalg.solve(params["S"], turn * np.array([0.8, 1.7]))
    sigma, shapes = math.exp(0.5 * params["log_var"][0]), np.exp(params["a"])
    s = math.log(params["deviation"][0] * sigma)
    c2 = (np.array([0.8, 1.7]) * sigma) ** 2
    # ∫ exp(-t²/2)(1 + c²t²/2)^-γ dt = √(2π)/c U(½, 3/2 - γ, 1/c²)
    each = np.sqrt(2 * np.pi / c2) * hyperu(0.5, 1.5 - shapes, 1 / c2)
    flat = params | {"b": np.zeros(2)}
    assert model.log_partition(flat) == pytest.approx(np.log(each).sum() + 2 * s, abs=1e-9)
    wanted = area(lambda x: model.free_energy(params, x), params["mean_v"], 10 * math.exp(s))
    assert model.log_partition(params) == pytest.approx(math.log(wanted), abs=1e-8)
    one = PoT(1)
    alone = strong(one, X2)
    wanted = area(lambda x: one.free_energy(alone, x), alone["mean_v"], 10 * math.exp(s))
    assert one.log_partition(alone) == pytest.approx(math.log(wanted), abs=1e-8)


def test_log_z_that_is_not_known_is_estimated() -> None:
    model = PoT(6)
    params = strong(model, X4)
    with pytest.raises(CapabilityError, match="orthogonal filters"):
        model.log_partition(params)
    assert model.enumerable_units(params) == math.inf
    fitted = PoT(6, trainer=PCD(n_epochs=2), random_state=0).fit(X4)
    low, high = fitted.log_partition_interval_
    assert low < fitted.log_partition_ < high
    assert np.isfinite(fitted.score(X4))


def test_ais_finds_the_exact_log_z() -> None:
    """Both kinds of units, from the base measure, by HMC: within 0.1 nat, which is seven standard
    errors of the first (0.013, measured over seeds) and more of the second."""
    spread = float(np.sqrt(X4.var(axis=0).mean()))
    for model in (McRBM(5, n_mean_components=3, sigma=1.5 * spread), PoT(4)):
        params = strong(model, X4)
        if isinstance(model, PoT):
            turn = np.linalg.qr(params["C"])[0] * np.array([0.5, 1.0, 1.5, 2.0])
            params["C"] = np.linalg.solve(params["S"], turn)
        path = model.target(params, model.base_measure(params))
        found = AIS(200, 1000, HMC(5)).run(path, stream(0, Purpose.PARTITION))
        assert found.log_partition == pytest.approx(model.log_partition(params), abs=0.1)


def test_exact_draws_of_a_complete_pot() -> None:
    model = PoT(4, sigma=math.inf)
    params = strong(model, X4)
    x = model.sample_exact(params, 40_000, stream(0, Purpose.SAMPLE))
    shapes = 0.5 + np.exp(params["a"])
    y = (x - params["mean_v"]) / params["deviation"] @ params["S"] @ params["C"]
    for t, shape in zip(y.T, shapes, strict=True):
        df = 2 * shape - 1
        assert kstest(t * np.sqrt(df / 2), "t", args=(df,)).pvalue > ALARM
        assert kstest(t * np.sqrt(df / 2), "t", args=(1.5 * df,)).pvalue < ALARM


# ---------------------------------------------------------------- the density


def test_normalized_rows_see_no_length() -> None:
    """Far out the covariance part of the authors' normalised energy no longer changes."""
    model = CovarianceRBM(6, normalize=True)
    params = strong(model, X4) | {"b": np.zeros(4)}
    ray = np.random.default_rng(5).standard_normal((3, 4))

    def gate(scale: float) -> np.ndarray:
        u = scale * ray
        free = model.free_energy(params, params["mean_v"] + params["deviation"] * u)
        return free - 0.5 * (u * u).sum(axis=1) * np.exp(-params["log_var"])

    np.testing.assert_allclose(gate(1e3), gate(1e4), rtol=1e-4)
    assert not hasattr(model, "sample_visible") and not hasattr(model, "base_measure")


def test_scale_and_offset_of_the_data_do_not_matter() -> None:
    """A power of two, since HMC looks for its first step among those."""
    for make in (PoT, CovarianceRBM, McRBM, MPoT):
        fits = [
            make(6, trainer=PCD(n_epochs=3), random_state=0).fit(x)
            for x in (X4, 1024 * X4.astype(np.float64) - 7)
        ]
        np.testing.assert_allclose(
            fits[0].transform(X4), fits[1].transform(1024 * X4 - 7), atol=1e-3
        )


# ---------------------------------------------------------------- learning


def test_filters_keep_one_length_and_pools_stay_pools() -> None:
    mask = np.kron(np.eye(3), np.ones(2))
    model = McRBM(6, n_mean_components=2, pools=mask, trainer=PCD(n_epochs=8), random_state=0)
    start = model.init_params(X4, stream(0, Purpose.INIT))
    model.fit(X4)
    lengths = np.linalg.norm(model.params_["C"], axis=0)
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=1e-10)
    P = model.params_["P"]
    assert (P >= 0).all() and (P[mask.T == 0] == 0).all()
    np.testing.assert_allclose(P.sum(axis=0), 1, rtol=1e-12)
    assert abs(P - start["P"]).max() > 1e-4
    free = PoT(6, equal_norms=False, trainer=PCD(n_epochs=8), random_state=0).fit(X4)
    assert np.ptp(np.linalg.norm(free.params_["C"], axis=0)) > 1e-3


def test_pools_are_learned_in_the_second_half() -> None:
    kept: list[np.ndarray] = []
    trainer = PCD(n_epochs=4, callbacks=[lambda m, s, i: kept.append(s.params["P"].copy())])
    CovarianceRBM(5, trainer=trainer, random_state=0).fit(X4)
    np.testing.assert_array_equal(kept[0], np.eye(5))
    np.testing.assert_array_equal(kept[1], np.eye(5))
    assert abs(kept[3] - np.eye(5)).max() > 1e-4


def test_a_pool_that_lost_all_its_filters_takes_them_up_again() -> None:
    model = CovarianceRBM(4, pools=2)
    params = dict(model.init_params(X4, stream(0, Purpose.INIT)))
    params["P"][:, 0] = [-1, -2, 0, 0]
    model.project(params, {}, None)
    np.testing.assert_allclose(params["P"].T, [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])


@pytest.mark.slow
def test_pcd_comes_near_to_exact_maximum_likelihood() -> None:
    """Rows of a complete PoT: exact likelihoods of PCD by HMC and of the exact gradient, which
    know where the truth is. The rows are not white; the filters see them whitened."""
    draw = np.random.default_rng(8)
    A = draw.standard_normal((6, 6))
    t = draw.standard_t(4, (12_000, 6))
    x, test = np.split((t @ A).astype(np.float32), [8_000])
    truth = -np.linalg.slogdet(A)[1] + (
        gammaln(2.5) - gammaln(2) - 0.5 * np.log(4 * np.pi) - 2.5 * np.log1p(t[8_000:] ** 2 / 4)
    ).sum(axis=1)
    scores = {}
    for name, trainer in (
        ("exact", MaximumLikelihood(n_epochs=30, learning_rate=0.1)),
        ("PCD", PCD(n_epochs=30, learning_rate=0.1, averaging=0.2)),
    ):
        model = PoT(6, sigma=math.inf, equal_norms=False, trainer=trainer, random_state=0)
        scores[name] = model.fit(x).score(test)
    ceiling = truth.mean()
    gaussian = -0.5 * (6 * (np.log(2 * np.pi) + 1) + np.linalg.slogdet(np.cov(x.T))[1])
    assert ceiling - 0.05 < scores["exact"] < ceiling + 0.05, (scores, ceiling)
    assert scores["PCD"] > scores["exact"] - 0.05, (scores, ceiling)
    assert scores["PCD"] > gaussian + 0.1


# ---------------------------------------------------------------- bad input


def test_sigma_for_data_on_another_scale_is_said() -> None:
    scale = float(np.sqrt(X4.var(axis=0).mean()))
    for factor in (1e-3, 1e3):
        model = MPoT(6, n_mean_components=2, sigma=factor * scale, trainer=PCD(n_epochs=1))
        with pytest.warns(DataRangeWarning, match=f"deviate by {scale:.6g} from"):
            model.fit(X4)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataRangeWarning)
        for sigma in (scale, "auto", "learned"):
            MPoT(6, n_mean_components=2, sigma=sigma, trainer=PCD(n_epochs=1)).fit(X4)


def test_settings_that_cannot_be() -> None:
    for model, message in (
        (PoT(3, sigma=math.inf), "at least as many filters as features"),
        (CovarianceRBM(sigma=math.inf), "without a normaliser"),
        (PoT(4, pools=2, sigma=math.inf), "without a normaliser"),
        (MPoT(sigma=math.inf), "without a normaliser"),
        (McRBM(sigma="wide"), "sigma must be"),
        (MPoT(sigma=-1.0), "sigma must be"),
        (MPoT(n_mean_components=0), "n_mean_components must be an integer >= 1"),
        (PoT(5, pools=2), "do not divide"),
        (PoT(5, pools=np.ones((2, 4))), "wanted"),
        (PoT(2, pools=np.array([[1.0, -1.0]])), ">= 0"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(X4)
    with pytest.raises(ValueError, match="at least 2 samples, got n_samples = 1"):
        PoT(3).fit(X4[:1])
    with pytest.raises(CapabilityError, match="reconstruction needs decode"):
        CovarianceRBM(4, normalize=True, trainer=PCD(n_epochs=1)).fit(X4).reconstruct(X4)


@pytest.mark.filterwarnings("ignore::energyscape.errors.SamplerWarning")
@pytest.mark.parametrize(
    ("rate", "words"), [(10.0, "chains whose steps"), (300.0, "matrix that can no longer")]
)
def test_filters_that_run_away_are_an_error(rate: float, words: str) -> None:
    """They leave the chains steps of a thousandth of the first, or covariances of rank one."""
    X = np.random.default_rng(0).standard_normal((400, 4)).astype(np.float32)
    trainer = PCD(n_epochs=100, optimizer=SGD(rate, schedule=Constant()), batch_size=20)
    model = PoT(8, trainer=trainer, equal_norms=False, random_state=0)
    with pytest.raises(DivergenceError, match=f"PoT has a? ?{words} .* rate {rate:g}; .* back at"):
        model.fit(X)
    assert np.isfinite(model.params_["C"]).all()
