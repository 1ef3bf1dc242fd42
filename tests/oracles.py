"""Truths to compare with, written from the definitions and nothing of the library's own."""

from __future__ import annotations

import numpy as np
from scipy.special import gammaln, logsumexp


def states(units: int) -> np.ndarray:
    """All binary states, shape (2^units, units)."""
    return ((np.arange(1 << units)[:, None] >> np.arange(units)) & 1).astype(np.float64)


def rbm_log_joint(params: dict[str, np.ndarray], v: np.ndarray, h: np.ndarray) -> np.ndarray:
    """b'v + c'h + v'Wh for every pair, shape (len(v), len(h))."""
    W, b, c = params["W"], params["b"], params["c"]
    return (v @ b)[:, None] + (h @ c)[None] + v @ W @ h.T


def rbm_log_z(params: dict[str, np.ndarray]) -> float:
    """log Σ_v Σ_h exp(-E) over all pairs of states."""
    d, k = params["W"].shape
    return float(logsumexp(rbm_log_joint(params, states(d), states(k))))


def rbm_log_p(params: dict[str, np.ndarray]) -> np.ndarray:
    """Log-probability of every visible state."""
    d, k = params["W"].shape
    joint = rbm_log_joint(params, states(d), states(k))
    return logsumexp(joint, axis=1) - logsumexp(joint)


def strong_rbm() -> dict[str, np.ndarray]:
    """Parameters of a 10×6 RBM with |W| near 1, and the means of its own visible units."""
    rng = np.random.default_rng(0)
    params = {
        "W": rng.standard_normal((10, 6)),
        "b": rng.standard_normal(10),
        "c": rng.standard_normal(6),
        "mean_v": np.full(10, 0.5),
        "mean_h": np.full(6, 0.5),
    }
    return params | {"mean_v": np.exp(rbm_log_p(params)) @ states(10)}


def rbm_path_log_p(params: dict[str, np.ndarray], base_b: np.ndarray, beta: float) -> np.ndarray:
    """log p of every visible state under exp(-(1 - β) E_base - β E), hidden units summed out."""
    d, k = params["W"].shape
    joint = beta * rbm_log_joint(params, states(d), states(k))
    joint += (1 - beta) * (states(d) @ base_b)[:, None]
    return logsumexp(joint, axis=1) - logsumexp(joint)


def gaussian_rbm_mixture(
    params: dict[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x is a mixture of 2^k Gaussians, one per hidden state: the log of each one's part of Z, their
    means (2^k, d), and the variances (d,) that they share."""
    W, b, c = params["W"], params["b"], params["c"]
    var = np.exp(params["log_var"])
    h = states(W.shape[1])
    mean = b + h @ W.T
    # exp(c'h) ∫ exp(-(x-b)²/2σ² + x'Wh/σ²) dx
    log_w = h @ c + ((mean**2 - b**2) / (2 * var)).sum(axis=1)
    return log_w + 0.5 * np.log(2 * np.pi * var).sum(), mean, var


def gaussian_rbm_log_p(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Log-density of rows as a mixture of 2^k Gaussians, one per hidden state."""
    log_w, mean, var = gaussian_rbm_mixture(params)
    d2 = ((x[:, None] - mean[None]) ** 2 / var).sum(axis=2)
    log_w = log_w - logsumexp(log_w)
    return logsumexp(log_w - 0.5 * d2 - 0.5 * np.log(2 * np.pi * var).sum(), axis=1)


def product_of_t_log_z(W: np.ndarray, gamma: float) -> float:
    """log ∫ exp(-γ Σ_i log(1 + (Wx)_i²/2)) dx for a square W: y = Wx has independent parts, each
    Student's t of 2γ - 1 degrees of freedom, and ∫ (1 + y²/2)^-γ dy = √(2π) Γ(γ - ½)/Γ(γ)."""
    each = 0.5 * np.log(2 * np.pi) + gammaln(gamma - 0.5) - gammaln(gamma)
    return float(len(W) * each - np.linalg.slogdet(W)[1])


def gaussian_given(
    mean: np.ndarray, cov: np.ndarray, held: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the coordinates that are not ``held``, given those that are."""
    gain = np.linalg.solve(cov[np.ix_(held, held)], cov[np.ix_(held, ~held)]).T
    centre = mean[~held] + gain @ (values - mean)[held]
    return centre, cov[np.ix_(~held, ~held)] - gain @ cov[np.ix_(held, ~held)]


def grid_ising(shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Couplings (d, d), symmetric with an empty diagonal, and fields (d,) of bits on an open grid:
    all different, so that no symmetry hides a fault."""
    rows, columns = shape
    rng = np.random.default_rng(3)
    J = np.zeros((rows * columns, rows * columns))
    for i in range(rows):
        for j in range(columns):
            here = i * columns + j
            if j + 1 < columns:
                J[here, here + 1] = rng.normal()
            if i + 1 < rows:
                J[here, here + columns] = rng.normal()
    return J + J.T, rng.normal(size=rows * columns)


def bars_and_stripes(side: int) -> np.ndarray:
    """All rows-constant and all columns-constant images; the two uniform ones appear twice."""
    images = []
    for line in states(side):
        images += [
            np.repeat(line[:, None], side, 1).ravel(),
            np.repeat(line[None], side, 0).ravel(),
        ]
    return np.array(images, np.float32)


def gated_factor(
    params: dict[str, np.ndarray], u: np.ndarray, beta: float = 1.0
) -> tuple[np.ndarray, float]:
    """log of what covariance units multiply the density of u by, h summed or integrated out of
    exp(-βE) (gamma units of a model with a Gaussian: of (1 + z)^(-βγ), γ = e^a), row by row, and
    the most that can be."""
    r = u @ params["S"] @ params["C"]
    z = 0.5 * r**2 @ params.get("P", np.eye(r.shape[1]))
    if "a" in params:
        return -np.log1p(z) @ (beta * np.exp(params["a"])), 0.0
    d = params["d"]
    return np.logaddexp(0, beta * (d - z)).sum(axis=1), float(np.logaddexp(0, beta * d).sum())


def gated_draws(
    params: dict[str, np.ndarray], n: int, rng: np.random.Generator, beta: float, base: bool = False
) -> np.ndarray:
    """Exact draws of x at β, on the path from the base measure or not: of the mixture of Gaussians
    that mean units make, kept in proportion to `gated_factor`."""
    s, m, p = params["deviation"], params["mean_v"], np.exp(-params["log_var"])
    W, c = params.get("W", np.zeros((len(m), 0))), params.get("c", np.zeros(0))
    g = states(len(c))
    # β(|u|²/2σ² - u'(b + Wg)) + (1 - β)|s u|²/2V₀: the base has the mean m.
    width = beta * p + (1 - beta) * base * s**2 / params["var_v"]
    centre = beta * (params["b"] + g @ W.T) / width
    log_w = beta * g @ c + 0.5 * (width * centre**2).sum(axis=1)
    cumulative = np.cumsum(np.exp(log_w - logsumexp(log_w)))
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < n:
        index = np.searchsorted(cumulative / cumulative[-1], rng.random(2 * n), side="right")
        u = centre[index] + rng.standard_normal((2 * n, len(m))) / np.sqrt(width)
        log_p, most = gated_factor(params, u, beta)
        kept.append(u[np.log(rng.random(2 * n)) < log_p - most])
    return np.concatenate(kept)[:n] * s + m


def field_map(
    params: dict[str, np.ndarray], sides: tuple[int, int], size: int, corners: list[list[int]]
) -> np.ndarray:
    """What takes chain states of a field on a torus of one channel to the white coordinates of its
    windows, which begin at (c, c'), (c, c' + 1st grain), … of each set's ``corners``, flat; shape
    (sets, places, size², pixels)."""
    h, w = sides
    level, slope, bend = params["spectrum"]
    down, across = (2 * np.pi * np.arange(side) / side for side in sides)
    bumps = 4 - 2 * np.cos(down)[:, None] - 2 * np.cos(across)
    amplitude = np.exp(0.5 * (level + slope * np.log(np.exp(bend) + bumps)))
    basis = np.eye(h * w).reshape(h * w, h, w)
    coloured = np.fft.ifft2(np.fft.fft2(basis) * amplitude).real  # one image for each coordinate
    maps = []
    for places in corners:
        rows = []
        for corner in places:
            i = (corner // w + np.arange(size)) % h
            j = (corner % w + np.arange(size)) % w
            rows.append(params["S"] @ coloured[:, i[:, None], j].reshape(h * w, -1).T)
        maps.append(rows)
    return np.array(maps)


def tiled_machine_log_p(
    params: dict[str, np.ndarray], orders: list[list[int]], beta: float
) -> np.ndarray:
    """Exact log p_β of the states of a tiled machine's torus of one channel that one window of each
    set covers whole; ``orders`` are the places of each, in its own order."""
    joint = []
    x = states(len(orders[0]))
    for W, c, order in zip(params["W"], params["c"], orders, strict=True):
        h = states(len(c))
        energy = -(x[:, order] @ W @ h.T + c @ h.T)
        joint.append(logsumexp(-beta * energy, axis=1))
    log_p = beta * params["b"][0] * x.sum(axis=1) + sum(joint)
    return log_p - logsumexp(log_p)


def field_draws(
    params: dict[str, np.ndarray], L: np.ndarray, n: int, rng: np.random.Generator, beta: float
) -> np.ndarray:
    """Exact draws of chain states at β: of the mixture of Gaussians that mean units make, kept in
    proportion to Π(1 + z)^(-βγ); ``L`` is that of `field_map`."""
    sets, places, d, pixels = L.shape
    covered = sets * places * d / pixels
    width = beta * np.exp(-params["log_var"][0]) / covered
    precision = width * np.einsum("spda,spdb->ab", L, L)
    W, c = params.get("W", np.zeros((sets, d, 0))), params.get("c", np.zeros((sets, 0)))
    pulls = np.einsum("spda,sdm->spma", L, W).reshape(-1, pixels)
    g = states(len(pulls))
    b = beta * g @ pulls
    centre = np.linalg.solve(precision, b.T).T
    fields = np.repeat(c[:, None], places, axis=1).ravel()
    log_w = beta * g @ fields + 0.5 * (b * centre).sum(axis=1)
    cumulative = np.cumsum(np.exp(log_w - logsumexp(log_w)))
    root = np.linalg.inv(np.linalg.cholesky(precision))
    filters = np.einsum("spda,sdk->spka", L, params["C"]).reshape(-1, pixels)
    shapes = beta * np.repeat(np.exp(params["a"])[:, None], places, axis=1).ravel()
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < n:
        index = np.searchsorted(cumulative / cumulative[-1], rng.random(2 * n), side="right")
        y = centre[index] + rng.standard_normal((2 * n, pixels)) @ root
        log_p = -np.log1p(0.5 * (y @ filters.T) ** 2) @ shapes
        kept.append(y[np.log(rng.random(2 * n)) < log_p])
    return np.concatenate(kept)[:n]
