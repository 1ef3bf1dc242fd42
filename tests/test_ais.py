"""AIS is unbiased by every kernel and from every base, and the same test sees known bugs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles
import pytest
from goodness import ALARM, SIGMAS
from sampler_cases import (
    FILTERS,
    GAMMA,
    STRONG,
    STRONG_RBM,
    TRUTHS,
    Truth,
    product_of_t,
)
from scipy.stats import f as fisher
from scipy.stats import kstest, multivariate_normal, multivariate_t
from sklearn.base import clone
from streams import ReplayStream

from energyscape.backend import Purpose, stream, to_host
from energyscape.errors import CapabilityError, SamplerWarning
from energyscape.models import RBM
from energyscape.samplers import (
    AIS,
    HMC,
    Bridge,
    ChEES,
    Gaussian,
    Gibbs,
    Langevin,
    Metropolis,
    ParallelTempering,
    PooledMass,
    RobbinsMonro,
    StudentT,
    from_functions,
)

N = 20_000


@dataclass(frozen=True, eq=False)
class Case:
    """A path to a target whose log Z is known, and a kernel that moves along it."""

    name: str
    path: Callable[[], Any]
    truth: Truth
    kernel: Any
    log_z: float

    def draws(self, n: int) -> np.ndarray:
        x = self.truth.draw(n, np.random.default_rng(3), 1.0)
        return x.reshape(n, *self.path().event_shape)


def _rough(name: str, beta: float) -> np.ndarray:
    """Rows that are off the target: few, too wide and shifted, so that weights vary."""
    truth = TRUTHS[name]
    x = truth.draw(400, np.random.default_rng(11), beta) + 0.2 * truth.spread
    return x.reshape(400, -1)


def _rows_of_t() -> Any:
    """The product of Student's t as a target of flat rows, as the bases are."""
    plain = product_of_t()
    return from_functions(
        lambda x: plain.energy(x.reshape(-1, 2, 3)),
        lambda x: plain.input_grad(x.reshape(-1, 2, 3)).reshape(-1, 6),
        (6,),
    )


@functools.cache
def _bridge(name: str) -> Any:
    if name == "product of t":
        return Bridge(StudentT.fit(_rough(name, 0.9), df=4), _rows_of_t())
    return Bridge(Gaussian.fit(_rough(name, 0.7)), TRUTHS[name].target(1))


def _cases() -> list[Case]:
    strong, modes = oracles.rbm_log_z(STRONG), TRUTHS["GaussianRBM"].log_z
    t, cases = TRUTHS, []
    for name, kernel in (("Gibbs", Gibbs()), ("Metropolis", Metropolis())):
        path = t["RBM path"]
        cases.append(Case(f"RBM, {name}", functools.partial(path.target, 1), path, kernel, strong))
    for name, kernel in (("Gibbs", Gibbs()), ("HMC", HMC(5, 0.5)), ("Langevin", Langevin(0.1))):
        path = t["GaussianRBM path"]
        cases.append(
            Case(f"GaussianRBM, {name}", functools.partial(path.target, 1), path, kernel, modes)
        )
    for name, kernel in (
        ("GaussianRBM", HMC(5, 0.5)),
        ("Gaussian", HMC(3, 0.25)),
        ("Gaussian", HMC(1, 0.3, persistence=0.7)),
        ("Gaussian", Langevin(0.03)),
        ("product of t", HMC(3, 0.4)),
        ("product of t", Langevin(0.06)),
    ):
        kind = "persistent " * bool(getattr(kernel, "persistence", 0)) + type(kernel).__name__
        cases.append(
            Case(
                f"bridge to {name}, {kind}",
                functools.partial(_bridge, name),
                t[name],
                kernel,
                t[name].log_z,
            )
        )
    return cases


CASES = _cases()
over = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
few = pytest.mark.parametrize("n_temperatures", [3, 10, 30])


def _z_score(ratios: np.ndarray) -> float:
    return (ratios.mean() - 1) / (ratios.std(ddof=1) / np.sqrt(len(ratios)))


def _forward(case: Case, ais: Any, seed: int = 1, path: Any = None) -> tuple[float, Any]:
    """z-score of E[Ẑ]/Z = 1, and the estimate."""
    target = case.path()
    found = ais.run(target, stream(seed, Purpose.PARTITION), path=path)
    shift = target.base_log_partition() - case.log_z
    return _z_score(np.exp(found.log_weights + shift)), found


def _backward(case: Case, ais: Any, seed: int = 2, path: Any = None) -> tuple[float, Any]:
    """z-score of E[1/Ẑ]·Z = 1 from exact draws, and the estimate."""
    target = case.path()
    rng = stream(seed, Purpose.PARTITION)
    found = ais.reverse(target, case.draws(ais.n_chains), rng, exact=True, path=path)
    shift = case.log_z - target.base_log_partition()
    return _z_score(np.exp(found.log_weights + shift)), found


@few
@over
def test_ais_is_unbiased_forward_and_reverse(case: Case, n_temperatures: int) -> None:
    # Many temperatures are dear, and see least.
    ais = AIS(N if n_temperatures < 30 else N // 2, n_temperatures, case.kernel, n_pilot=0)
    z, forward = _forward(case, ais)
    base = case.path().base_log_partition()
    assert forward.ess_fraction > 0.1, "so uneven weights hide what they should show"
    assert abs(z) < SIGMAS
    assert forward.log_weights.mean() + base < case.log_z  # Jensen, far beyond noise here
    assert forward.kind == "lower bound"
    if not case.kernel.reversible:
        with pytest.raises(ValueError, match="reversible"):
            _backward(case, ais)
        return
    z, backward = _backward(case, ais)
    assert backward.ess_fraction > 0.05
    assert abs(z) < SIGMAS
    assert case.log_z < base - backward.log_weights.mean()
    assert backward.kind == "upper bound"


@pytest.mark.parametrize("case", [c for c in CASES if "HMC" in c.name], ids=lambda case: case.name)
def test_the_pilot_does_not_bias(case: Case) -> None:
    """It chooses temperatures and step sizes, from chains of its own."""
    settings = {"step_size": None, "adaptation": None}
    ais = AIS(N // 2, 8, case.kernel.__class__(**case.kernel.get_params() | settings), n_pilot=20)
    z, forward = _forward(case, ais)
    assert forward.ess_fraction > 0.1
    assert abs(z) < SIGMAS
    target = case.path()
    path = AIS(200, 8, ais.sampler, n_pilot=20).plan(target, stream(5, Purpose.PARTITION))
    assert (path.betas[0], path.betas[-1], len(path.betas)) == (0, 1, 9)
    assert (np.diff(path.betas) > 0).all() and (path.steps > 0).all()
    assert abs(_forward(case, ais, path=path)[0]) < SIGMAS
    if case.kernel.reversible:
        assert abs(_backward(case, ais, path=path)[0]) < SIGMAS


def test_the_default_kernel_is_what_the_target_has() -> None:
    """Gibbs where there are conditionals, else HMC with step sizes from the pilot."""
    for name in ("RBM, Gibbs", "bridge to Gaussian, HMC"):
        case = next(c for c in CASES if c.name == name)
        z, found = _forward(case, AIS(2000, 100))
        assert abs(z) < SIGMAS and found.ess_fraction > 0.5


# ---------------------------------------------------------------- negative controls


class WeightAfterMove(AIS):
    """The wrong order: the state moves before its weight is taken."""

    def run(self, target: Any, rng: Any, verbose: bool = False, path: Any = None) -> Any:
        path = self.plan(target, rng)
        x = target.sample_base(self.n_chains, rng)
        kernel, chains = self._begin(target, x, path, rng)
        log_w = np.zeros(len(x))
        for low, high in zip(path.betas[:-1], path.betas[1:], strict=True):
            kernel.step(target.at(high), chains, rng)
            passed = target.forward(chains.x)
            log_w += passed.at(low).energy() - passed.at(high).energy()
        return _Weights(log_w)


class DroppedFactor(AIS):
    """Reverse AIS with the k = 0 factor left out."""

    def _descend(self, target: Any, x: Any, rng: Any, verbose: bool, path: Any) -> Any:
        betas = self.plan(target, rng).betas
        kernel, chains = self._begin(target, x, self.plan(target, rng), rng)
        log_w = np.zeros(len(x))
        for k in range(len(betas) - 2, 0, -1):
            kernel.step(target.at(betas[k + 1]), chains, rng)
            passed = target.forward(chains.x)
            log_w += passed.at(betas[k + 1]).energy() - passed.at(betas[k]).energy()
        return log_w


@dataclass
class _Weights:
    log_weights: np.ndarray


@pytest.mark.parametrize("n_temperatures", [3, 5])  # many temperatures hide every bug
@over
def test_known_bugs_are_seen(case: Case, n_temperatures: int) -> None:
    wrong = WeightAfterMove(N, n_temperatures, case.kernel, n_pilot=0)
    assert abs(_forward(case, wrong)[0]) > SIGMAS
    if case.kernel.reversible:
        wrong = DroppedFactor(N, n_temperatures, case.kernel, n_pilot=0)
        assert abs(_backward(case, wrong)[0]) > SIGMAS


class Stale(HMC):
    """Energies and gradients of the last temperature are used at this one."""

    def step(self, target: Any, chains: Any, rng: Any, passed: Any = None) -> Any:
        return super().step(target, chains, rng)

    def _at_start(self, target: Any, chains: Any, passed: Any) -> Any:
        cached = chains.cache
        return super()._at_start(target, chains, None) if cached is None else cached[1:]


@pytest.mark.parametrize(
    ("name", "n_temperatures"),
    [("Gaussian", 10), ("GaussianRBM", 10), ("product of t", 10)],
)
def test_a_stale_cache_is_seen(name: str, n_temperatures: int) -> None:
    case = next(c for c in CASES if c.name == f"bridge to {name}, HMC")
    kernel = Stale(5, case.kernel.step_size)
    assert abs(_forward(case, AIS(N, n_temperatures, kernel, n_pilot=0))[0]) > SIGMAS


@pytest.mark.parametrize(
    ("kernel", "what"),
    [
        (Langevin(0.03, adjusted=False), "unadjusted"),
        (Langevin(0.03, temperature=2.0), "at a temperature of its own"),
        (ParallelTempering(HMC(3, 0.25)), "with temperatures of its own"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kernels_that_do_not_leave_the_target_alone_are_refused(kernel: Any, what: str) -> None:
    case = next(c for c in CASES if c.name == "bridge to Gaussian, HMC")
    try:
        with pytest.raises(ValueError):
            AIS(100, 5, kernel, n_pilot=0).run(case.path(), stream(1, Purpose.PARTITION))
    except pytest.fail.Exception:
        z = _forward(case, AIS(N, 10, kernel, n_pilot=0))[0]
        pytest.fail(f"a kernel {what} is taken, and Ẑ is off by {z:.0f} standard errors")


@pytest.mark.parametrize("name", ["Gaussian", "product of t", "GaussianRBM"])
def test_gradients_along_a_bridge_are_central_differences(name: str) -> None:
    path, h = _bridge(name), 1e-5
    x = path.sample_base(4, stream(0, Purpose.SAMPLE))
    for beta in (0.0, 0.3, 1.0, np.array([0.0, 0.2, 0.7, 1.0])):
        at = path.at(beta)
        steps = h * np.eye(x.shape[1])
        slopes = np.stack([(at.energy(x + e) - at.energy(x - e)) / (2 * h) for e in steps], axis=1)
        for grad in (at.input_grad(x), at.gradient()(x)):
            np.testing.assert_allclose(grad, slopes, rtol=1e-6, atol=1e-6 * abs(slopes).max())


# ---------------------------------------------------------------- bases


def _bases() -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(2)
    A = rng.standard_normal((4, 4))
    mean, cov = rng.standard_normal(4), A @ A.T + 0.1 * np.eye(4)
    return [
        (Gaussian(mean, cov), multivariate_normal(mean, cov)),
        (StudentT(mean, cov, 1), multivariate_t(mean, cov, 1)),
        (StudentT(mean, cov, 5), multivariate_t(mean, cov, 5)),
    ]


@pytest.mark.parametrize(("base", "known"), _bases(), ids=["Gaussian", "Cauchy", "StudentT"])
def test_bases_are_their_densities(base: Any, known: Any) -> None:
    x = base.mean + 3 * np.random.default_rng(0).standard_normal((50, 4))
    np.testing.assert_allclose(-base.energy(x) - base.log_partition(), known.logpdf(x), rtol=1e-10)
    h, slopes = 1e-5, np.empty_like(x)
    for i in range(4):
        step = h * np.eye(4)[i]
        slopes[:, i] = (base.energy(x + step) - base.energy(x - step)) / (2 * h)
    np.testing.assert_allclose(base.input_grad(x), slopes, rtol=1e-6, atol=1e-8)
    narrow = type(base)(*(a.astype(np.float32) for a in (base.mean, base.scale)), *_df(base))
    assert narrow.sample(3, stream(0, Purpose.SAMPLE)).dtype == np.float32
    assert narrow.energy(x.astype(np.float32)).dtype == np.float64
    assert narrow.log_partition() == pytest.approx(base.log_partition(), abs=1e-5)


def _df(base: Any) -> tuple[int, ...]:
    return (base.df,) if isinstance(base, StudentT) else ()


@pytest.mark.parametrize(("base", "known"), _bases(), ids=["Gaussian", "Cauchy", "StudentT"])
def test_bases_draw_from_their_densities(base: Any, known: Any) -> None:
    """Ten directions, and the squared distance: χ² of 4, or 4 F(4, ν). Another scale is seen."""
    x = base.sample(50_000, stream(0, Purpose.SAMPLE))
    df = base.df if isinstance(base, StudentT) else np.inf
    directions = np.random.default_rng(1).standard_normal((10, 4))
    scales = np.sqrt(np.einsum("ki,ij,kj->k", directions, base.scale, directions))
    z = (x - base.mean) @ directions.T / scales
    one = ("norm", ()) if np.isinf(df) else ("t", (df,))
    ps = [kstest(column, *one).pvalue for column in z.T]
    distance = ((x - base.mean) @ np.linalg.inv(base.scale) * (x - base.mean)).sum(axis=1) / 4
    radius = ("chi2", (4, 0, 0.25)) if np.isinf(df) else (fisher(4, df).cdf, ())
    ps.append(kstest(distance, *radius).pvalue)
    assert min(ps) > ALARM / len(ps)
    assert kstest(1.05 * distance, *radius).pvalue < ALARM
    assert known.dim == 4


def test_bases_are_fitted() -> None:
    X = np.random.default_rng(0).standard_normal((500, 3)) @ np.diag([1, 2, 3]) + 5
    for base, share in ((Gaussian.fit(X), 1.0), (StudentT.fit(X, 6), 4 / 6)):
        np.testing.assert_allclose(base.mean, X.mean(axis=0))
        np.testing.assert_allclose(base.scale, share * np.cov(X.T), rtol=1e-4, atol=1e-4)
    few_rows = Gaussian.fit(X[:3])  # a singular covariance, but for the ridge
    assert np.isfinite(few_rows.log_partition())


@pytest.mark.parametrize("base", [Gaussian, StudentT])
def test_bases_of_whole_numbers_are_real(base: Any) -> None:
    X = np.random.default_rng(0).integers(0, 2, (500, 3))
    for rows in (X, X.astype(np.uint8), X.astype(bool)):
        found, wanted = base.fit(rows), base.fit(X.astype(float))
        np.testing.assert_array_equal(found.mean, wanted.mean)
        np.testing.assert_array_equal(found.scale, wanted.scale)
    given = base(np.zeros(2, int), np.array([[2, 1], [1, 2]]))
    wanted = np.linalg.inv([[2, 1], [1, 2]])
    np.testing.assert_allclose(given.precision, wanted)
    draws = given.sample(50, stream(0, Purpose.SAMPLE))
    assert draws.dtype == np.float64 and (draws % 1 != 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(np.zeros(2), -np.eye(2)), "not positive definite"),
        (lambda: Gaussian(np.zeros((2, 1)), np.eye(2)), r"wanted a mean \(d,\)"),
        (lambda: Gaussian(np.zeros(2), np.eye(3)), r"wanted a mean \(d,\)"),
        (lambda: Gaussian.fit(np.zeros((1, 3))), "at least two rows"),
        (lambda: StudentT(np.zeros(2), np.eye(2), 0), "StudentT.df must be an integer >= 1"),
        (lambda: StudentT(np.zeros(2), np.eye(2), 2.5), "StudentT.df must be an integer >= 1"),
        (lambda: StudentT.fit(np.eye(3), 2), "StudentT.df must be an integer >= 3"),
        (lambda: Bridge(Gaussian(np.zeros(2), np.eye(2)), _rows_of_t()), r"shape \(2,\), the targ"),
    ],
)
def test_bad_bases_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------- what is reported


def test_raise_is_unbiased_for_the_annealed_model() -> None:
    """E exp(RAISE) = p_ann(v), with p_ann by propagating exact probabilities up the path."""
    from energyscape.evaluation.laws import _transition

    model = STRONG_RBM
    params = {k: (v[:6] if v.shape[0] == 10 else v) for k, v in STRONG.items()}
    v = oracles.states(6)
    base = model.base_measure(params)
    path = model.target(params, base=base)
    ais = AIS(n_temperatures=5, n_pilot=0)
    betas = np.linspace(0, 1, 6)
    # p_K = p_0 T_1 … T_K; RAISE's own definition of the path's last state.
    p = np.exp(-path.at(0.0).energy(v))
    p /= p.sum()
    for beta in betas[1:]:
        p = p @ _transition(model, params, v, float(beta), base)
    row = 37
    x = np.repeat(v[row : row + 1], 200_000, 0)
    rng = stream(3, Purpose.PARTITION)
    log_p = ais.annealed_log_likelihood(path, x, rng)
    assert abs(_z_score(np.exp(log_p) / p[row])) < SIGMAS
    exact = np.exp(-path.energy(v[row : row + 1]) - model.log_partition(params))
    assert abs(_z_score(np.exp(log_p) / exact)) > SIGMAS, "five temperatures are not the model"


def test_ais_reports_its_error() -> None:
    path, log_z = TRUTHS["RBM path"].target(1), oracles.rbm_log_z(STRONG)
    hits = 0
    for seed in range(100):
        estimate = AIS(100, 100).run(path, stream(seed, Purpose.PARTITION))
        low, high = estimate.interval
        assert low < estimate.log_partition < high
        hits += low < log_z < high
    # A 95 % interval: fewer than 80 hits of 100 has probability below 1e-6.
    assert hits >= 80
    assert 1 < estimate.ess <= 100


def test_wide_weights_warn() -> None:
    model = RBM(40)
    rng = np.random.default_rng(0)
    params = model.init_params(rng.random((5, 60)), stream(0, Purpose.INIT))
    params["W"] = 3 * rng.standard_normal((60, 40))
    path = model.target(params, base=model.base_measure(params))
    with pytest.warns(SamplerWarning, match="chains count"):
        AIS(20, 2).run(path, stream(0, Purpose.PARTITION))


def test_a_seed_serves_as_well_as_a_stream() -> None:
    case = next(c for c in CASES if c.name == "bridge to Gaussian, HMC")
    ais = AIS(50, 5, case.kernel, n_pilot=0)
    one, other = (ais.run(case.path(), 3).log_weights for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("ais", "message"),
    [
        (AIS(n_chains=0), "n_chains must be an integer >= 1"),
        (AIS(n_temperatures=0), "n_temperatures must be an integer >= 1"),
        (AIS(n_pilot=-1), "n_pilot must be an integer >= 0"),
        (AIS(sampler=HMC(3), n_pilot=0), "give n_pilot > 0, or the sampler a step_size"),
    ],
)
def test_ais_refuses_bad_settings(ais: AIS, message: str) -> None:
    name = "RBM" if ais.sampler is None else "GaussianRBM"
    with pytest.raises(ValueError, match=message):
        ais.run(TRUTHS[f"{name} path"].target(1), stream(0, Purpose.PARTITION))


@pytest.mark.parametrize("more", [ChEES(), [RobbinsMonro(), PooledMass()]])
def test_adapters_of_more_than_step_sizes_are_refused(more: Any) -> None:
    path = TRUTHS["GaussianRBM path"].target(1)
    with pytest.raises(ValueError, match="give inverse_mass or n_leapfrog as numbers"):
        AIS(20, 5, HMC(3, adaptation=more)).run(path, 0)


def test_ais_says_what_it_needs() -> None:
    for target in (TRUTHS["RBM"].target(1), TRUTHS["Gaussian"].target(1)):
        with pytest.raises(CapabilityError, match="base measure"):
            AIS().run(target, stream(0, Purpose.PARTITION))
    with pytest.raises(CapabilityError, match=r"Samplers that can: .*Metropolis"):
        AIS(sampler=HMC(3, 0.1)).run(TRUTHS["RBM path"].target(1), stream(0, Purpose.PARTITION))


def test_the_oracle_for_the_product_of_t_is_its_integral() -> None:
    """In one dimension by quadrature, and the linear change of variables by its determinant."""
    from scipy.integrate import quad

    width = np.array([[1.7]])
    area = quad(lambda x: (1 + 0.5 * (1.7 * x) ** 2) ** -GAMMA, -np.inf, np.inf)[0]
    assert oracles.product_of_t_log_z(width, GAMMA) == pytest.approx(np.log(area), abs=1e-9)
    double = oracles.product_of_t_log_z(2 * FILTERS, GAMMA)
    assert double == pytest.approx(oracles.product_of_t_log_z(FILTERS, GAMMA) - 6 * np.log(2))


# ---------------------------------------------------------------- NumPy and CuPy


def _bases_on(xp: Any, name: str) -> Any:
    truth = TRUTHS[name]
    if name.endswith("path"):
        return truth.target(1, xp)
    return Bridge(Gaussian.fit(xp.asarray(_rough(name, 0.7))), truth.target(1, xp))


@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("RBM path", Gibbs()),
        ("RBM path", Metropolis()),
        ("GaussianRBM path", HMC(2, 0.5)),
        ("Gaussian", HMC(2, 0.25)),
        ("Gaussian", Langevin(0.03)),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_cupy_anneals_as_numpy_does(name: str, kernel: Any, cupy: Any) -> None:
    """On the same noise, to 1e-9; and with the device's own noise and a pilot run."""
    x = TRUTHS[name].draw(60, np.random.default_rng(0), 1.0)
    found = []
    for xp in (np, cupy):
        ais, path = AIS(60, 6, kernel, n_pilot=0), _bases_on(xp, name)
        up = ais.run(path, ReplayStream(xp)).log_weights
        down = ais.reverse(path, xp.asarray(x), ReplayStream(xp), exact=True).log_weights
        found.append(np.concatenate([up, down]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-9, atol=1e-9)
    moves = kernel if isinstance(kernel, Gibbs | Metropolis) else clone(kernel)
    if moves is not kernel:
        moves.set_params(step_size=None)
    estimate = AIS(60, 6, moves, n_pilot=5).run(_bases_on(cupy, name), 0)
    assert np.isfinite(estimate.log_partition)


def test_bases_live_on_the_gpu(cupy: Any) -> None:
    X = np.random.default_rng(0).standard_normal((30, 3))
    for make in (Gaussian.fit, StudentT.fit):
        here, there = make(X), make(cupy.asarray(X))
        assert there.log_partition() == pytest.approx(here.log_partition())
        assert isinstance(there.like, cupy.ndarray)
        for verb in ("energy", "input_grad"):
            got = to_host(getattr(there, verb)(cupy.asarray(X)))
            np.testing.assert_allclose(got, getattr(here, verb)(X), rtol=1e-9)
        got = to_host(there.sample(5, ReplayStream(cupy)))
        np.testing.assert_allclose(got, here.sample(5, ReplayStream(np)), rtol=1e-9)
