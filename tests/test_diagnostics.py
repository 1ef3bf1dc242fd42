"""Chain diagnostics equal an independent library's, and are not fooled by chains that stand still.

Oracle: arviz-stats, whose figures are checked against R's ``posterior`` by its authors.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from scipy.signal import lfilter
from scipy.stats import t as student

from energyscape.evaluation import ChainReport
from energyscape.samplers import diagnostics
from energyscape.samplers.diagnostics import (
    autocorrelation,
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    mcse_sd,
    rhat,
    rhat_nested,
    summary,
)

try:
    from arviz_stats.base import array_stats as oracle
except ImportError:
    oracle = None
needs_oracle = pytest.mark.skipif(oracle is None, reason="arviz-stats is not installed")

ALARM = 1e-6  # false-alarm rate of every statistical assertion
MEASURES: dict[str, Callable[..., Any]] = {
    "rhat": rhat,
    "ess_bulk": ess_bulk,
    "ess_tail": ess_tail,
    "ess_mean": ess_mean,
    "mcse_mean": mcse_mean,
    "mcse_sd": mcse_sd,
}
# arviz-stats wants (…, chains, draws).
ORACLES: dict[str, Callable[..., Any]] = {
    "rhat": lambda z: oracle.rhat(z),
    "ess_bulk": lambda z: oracle.ess(z, method="bulk"),
    "ess_tail": lambda z: oracle.ess(z, method="tail", prob=(0.05, 0.95)),
    "ess_mean": lambda z: oracle.ess(z, method="mean"),
    "mcse_mean": lambda z: oracle.mcse(z, method="mean"),
    "mcse_sd": lambda z: oracle.mcse(z, method="sd"),
}


def _ar1(rho: float, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Stationary AR(1) chains of unit variance; time is the second axis."""
    noise = rng.standard_normal(shape) * np.sqrt(1 - rho**2)
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1)


def _modes(rng: np.random.Generator) -> np.ndarray:
    """Chains that stay in one of two modes, or change between them a few times."""
    mode = np.where(rng.random((6, 1, 4)) < 0.5, -3.0, 3.0)
    jumps = np.where(rng.random((6, 300, 4)) < 0.01, -1.0, 1.0).cumprod(axis=1)
    jumps[:3] = 1
    return mode * jumps + _ar1(0.5, (6, 300, 4), rng)


def _rejecting(rng: np.random.Generator) -> np.ndarray:
    """A Metropolis chain's: most values are repeated."""
    fresh = rng.standard_normal((4, 250, 5))
    fresh[:, 1:][rng.random((4, 249, 5)) < 0.7] = np.nan
    last = np.maximum.accumulate(np.where(np.isnan(fresh), 0, np.arange(250)[:, None]), axis=1)
    return np.take_along_axis(fresh, last, axis=1)


def _flipping(rng: np.random.Generator) -> np.ndarray:
    """Bits that keep their value for ten draws or so."""
    return (rng.random((4, 400, 6)) < 0.1).cumsum(axis=1) % 2


DATA: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "independent": lambda rng: rng.standard_normal((4, 100, 3, 2)),
    "autocorrelated": lambda rng: _ar1(0.9, (4, 500, 5), rng),
    "antithetic": lambda rng: _ar1(-0.6, (4, 200, 5), rng),
    "drifting": lambda rng: rng.standard_normal((4, 200, 5)).cumsum(axis=1),
    "multimodal": _modes,
    "different scales": lambda rng: (
        rng.standard_normal((4, 200, 5)) * np.arange(1, 5)[:, None, None]
    ),
    "Cauchy": lambda rng: rng.standard_cauchy((4, 200, 5)),
    "rejecting": _rejecting,
    "bits": _flipping,
    "bool": lambda rng: _flipping(rng).astype(bool),
    "unequal bits": lambda rng: (rng.random((4, 200, 6)) < 0.2).astype(np.uint8),
    "counts": lambda rng: rng.poisson(2.0, (3, 150, 5)),
    "censored": lambda rng: np.maximum(rng.standard_normal((4, 101, 5)), 0.3),
    "one quantity": lambda rng: _ar1(0.5, (4, 100), rng),
    "one chain": lambda rng: _ar1(0.7, (1, 300, 5), rng),
    "two chains": lambda rng: _ar1(0.7, (2, 77, 5), rng),
    "4 draws": lambda rng: rng.standard_normal((5, 4, 5)),
    "5 draws": lambda rng: rng.standard_normal((5, 5, 5)),
    "6 draws": lambda rng: rng.standard_normal((1, 6, 5)),
    "7 draws": lambda rng: rng.standard_normal((2, 7, 5)),
    "11 draws": lambda rng: rng.standard_normal((2, 11, 300)),
    "many chains": lambda rng: rng.standard_normal((300, 9, 3)),
    "one chain stuck": lambda rng: np.where(
        np.arange(4)[:, None, None] == 0, 0.1, _ar1(0.5, (4, 200, 3), rng)
    ),
    "far from 0": lambda rng: 1e6 + _ar1(0.5, (4, 200, 3), rng),
    "float32": lambda rng: _ar1(0.5, (4, 200, 3), rng).astype(np.float32),
}


def _last(draws: np.ndarray) -> np.ndarray:
    """The oracle's layout, in the precision that the library computes in."""
    return np.moveaxis(draws.astype(np.float64), (0, 1), (-2, -1))


@needs_oracle
@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("measure", MEASURES)
def test_equals_the_oracle(data: str, measure: str, rng: np.random.Generator) -> None:
    draws = DATA[data](rng)
    found = MEASURES[measure](draws)
    with np.errstate(all="ignore"):
        wanted = ORACLES[measure](_last(draws))
    assert np.shape(found) == draws.shape[2:] and found.dtype == np.float64
    # Both sum about 1e5 numbers in float64, in another order.
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    assert np.isnan(found).all() == (len(draws) == 1 and measure == "rhat")


@needs_oracle
@pytest.mark.parametrize("shape", [(12, 50, 4), (12, 7, 4), (400, 5, 3)])
@pytest.mark.parametrize("superchains", [2, 4])
@pytest.mark.parametrize("kind", ["real", "bits", "apart"])
def test_nested_rhat_equals_the_oracle(
    shape: tuple[int, int, int], superchains: int, kind: str, rng: np.random.Generator
) -> None:
    draws = _ar1(0.8, shape, rng)
    group = np.arange(shape[0]) // (shape[0] // superchains)
    if kind == "bits":
        draws = (draws > 0).astype(float)
    elif kind == "apart":
        draws += 3 * group[:, None, None]
    found = rhat_nested(draws, superchains)
    with np.errstate(all="ignore"):
        wanted = oracle.rhat_nested(_last(draws), group)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)
    assert (found > 1.1).all() == (kind == "apart")


@needs_oracle
@pytest.mark.parametrize("shape", [(3, 100), (2, 57, 2, 3), (1, 4, 2)])
def test_autocorrelation_equals_the_oracle(
    shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    draws = _ar1(0.8, shape, rng)
    wanted = np.moveaxis(oracle.autocorr(_last(draws)), (-2, -1), (0, 1))
    for lags in (0, 2, shape[1] - 1):
        found = autocorrelation(draws, lags)
        assert found.shape == (shape[0], lags + 1, *shape[2:])
        # Values near 0 are differences: absolute, in units of the variance.
        np.testing.assert_allclose(found, wanted[:, : lags + 1], rtol=1e-8, atol=1e-12)


def test_autocorrelation_is_its_definition(rng: np.random.Generator) -> None:
    draws = _ar1(0.6, (2, 40, 3), rng)
    centred = draws - draws.mean(axis=1, keepdims=True)
    wanted = [(centred[:, : 40 - k] * centred[:, k:]).sum(axis=1) for k in range(6)]
    wanted = np.stack(wanted, axis=1) / (centred**2).sum(axis=1)[:, None]
    np.testing.assert_allclose(autocorrelation(draws, 5), wanted, rtol=1e-9, atol=1e-12)


def test_a_summary_is_all_of_it(rng: np.random.Generator) -> None:
    draws = _rejecting(rng)
    found = summary(draws)
    assert set(found) == {"mean", "sd", "mcse_mean", "rhat", "ess_bulk", "ess_tail"}
    for name in ("mcse_mean", "rhat", "ess_bulk", "ess_tail"):
        np.testing.assert_array_equal(found[name], MEASURES[name](draws))
    np.testing.assert_allclose(found["mean"], draws.mean(axis=(0, 1)), rtol=1e-12)
    np.testing.assert_allclose(found["sd"], draws.reshape(-1, 5).std(axis=0, ddof=1), rtol=1e-12)
    nested = summary(draws, superchains=2)
    np.testing.assert_array_equal(nested["rhat"], rhat_nested(draws, 2))
    np.testing.assert_array_equal(nested["ess_tail"], found["ess_tail"])


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    draws = _rejecting(rng)
    whole, rho = summary(draws), autocorrelation(draws, 9)
    for block in (1, 2 * draws[..., 0].size):  # one quantity and two at a time
        monkeypatch.setattr(diagnostics, "_BLOCK", block)
        for name, value in summary(draws).items():
            np.testing.assert_allclose(value, whole[name], rtol=1e-12)
        np.testing.assert_allclose(autocorrelation(draws, 9), rho, rtol=1e-12, atol=1e-15)


def test_draws_are_left_alone_and_may_be_views(rng: np.random.Generator) -> None:
    draws = _ar1(0.5, (4, 60, 3, 2), rng)
    draws[0, 0, 0, 0] = np.nan
    before, wanted = draws.copy(), rhat(draws)
    views = (
        np.asfortranarray(draws),
        draws[::-1],
        np.flip(draws.T.copy()).T[::-1, ::-1, ::-1, ::-1],
    )
    for view in views:
        np.testing.assert_allclose(rhat(view), wanted, rtol=1e-12)
    np.testing.assert_array_equal(draws, before)
    np.testing.assert_allclose(rhat(draws.tolist()), wanted, rtol=1e-12)


# ---------------------------------------------------------------- where the oracle is not followed


@pytest.mark.parametrize("n_draws", [10, 11])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e9])
def test_what_never_moves_is_worth_nothing(n_draws: int, value: float) -> None:
    draws = np.full((4, n_draws, 3), value)
    draws[:, :, 1] += np.arange(4)[:, None]  # each chain stuck at its own value
    draws[:2, :, 2] += 1
    for measure in (ess_bulk, ess_tail, ess_mean):
        assert measure(draws).tolist() == [0, 0, 0]
    for measure in (mcse_mean, mcse_sd):
        assert measure(draws).tolist() == [np.inf] * 3
    for found in (rhat(draws), rhat_nested(draws, 2)):
        np.testing.assert_array_equal(found, [np.nan, np.inf, np.inf])
    assert np.isnan(autocorrelation(draws, 3)).all()
    found = summary(draws)
    assert found["sd"][0] == 0 and found["mean"][0] == pytest.approx(value)


@needs_oracle
def test_the_oracle_takes_a_constant_for_independent_draws() -> None:
    """Why the one above is not a comparison."""
    constant = np.full((1, 4, 10), 0.5)
    assert oracle.ess(constant, method="bulk") == oracle.ess(constant, method="mean") == 40


@pytest.mark.parametrize("half", [2, 7, 11, 50])
def test_halves_that_stand_still_are_worlds_apart(half: int) -> None:
    """Also where the variance of equal numbers is not quite 0."""
    draws = np.repeat([[0.1, 0.7, 0.3], [0.1, 0.3, 0.2]], [half, half], axis=0)[None]
    draws = draws + 0.1 * np.arange(5)[:, None, None]
    assert (rhat(draws) == np.inf).all()
    # Bits that are as often 0 as 1, once folded, stand still everywhere and say nothing.
    bits = np.tile([0.0, 1.0], (5, half))
    assert rhat(bits) < 1.01


def test_one_move_is_a_move(rng: np.random.Generator) -> None:
    draws = np.zeros((4, 100))
    draws[2, 30:] = 1
    assert 0 < ess_bulk(draws) < 10 and 0 < ess_mean(draws) < 10 and rhat(draws) > 1.5
    # In the draw that halving leaves out nothing is seen of it.
    draws = np.zeros((4, 101))
    draws[2, 50] = 1
    assert ess_bulk(draws) == ess_tail(draws) == ess_mean(draws) == 0 and np.isnan(rhat(draws))
    # Stuck starts that are dispersed look like wide superchains, of nested R̂ near 1.
    stuck = np.repeat(rng.standard_normal((64, 1)), 10, axis=1)
    assert rhat_nested(stuck, 4) == np.inf


@needs_oracle
def test_a_rare_value_below_counts_like_one_above(rng: np.random.Generator) -> None:
    """x and -x are as well known; the oracle's tail ESS of the one is the number of draws."""
    rare = (_ar1(0.95, (4, 400, 200), rng) > 2.1).astype(float)
    share = rare.mean(axis=(0, 1))
    rare = rare[..., (share > 0.002) & (share < 0.04)]
    assert rare.shape[-1] > 50
    below, above = ess_tail(-rare), ess_tail(rare)
    # The quantile that is left out counts as the number of draws.
    np.testing.assert_allclose(below, np.minimum(above, 1600), rtol=1e-8)
    assert np.median(below) < 500
    assert (ORACLES["ess_tail"](_last(-rare)) == 1600).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_has_no_diagnostics(bad: float, rng: np.random.Generator) -> None:
    draws = _ar1(0.5, (4, 61, 5), rng)
    clean = draws.copy()
    draws[1, 30, 2] = bad
    draws[..., 4] = bad
    for name, measure in [*MEASURES.items(), ("nested", lambda x: rhat_nested(x, 2))]:
        found, wanted = measure(draws), measure(clean)
        assert np.isnan(found[[2, 4]]).all(), name
        np.testing.assert_array_equal(found[[0, 1, 3]], wanted[[0, 1, 3]])
    assert np.isnan(autocorrelation(draws, 3)[..., [2, 4]]).all()
    for value in summary(draws).values():
        assert np.isnan(value[[2, 4]]).all() and np.isfinite(value[[0, 1, 3]]).all()


# ---------------------------------------------------------------- what they are for


def _misfit(ess: np.ndarray, truth: float) -> float:
    """How far the mean of independent estimates is from the truth, over what is allowed.

    Allowed: Student's t at the alarm rate, and 3 % for the bias of cutting the sum where it meets
    noise (between 0 and 1 % at these lengths, on other seeds).
    """
    ratio = ess / truth
    noise = student.isf(ALARM / 2, len(ratio) - 1) * ratio.std(ddof=1) / np.sqrt(len(ratio))
    return abs(ratio.mean() - 1) / (0.03 + noise)


@pytest.mark.parametrize("measure", [ess_bulk, ess_mean])
def test_ess_of_an_autoregression_is_known(
    measure: Callable[..., Any], rng: np.random.Generator
) -> None:
    shape, rho = (4, 2000, 200), 0.9
    truth = 8000 * (1 - rho) / (1 + rho)
    assert _misfit(measure(_ar1(rho, shape, rng)), truth) < 1
    # Negative control: an ESS that is four fifths of that.
    assert _misfit(measure(_ar1(0.92, shape, rng)), truth) > 1


def test_the_error_of_the_mean_is_its_error(rng: np.random.Generator) -> None:
    """Means of 400 independent quantities, in units of their errors, have variance 1."""
    draws = _ar1(0.9, (4, 1000, 400), rng)
    score = draws.mean(axis=(0, 1)) / mcse_mean(draws)
    # χ² of 400 degrees, normally: 4.9 standard deviations √(2/400) are 0.35, and each error is
    # itself known to about 6 %, which adds 1 %.
    assert abs((score**2).mean() - 1) < 0.36
    naive = draws.mean(axis=(0, 1)) / (draws.std(axis=(0, 1)) / np.sqrt(4000))
    assert abs((naive**2).mean() - 1) > 0.36


def test_rhat_tells_mixed_chains_from_others(rng: np.random.Generator) -> None:
    x = rng.standard_normal((4, 1000, 50))
    assert (rhat(x) < 1.01).all()
    shifted, wide = x.copy(), x.copy()
    shifted[0] += 1
    wide[0] *= 3
    assert (rhat(shifted) > 1.05).all()
    assert (rhat(wide) > 1.05).all(), "the folded draws show a scale"
    assert (rhat(x + np.linspace(0, 2, 1000)[:, None]) > 1.05).all(), "the halves show a drift"


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("measure", [*MEASURES.values(), summary, ChainReport])
def test_draws_that_cannot_be(measure: Callable[..., Any]) -> None:
    for shape in ((10,), (4, 3), (4, 3, 2), (0, 10), (4, 10, 0)):
        text = rf"at least 4 draws .* wanted, got shape \({', '.join(map(str, shape))},?\)"
        with pytest.raises(ValueError, match=text):
            measure(np.zeros(shape))
    with pytest.raises(ValueError, match="draws must be real numbers, got dtype complex128"):
        measure(np.zeros((4, 10), complex))


@pytest.mark.parametrize("superchains", [0, 1, -2, 5, 13])
def test_superchains_divide_the_chains(superchains: int) -> None:
    draws = np.zeros((12, 10))
    text = rf"superchains must be at least 2 and divide the 12 chains, got {superchains}"
    for attempt in (rhat_nested, summary, lambda x, k: ChainReport(x, superchains=k)):
        with pytest.raises(ValueError, match=text):
            attempt(draws, superchains)


@pytest.mark.parametrize("lag", [-1, 10, 11])
def test_lags_are_below_the_number_of_draws(lag: int) -> None:
    with pytest.raises(ValueError, match=rf"max_lag .* below the 10 draws, got {lag}"):
        autocorrelation(np.zeros((2, 10)), lag)


# ---------------------------------------------------------------- the GPU


@pytest.mark.parametrize("data", DATA)
def test_the_gpu_path_agrees(data: str, cupy: Any, rng: np.random.Generator) -> None:
    draws = DATA[data](rng)
    on_gpu = cupy.asarray(draws)
    for name, measure in MEASURES.items():
        found = measure(on_gpu)
        assert isinstance(found, cupy.ndarray) and found.shape == draws.shape[2:]
        np.testing.assert_allclose(found.get(), measure(draws), rtol=1e-9, err_msg=name)
    found = autocorrelation(on_gpu, 3)
    np.testing.assert_allclose(found.get(), autocorrelation(draws, 3), rtol=1e-9, atol=1e-12)
    if len(draws) % 2 == 0:
        found = rhat_nested(on_gpu, 2)
        np.testing.assert_allclose(found.get(), rhat_nested(draws, 2), rtol=1e-9)


def test_nothing_comes_to_the_host(fake_cupy: Any, rng: np.random.Generator) -> None:
    draws = fake_cupy.asarray(_rejecting(rng))
    standin.Counter.syncs = 0
    found = [measure(draws) for measure in MEASURES.values()]
    found += [rhat_nested(draws, 2), autocorrelation(draws, 5), *summary(draws).values()]
    assert standin.Counter.syncs == 0
    assert all(isinstance(x, fake_cupy.ndarray) for x in found)


def test_a_report_on_gpu_draws(cupy: Any, tmp_path: Path, rng: np.random.Generator) -> None:
    draws = _ar1(0.9, (4, 100, 2, 3), rng)
    energies = (draws**2).sum(axis=(2, 3))
    wanted = ChainReport(draws, energies=energies)
    found = ChainReport(cupy.asarray(draws), energies=cupy.asarray(energies))
    assert type(found.rhat) is np.ndarray
    np.testing.assert_allclose(found.rhat, wanted.rhat, rtol=1e-9)
    assert found.energy == pytest.approx(wanted.energy, rel=1e-9)
    assert str(found) == str(wanted)
    found.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_the_stand_in_has_transforms_as_cupy_has() -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed")
    assert [name for name in standin.FFT if not hasattr(real.fft, name)] == []


# ---------------------------------------------------------------- the report


@pytest.fixture
def mixed(rng: np.random.Generator) -> np.ndarray:
    """Fifteen quantities; [0, 0] never moves, [1, 2] is torn, [2, 1] is slow."""
    draws = rng.standard_normal((4, 300, 3, 5))
    draws[:, :, 0, 0] = 1
    draws[:, :, 1, 2] += 5 * np.arange(4)[:, None]
    draws[:, :, 2, 1] = _ar1(0.99, (4, 300), rng)
    return draws


def test_a_report_holds_the_numbers(mixed: np.ndarray) -> None:
    report = ChainReport(mixed, energies=mixed[:, :, 2, 1])
    for name, value in summary(mixed).items():
        found = getattr(report, name)
        assert found.shape == (3, 5)
        np.testing.assert_array_equal(found, value)
    assert report.energy is not None
    assert report.energy["rhat"] == report.rhat[2, 1]
    assert report.energy["ess_tail"] == report.ess_tail[2, 1]
    assert report.names[:6] == ["x[0, 0]", "x[0, 1]", "x[0, 2]", "x[0, 3]", "x[0, 4]", "x[1, 0]"]
    assert ChainReport(mixed).energy is None


def test_a_report_is_read_from_the_worst_down(mixed: np.ndarray) -> None:
    report = ChainReport(mixed, energies=(mixed**2).sum(axis=(2, 3)))
    lines = str(report).splitlines()
    assert report.energy is not None
    over = np.sum(report.rhat > 1.01) + (report.energy["rhat"] > 1.01)
    moved = np.minimum(report.ess_bulk, report.ess_tail)
    least = moved[moved > 0].min()
    assert lines[0] == "4 chains of 300 draws, 16 quantities"
    largest = np.nanmax(report.rhat)
    assert lines[1].startswith(f"  R-hat above 1.01: {over} (largest {largest:.3f}); ")
    assert lines[1].endswith(f"minimum ESS: 0 of 1200 ({least:.1f} of those that moved)")
    assert lines[2] == "  never moved: 1 (x[0, 0])"
    assert lines[3].split() == "R-hat ESS bulk ESS tail mean sd MCSE".split()
    assert [line.split("  ")[1] for line in lines[4:7]] == ["energy", "x[1, 2]", "x[2, 1]"]
    assert len(lines) == 4 + 10 + 1 and lines[-1] == "  ... and 6 more"
    assert max(map(len, lines)) < 100
    cells = lines[5].split()
    assert cells[2] == f"{report.rhat[1, 2]:.3f}" and cells[-1] == f"{report.mcse_mean[1, 2]:.4g}"


def test_a_report_names_what_was_named() -> None:
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((2, 50, 2))
    text = str(ChainReport(draws, names=("weight", "a rather long name")))
    assert "a rather long name" in text and "weight" in text and "more" not in text
    assert "never" not in text and "finite" not in text
    alone = str(ChainReport(draws[:1, :, 0], names=["only"])).splitlines()
    assert alone[0] == "1 chain of 50 draws, 1 quantity" and alone[-1].split()[:2] == [
        "only",
        "nan",
    ]
    assert "R-hat unknown, as of any single chain" in alone[1]
    nested = str(ChainReport(rng.standard_normal((40, 6)), superchains=4))
    assert "nested R-hat (4 groups) above 1.01: " in nested


def test_a_report_on_nothing_good(tmp_path: Path) -> None:
    draws = np.zeros((3, 20, 7))
    draws[..., 6] = np.arange(3)[:, None]
    still = ChainReport(draws)
    assert "R-hat above 1.01: 1 (largest inf); minimum ESS: 0 of 60\n" in str(still)
    assert "never moved: 7 (x[0], x[1], x[2], x[3], x[4], ...)" in str(still)
    assert str(still).splitlines()[4].split()[:3] == ["x[6]", "inf", "0"]
    draws[..., 3] = np.tile([0, 1], (3, 10))
    rows = [line.split()[0] for line in str(ChainReport(draws)).splitlines()[4:7]]
    assert rows == ["x[6]", "x[3]", "x[0]"]
    draws[:] = np.nan
    draws[0, :5] = np.inf
    broken = ChainReport(draws, energies=draws[..., 0])
    assert "R-hat unknown; minimum ESS: unknown\n" in str(broken)
    assert "not finite: 8 (energy, x[0], x[1], x[2], x[3], ...)" in str(broken)
    still.save(tmp_path / "still.png")
    broken.save(tmp_path / "broken.png")


def test_reports_that_cannot_be() -> None:
    draws = np.zeros((4, 10, 2, 3))
    with pytest.raises(ValueError, match="6 names are wanted, one for each quantity; got 2"):
        ChainReport(draws, names=["a", "b"])
    with pytest.raises(ValueError, match=r"energies of shape \(4, 10\) are wanted.*\(4, 10, 1\)"):
        ChainReport(draws, energies=np.zeros((4, 10, 1)))


@pytest.mark.parametrize(("quantities", "panels"), [(1, 1), (15, 4)])
def test_a_report_is_a_picture(
    quantities: int, panels: int, mixed: np.ndarray, tmp_path: Path
) -> None:
    Image = pytest.importorskip("PIL.Image")
    draws = mixed.reshape(4, 300, 15)[:, :, -quantities:]
    ChainReport(draws).save(tmp_path / "no suffix")
    with Image.open(tmp_path / "no suffix") as image:
        assert image.format == "PNG"
        # 9 inches by 2 a panel and 0.4 more, at 120 dots.
        assert image.size == (1080, int(240 * panels + 48))
        pixels = np.asarray(image)[..., :3].astype(int)
    left, right = pixels[:, :650], pixels[:, 760:]
    for side in (left, right):  # chains are coloured
        assert (np.ptp(side, axis=2) > 60).mean() > 0.01
    assert (right.max(axis=2) < 40).mean() > 0.001, "the mean autocorrelation is black"


def test_the_picture_shows_the_extreme_chain(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, tmp_path: Path
) -> None:
    """Of many chains eight are drawn; one that is far away must be among them."""
    axes = pytest.importorskip("matplotlib.axes")
    drawn: list[np.ndarray] = []
    plot = axes.Axes.plot
    monkeypatch.setattr(
        axes.Axes, "plot", lambda self, y, **k: drawn.append(y) or plot(self, y, **k)
    )
    draws = rng.standard_normal((50, 30, 1))
    draws[33] += 100
    ChainReport(draws).save(tmp_path / "x.png")
    assert drawn[0].shape == (30, 8) and drawn[0].max() > 90
    assert drawn[1].shape == (30, 8) and drawn[2].shape == (30,)


def test_to_arviz_and_back(mixed: np.ndarray) -> None:
    pytest.importorskip("arviz_base", reason="arviz-base is not installed")
    energies = (mixed**2).sum(axis=(2, 3))
    tree = ChainReport(mixed, energies=energies).to_arviz()
    assert tree["posterior"]["x"].dims[:2] == ("chain", "draw")
    np.testing.assert_array_equal(tree["posterior"]["x"].values, mixed)
    np.testing.assert_array_equal(tree["sample_stats"]["lp"].values, -energies)
    names = [f"q{i}" for i in range(15)]
    tree = ChainReport(mixed, names=names).to_arviz()
    assert "sample_stats" not in tree.children
    x = tree["posterior"]["x"]
    assert x.dims == ("chain", "draw", "quantity") and x.coords["quantity"].values.tolist() == names
    np.testing.assert_array_equal(x.sel(quantity="q7").values, mixed[:, :, 1, 2])
    alone = ChainReport(mixed[..., 0, 1], names=["q"]).to_arviz()["posterior"]["x"]
    assert alone.shape == (4, 300, 1)


def test_to_arviz_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match=r"pip install energyscape\[diagnostics\]"):
        ChainReport(np.zeros((2, 4))).to_arviz()


def test_arviz_and_matplotlib_come_when_called() -> None:
    code = "import sys, energyscape.evaluation; print(*{n.split('.')[0] for n in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"arviz_base", "xarray", "matplotlib"}.isdisjoint(run.stdout.split())
