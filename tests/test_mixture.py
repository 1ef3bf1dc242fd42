"""Gaussian mixtures against scikit-learn, SciPy, quadrature and k-means."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal, norm
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Reference

from energyscape.backend import Purpose, stream
from energyscape.evaluation.laws import check_model, generic_params
from energyscape.models import covariances
from energyscape.models.kmeans import KMeans
from energyscape.models.mixture import GaussianMixture
from energyscape.optim import Adam
from energyscape.trainers import EM, MaximumLikelihood

KINDS = ("full", "diag", "spherical")
SETS = {
    "iris": load_iris().data,
    "wine": load_wine().data,
    "cancer": load_breast_cancer().data,
    "digits": load_digits().data[:600],
}
EXACT = {"reg_covar": 0.0}


def _rows(n: int = 400, d: int = 4, seed: int = 0) -> np.ndarray:
    """Three clouds that overlap, each stretched its own way."""
    rng = np.random.default_rng(seed)
    X = np.einsum(
        "nij,nj->ni", rng.standard_normal((3, d, d))[np.arange(n) % 3], _normal(rng, n, d)
    )
    return X + 2 * rng.standard_normal((3, d))[np.arange(n) % 3]


def _normal(rng: Any, *shape: int) -> np.ndarray:
    return np.asarray(rng.standard_normal(shape))


def _start(model: Any, X: np.ndarray, seed: int = 0) -> dict[str, np.ndarray]:
    return model.init_params(X, stream(seed, Purpose.INIT))


def _climb(model: Any, params: Any, X: np.ndarray, steps: int) -> tuple[Any, np.ndarray]:
    """EM steps from ``params``, with the bound before each."""
    bounds = []
    for _ in range(steps):
        stats = model.statistics(params, X)
        bounds.append(-stats["energy"] / len(X))
        params = model.maximize(params, stats)
    return params, np.array(bounds)


def _weights(params: Any) -> np.ndarray:
    return np.asarray(softmax(params["w"].astype(np.float64)))


def _covariances(model: Any, params: Any) -> np.ndarray:
    """As matrices, from L by the definition."""
    L, (k, d) = params["L"].astype(np.float64), params["M"].shape
    if L.ndim < 3:
        L = np.broadcast_to(L.reshape(k, -1), (k, d))[:, :, None] * np.eye(d)
    return np.linalg.inv(L @ L.transpose(0, 2, 1))


def _log_joint(model: Any, params: Any, x: np.ndarray) -> np.ndarray:
    parts = zip(params["M"], _covariances(model, params), strict=True)
    each = [multivariate_normal(m, C, allow_singular=False).logpdf(x) for m, C in parts]
    return np.stack(each, axis=1) + np.log(_weights(params))


def _reference(kind: str, params: Any, model: Any, X: np.ndarray, steps: int) -> float:
    """Mean log-likelihood after as many steps of scikit-learn's, in float64."""
    precision = np.linalg.inv(_covariances(model, params))
    d = X.shape[1]
    shaped = {
        "full": precision,
        "diag": np.einsum("kii->ki", precision),
        "spherical": np.einsum("kii->k", precision) / d,
    }[kind]
    theirs = Reference(
        len(precision),
        covariance_type=kind,
        reg_covar=0,
        tol=0,
        max_iter=steps,
        weights_init=_weights(params),
        means_init=params["M"].astype(np.float64),
        precisions_init=shaped,
    )
    with pytest.warns(ConvergenceWarning):
        return float(theirs.fit(X.astype(np.float64)).score(X.astype(np.float64)))


# ---------------------------------------------------------------- EM


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_em_steps_are_scikit_learns(kind: str, shift: float) -> None:
    X = _rows() + shift
    model = GaussianMixture(3, covariance_type=kind, **EXACT)
    start = _start(model, X)
    ours = -model.free_energy(_climb(model, start, X, 6)[0], X).mean()
    # scikit-learn's sums about 0 lose (1e3)² ε of a variance; ours do not.
    tolerance = 1e-10 if shift == 0 else 1e-7
    assert ours == pytest.approx(_reference(kind, start, model, X, 6), rel=tolerance)
    other = -model.free_energy(_climb(model, start, X, 5)[0], X).mean()
    assert abs(other - ours) > 1e-6 * abs(ours)  # one step less is told apart


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 1e3])
def test_float32_keeps_what_it_can(kind: str, shift: float) -> None:
    """Against float64 on the very same rows: ε of each |y|², and nothing more for being far off
    zero than the rounding of the means themselves, 1e3 ε / σ of a y."""
    X = (_rows() + shift).astype(np.float32)
    model = GaussianMixture(3, covariance_type=kind, **EXACT)
    start = _start(model, X)
    assert all(v.dtype == np.float32 for v in start.values())
    ours = -model.free_energy(_climb(model, start, X, 25)[0], X).mean()
    theirs = _reference(kind, start, model, X, 25)
    assert ours == pytest.approx(theirs, rel=1e-5 if shift == 0 else 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_em_does_not_feel_where_zero_is(kind: str) -> None:
    """Rows of deviation 1 at 1e8 are themselves rounded to 1e-8; sums about 0 would lose all."""
    near = np.round(_rows() * 2.0**10) / 2.0**10  # exact after the shift
    model, ends = GaussianMixture(3, covariance_type=kind), []
    for shift in (0.0, 2.0**26):
        start = _start(model, near)
        start = start | {k: start[k] + shift for k in ("M", "offset")}
        end = _climb(model, start, near + shift, 25)[0]
        ends.append(-model.free_energy(end, near + shift).mean())
    # M is rounded to 2^26 ε = 1.5e-8 at every step.
    assert ends[1] == pytest.approx(ends[0], rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SETS)
def test_the_bound_never_falls(kind: str, name: str) -> None:
    """Also where components rest on the floor: it is a constraint of the M step."""
    X = SETS[name]
    for reg in (1e-6, 1e-2, 0.0):
        if reg == 0 and name in ("cancer", "digits"):
            continue  # singular: the likelihood has no bound
        model = GaussianMixture(4, covariance_type=kind, reg_covar=reg)
        _, bounds = _climb(model, _start(model, X), X, 150)
        # A bound may be 0; rounding is relative to the densities' parts, as large as any bound.
        least = -1e-10 * np.abs(bounds).max()
        assert (np.diff(bounds) >= least).all(), np.diff(bounds).min()


def test_a_floor_that_is_added_lets_the_bound_fall() -> None:
    """The control of the law above: scikit-learn's own bound."""
    theirs = Reference(
        4, covariance_type="diag", reg_covar=1e-1, max_iter=150, tol=0, random_state=0
    )
    with pytest.warns(ConvergenceWarning):
        bounds = np.array(theirs.fit(SETS["iris"]).lower_bounds_)
    assert np.diff(bounds).min() < -1e-3 * np.abs(bounds).max()


@pytest.mark.parametrize("kind", KINDS)
def test_the_m_step_is_the_constrained_maximum(kind: str) -> None:
    """No covariance above the floor near the one that is found is likelier."""
    X, rng = _rows() * [1, 1e-3, 1, 10], np.random.default_rng(0)
    X[:, 3] = X[:, 0] + 1e-4 * X[:, 3]  # so that a direction between features falls to the floor
    model = GaussianMixture(2, covariance_type=kind, reg_covar=1e-2)
    params, _ = _climb(model, _start(model, X), X, 5)
    floor, hidden = params["floor"], model.encode(params, X)
    after = model.maximize(params, model.statistics(params, X))
    floor = np.full_like(floor, floor.mean()) if kind == "spherical" else floor

    def expected(covariances: np.ndarray) -> float:
        each = [
            multivariate_normal(m, C).logpdf(X)
            for m, C in zip(after["M"], covariances, strict=True)
        ]
        return float((hidden * np.stack(each, axis=1)).sum())

    best = _covariances(model, after)
    unit = np.sqrt(floor)
    least = np.linalg.eigvalsh(best / unit[:, None] / unit).min()
    assert least >= 1 - 1e-9
    if kind == "full":
        assert least < 1.001
    for _ in range(50):
        bent = best * (1 + 1e-3 * _normal(rng, 1, 4, 4))
        if kind == "full":
            values, V = np.linalg.eigh((bent + bent.transpose(0, 2, 1)) / 2 / np.outer(unit, unit))
            bent = (
                (V * np.maximum(values, 1)[:, None]) @ V.transpose(0, 2, 1) * np.outer(unit, unit)
            )
        else:
            variances = np.maximum(np.einsum("kii->ki", bent), floor)
            if kind == "spherical":
                variances[:] = variances[:, :1]
            bent = variances[:, :, None] * np.eye(4)
        assert expected(bent) <= expected(best) + 1e-7


@pytest.mark.parametrize("rows", [600, 200], ids=["regular", "singular"])
def test_an_em_step_in_many_features(rows: int) -> None:
    """Triangles are divided into blocks there: densities, and the covariances of one step."""
    x = stream(0, Purpose.START).normal((rows, 300), np.float64) * np.linspace(0.5, 2, 300)
    model = GaussianMixture(2, reg_covar=1e-3)
    params = model.init_params(x, stream(0, Purpose.INIT))
    stats = model.statistics(params, x)
    after = model.maximize(params, stats)
    share = model.encode(params, x)
    for k in range(2):
        covariance = np.linalg.inv(params["L"][k] @ params["L"][k].T)
        own = multivariate_normal(params["M"][k], covariance).logpdf(x)
        prior = params["w"][k] - logsumexp(params["w"])
        np.testing.assert_allclose(model.log_joint(params, x)[:, k], own + prior, rtol=1e-9)
        away, unit = x - share[:, k] @ x / share[:, k].sum(), np.sqrt(params["floor"])
        S = (share[:, k, None] * away).T @ away / share[:, k].sum() / np.outer(unit, unit)
        values, vectors = np.linalg.eigh(S)
        assert rows > 300 or values[0] < 1 - 1e-6
        bounded = (vectors * np.maximum(values, 1)) @ vectors.T * np.outer(unit, unit)
        precision = after["L"][k] @ after["L"][k].T
        np.testing.assert_allclose(precision @ bounded, np.eye(300), atol=1e-7)


def test_units_of_the_features_do_not_matter() -> None:
    """The floor is a fraction of each feature's variance, so that small units do not drown."""
    X, scale = _rows(), 10.0 ** np.array([-5, 0, 3, 6])
    for kind in ("full", "diag"):
        model, ends = GaussianMixture(3, covariance_type=kind), []
        params = _climb(model, _start(model, X), X, 3)[0]
        for s in (1.0, scale):
            bent = {k: params[k] * s for k in ("M", "offset")}
            bent |= {"floor": params["floor"] * s**2}
            bent["L"] = params["L"] / (np.broadcast_to(s, 4)[:, None] if kind == "full" else s)
            end, _ = _climb(model, params | bent, X * s, 30)
            ends.append(model.encode(end, X * s))
        np.testing.assert_allclose(ends[1], ends[0], atol=1e-9)


# ---------------------------------------------------------------- energies


@pytest.mark.parametrize("kind", KINDS)
def test_it_obeys_the_laws(kind: str) -> None:
    for seed in (0, 1):
        checked = check_model(GaussianMixture(3, covariance_type=kind), _rows(60), seed)
        assert "input_gradient_is_central_difference" in checked


@pytest.mark.parametrize("kind", KINDS)
def test_energies_and_posteriors_are_by_definition(kind: str) -> None:
    X = _rows()
    model = GaussianMixture(3, covariance_type=kind)
    params = generic_params(model, X)
    joint = _log_joint(model, params, X)
    np.testing.assert_allclose(model.log_joint(params, X), joint, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(model.free_energy(params, X), -logsumexp(joint, axis=1), rtol=1e-10)
    np.testing.assert_allclose(model.encode(params, X), softmax(joint, axis=1), atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_laplacian_is_central_differences(kind: str) -> None:
    X = _rows(40)
    model = GaussianMixture(3, covariance_type=kind)
    params, h, total = generic_params(model, X, noise=0.05), 1e-5, 0.0
    for i, e in enumerate(np.eye(X.shape[1]) * h):
        slopes = [model.input_grad(params, X + s * e)[:, i] for s in (1, -1)]
        total = total + (slopes[0] - slopes[1]) / (2 * h)
    # Truncation h² F'''' and rounding ε F'/h are both below 1e-6 of the largest.
    got = model.laplacian(params, X)
    np.testing.assert_allclose(got, total, atol=1e-6 * np.abs(total).max())
    # The control: without |∂F/∂x|² it is another number.
    wrong = got - (model.input_grad(params, X) ** 2).sum(axis=1)
    assert np.abs(wrong - total).max() > 1e-3 * np.abs(total).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d", [1, 2])
def test_the_density_integrates_to_one(kind: str, d: int) -> None:
    X = _rows(200, d)
    model = GaussianMixture(3, covariance_type=kind)
    params = _climb(model, _start(model, X), X, 10)[0]
    # The trapezoid rule converges exponentially for Gaussians: steps of σ/4, 12 σ to each side.
    C = _covariances(model, params)
    values, far = np.linalg.eigvalsh(C), np.sqrt(np.einsum("kii->ki", C))
    step = np.sqrt(values.min()) / (4 if d == 1 else 1.3)
    low = (params["M"] - (12 if d == 1 else 7) * far).min(axis=0)
    high = (params["M"] + (12 if d == 1 else 7) * far).max(axis=0)
    axes = [np.arange(a, b, step) for a, b in zip(low, high, strict=True)]
    x = np.stack([g.ravel() for g in np.meshgrid(*axes)], axis=1)
    mass = np.exp(-model.free_energy(params, x)).sum() * step**d
    # At σ/1.3 the rule's error is 2 exp(-2π² 1.3²) = 7e-15; tails of 7 σ weigh 3e-12.
    assert mass == pytest.approx(1, abs=1e-9)
    assert model.log_partition(params) == 0 and model.log_partition_grad(params) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_is_that_of_the_joint_energy(kind: str) -> None:
    X = _rows(30)
    model = GaussianMixture(3, covariance_type=kind)
    params = generic_params(model, X, noise=0.1)
    E = -_log_joint(model, params, X)
    betas = np.linspace(0.1, 2, len(X))
    for beta in (0.3, betas):
        passed = model.forward(params, X, beta)
        wanted = -logsumexp(-np.reshape(beta, (-1, 1)) * E, axis=1)
        np.testing.assert_allclose(passed.energy(), wanted, rtol=1e-9, atol=1e-9)
        again = model.forward(params, X).at(beta)
        np.testing.assert_array_equal(again.energy(), passed.energy())
        h, slopes = 1e-5, np.empty_like(X)
        for i, e in enumerate(np.eye(X.shape[1]) * h):
            ends = [model.forward(params, X + s * e, beta).energy() for s in (1, -1)]
            slopes[:, i] = (ends[0] - ends[1]) / (2 * h)
        np.testing.assert_allclose(
            passed.input_grad(), slopes, atol=1e-6 * max(1, np.abs(slopes).max())
        )
        halves = passed[:10].join(passed[10:]) if np.ndim(beta) == 0 else passed[:30]
        np.testing.assert_allclose(halves.energy(), passed.energy(), rtol=1e-12)
    # min E - log K / β <= F_β / β <= min E
    cold = model.forward(params, X, 1e6).energy() / 1e6
    low = E.min(axis=1)
    slack = 1e-9 * (1 + np.abs(low))
    assert (cold <= low + slack).all() and (cold >= low - np.log(3) / 1e6 - slack).all()


def test_a_vanishing_common_variance_gives_k_means() -> None:
    """Equal weights and σ: min d² - 2σ² log K <= 2σ² (F - c) <= min d², so that posteriors turn
    into assignments, and the M step of the means into Lloyd's."""
    X = _rows()
    means = KMeans(3)
    centres = means.init_params(X, stream(0, Purpose.INIT))
    model = GaussianMixture(3, covariance_type="spherical")
    start = _start(model, X) | {"w": np.zeros(3), "M": centres["mu"]}
    nearest, labels = means.free_energy(centres, X), means.assign(centres, X)
    for sigma in (1.0, 1e-1, 1e-3):
        params = start | {"L": np.full(3, 1 / sigma)}
        constant = np.log(3) + X.shape[1] * np.log(sigma * np.sqrt(2 * np.pi))
        scaled = 2 * sigma**2 * (model.free_energy(params, X) - constant)
        assert (scaled <= nearest + 1e-9).all()
        assert (scaled >= nearest - 2 * sigma**2 * np.log(3) - 1e-9).all()
    # At σ = 1e-3 ties within 1e-5 alone would be shared; there are none.
    np.testing.assert_array_equal(model.encode(params, X), np.eye(3)[labels])
    moved = model.maximize(params, model.statistics(params, X))
    lloyd = means.maximize(centres, means.statistics(centres, X))
    np.testing.assert_allclose(moved["M"], lloyd["mu"], atol=1e-12)
    np.testing.assert_allclose(_weights(moved), np.bincount(labels) / len(X), atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_components_does_not_matter(kind: str) -> None:
    X, order = _rows(), [2, 0, 1]
    model = GaussianMixture(3, covariance_type=kind)
    params = generic_params(model, X)
    turned = params | {k: params[k][order] for k in "wML"}
    np.testing.assert_allclose(
        model.free_energy(turned, X), model.free_energy(params, X), rtol=1e-12
    )
    one, other = (model.maximize(p, model.statistics(p, X)) for p in (params, turned))
    for key in "wML":
        np.testing.assert_allclose(other[key], one[key][order], rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- draws


def _score_tests(model: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """z of E r_k = π_k, E r_k y = 0 and E r_k yy' = π_k I over draws of the model."""
    r, pi = model.encode(params, x), _weights(params)
    L = params["L"]
    z = []
    for k, mean in enumerate(params["M"]):
        y = (x - mean) @ L[k] if L.ndim == 3 else (x - mean) * L[k]
        pairs = (y[:, :, None] * y[:, None, :] - np.eye(x.shape[1])).reshape(len(x), -1)
        terms = np.column_stack([r[:, k] - pi[k], r[:, k, None] * y, r[:, k, None] * pairs])
        z.append(terms.mean(axis=0) / (terms.std(axis=0) / np.sqrt(len(x))))
    return np.abs(np.concatenate(z))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_of_the_model(kind: str) -> None:
    X = _rows()
    model = GaussianMixture(3, covariance_type=kind)
    params = _climb(model, _start(model, X), X, 10)[0]
    z = _score_tests(model, params, model.sample_exact(params, 40_000, stream(1, Purpose.SAMPLE)))
    # All of them within the quantile that 1e-6 of such families leave: false alarm 1e-6.
    bound = norm.isf(1e-6 / 2 / z.size)
    assert z.max() < bound
    # The control: weights off by a twentieth, or roots by a fiftieth, are seen.
    for wrong in ({"w": params["w"] + [0.1, 0, -0.1]}, {"L": 1.04 * params["L"]}):
        x = model.sample_exact(params | wrong, 40_000, stream(1, Purpose.SAMPLE))
        assert _score_tests(model, params, x).max() > bound


# ---------------------------------------------------------------- the face


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("what", ["constant", "all constant", "duplicates", "few", "copied"])
def test_singular_rows_stay_finite_and_are_named(kind: str, dtype: Any, what: str) -> None:
    X = _rows(60)
    if what == "constant":
        X[:, 1] = 7.1
    elif what == "all constant":
        X[:] = 7.1
    elif what == "duplicates":
        X = np.repeat(X[:3], 20, axis=0)
    elif what == "few":
        X = np.repeat(X[:2], 30, axis=0)
    else:
        X[:, 1] = 2 * X[:, 0]
    X = X.astype(dtype)
    model = GaussianMixture(3, covariance_type=kind, random_state=0, trainer=EM(tol=1e-2))
    spared = kind == "spherical" and what in ("constant", "copied")
    spared = spared or (kind == "diag" and what == "copied")
    if spared:
        model.fit(X)
    else:
        with pytest.warns(ConvergenceWarning, match="reg_covar=1e-06"):
            model.fit(X)
    values = [*model.params_.values(), model.score_samples(X), model.sample(5), model.transform(X)]
    assert all(np.isfinite(v).all() for v in values)
    assert np.isfinite(model.covariances_).all()


def test_more_components_than_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected n_samples >= n_components but got n_comp"):
        GaussianMixture(5).fit(_rows(4))
    with pytest.raises(ValueError, match=r"covariance_type must be one of full, diag, spherical"):
        GaussianMixture(2, covariance_type="tied").fit(_rows())
    with pytest.raises(ValueError, match=r"reg_covar must be >= 0 and finite, got -1"):
        GaussianMixture(2, reg_covar=-1).fit(_rows())
    with pytest.raises(TypeError, match="no path from a base measure"):
        GaussianMixture(2).forward({}, _rows(), 1.0, {})


@pytest.mark.parametrize("kind", KINDS)
def test_fitted_attributes_say_the_same_as_the_density(kind: str) -> None:
    X = _rows()
    model = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    assert model.weights_.sum() == pytest.approx(1)
    C = model.covariances_
    shapes = {"full": (3, 4, 4), "diag": (3, 4), "spherical": (3,)}
    assert C.shape == shapes[kind]
    if kind != "full":
        C = np.broadcast_to(C.reshape(3, -1), (3, 4))[:, :, None] * np.eye(4)
    parts = zip(model.means_, C, strict=True)
    joint = np.stack([multivariate_normal(m, c).logpdf(X) for m, c in parts], axis=1)
    joint += np.log(model.weights_)
    np.testing.assert_allclose(model.score_samples(X), logsumexp(joint, axis=1), rtol=1e-8)
    np.testing.assert_array_equal(model.predict(X), joint.argmax(axis=1))
    np.testing.assert_allclose(model.predict_proba(X), softmax(joint, axis=1), atol=1e-8)
    np.testing.assert_array_equal(model.components_, model.means_)
    assert model.log_partition_ == 0 and model.log_partition_ess_ == np.inf


@pytest.mark.parametrize("kind", KINDS)
def test_stepwise_em_ends_near_the_batch_solution(kind: str) -> None:
    """With κ = 1 and many passes; the last batches' noise is of the order of one over their
    number, a hundredth of a nat."""
    X = _rows(3000)
    batch = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    trainer = EM(batch_size=100, n_epochs=40)
    steps = GaussianMixture(3, covariance_type=kind, random_state=0, trainer=trainer).fit(X)
    assert steps.score(X) == pytest.approx(batch.score(X), abs=0.05)
    # The control: a single pass of batches is further off.
    one = EM(batch_size=100, n_epochs=1)
    start = GaussianMixture(3, covariance_type=kind, random_state=0, trainer=one).fit(X)
    assert abs(batch.score(X) - steps.score(X)) < abs(batch.score(X) - start.score(X))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_what_em_reaches(kind: str) -> None:
    X = _rows(600) + 20
    em = GaussianMixture(3, covariance_type=kind, trainer=EM(300, 1e-9), random_state=0).fit(X)
    trainer = MaximumLikelihood(150, 100, optimizer=Adam(0.02))
    slope = GaussianMixture(3, covariance_type=kind, trainer=trainer, random_state=0).fit(X)
    # The same optimum but for what is left of the steps' noise when the rate has fallen to 0.
    assert slope.score(X) == pytest.approx(em.score(X), abs=2e-3)
    assert "learning_rate" in slope.history_ and "bound" not in slope.history_


def test_a_pivot_below_zero_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cuSOLVER leaves of a matrix that is not positive, where NumPy raises."""
    matrix = np.diag([5.0, 5.0, -9.0])[None]
    assert covariances._roots_above_one(matrix) is None
    left = np.diag([5**0.5, 5**0.5, -9.0])[None]
    monkeypatch.setattr(np.linalg, "cholesky", lambda S: left)
    assert covariances._roots_above_one(matrix) is None
