"""Gated Markov random fields of whole images: one gated model of every window, added up.

    F(x) = Σ_windows |w|²/2σ²q + Σ_k γ_k log(1 + ½(C_k'w)²) - Σ_l softplus(c_l + W_l'w)

with w = Su the whitened pixels of a window, u = (x - mean)/deviation, and q the number of windows
that a pixel lies in, so that the first term is about that of a Gaussian σ times as wide as the
data. Where windows lie, and which filters see which, the layout says. Given the hidden units
h ~ Gamma(γ, rate 1 + z) and g ~ Bernoulli of every window, an image is Gaussian with

    Λ = Σ_windows S(I/σ²q + C diag(h) C')S,   Λ mean = Σ_windows S W g

which is sampled by perturbing the right side with noise of covariance Λ and solving (Papandreou and
Yuille, 2010). Chains move in coordinates y with u = Ay, where A gives white noise on the torus the
power spectrum of the data: natural images vary a thousand times more over long distances than over
short ones, and trajectories would have to be that much longer.

References
----------
Ranzato, M., Mnih, V., Hinton, G. E. (2010). Generating more realistic images using gated MRF's.
Roth, S., Black, M. J. (2009). Fields of experts.
Papandreou, G., Yuille, A. (2010). Gaussian sampling by local perturbations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.fft

from energyscape.backend import Array, namespace, to_host
from energyscape.models.field_gradient import TorusGradient
from energyscape.models.field_pass import FieldPass
from energyscape.models.field_scores import FieldScoreMixin
from energyscape.models.from_pass import UnitsFromPass
from energyscape.models.gated_base import FIRST_LENGTH, RIDGE, shorten
from energyscape.models.gated_units import GammaUnits
from energyscape.models.image_model import ImageModel
from energyscape.models.window_pass import times
from energyscape.samplers import HMC, Multiplicative
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params, check_count

_WINDOWS_OF_START, _IMAGES_OF_START = 20_000, 500
_TOLERANCE, _MOST_ROUNDS = 1e-5, 500  # of conjugate gradients
_BENDS = np.geomspace(1e-4, 1.0, 25)  # κ² of the spectrum that are tried


class GatedField(UnitsFromPass, FieldScoreMixin, ImageModel):
    """What tiled models and fields of experts share; they say where windows lie."""

    domain = "real"
    codes = "unit"
    latents = "nonneg"
    units = GammaUnits(0.0)

    n_components: int
    sigma: float
    equal_norms: bool
    n_mean_components = 0

    def default_trainer(self) -> Any:
        """PCD with averaged parameters on 32 images at a time, whose chains HMC moves."""
        return PCD(batch_size=32, n_chains=32, learning_rate=0.1, averaging=0.1)

    def default_sampler(self) -> Any:
        """HMC: 20 leapfrog steps of jittered length, nine of ten accepted."""
        return HMC(adaptation=Multiplicative(0.1))

    def check_settings(self) -> None:
        super().check_settings()
        check_count("n_mean_components", self.n_mean_components, 0)
        if not 0 < self.sigma < math.inf:
            raise ValueError(f"sigma must be > 0 and finite, got {self.sigma!r}")

    @property
    def n_gates(self) -> int:
        """Covariance units at every place."""
        return self.layout().sets * int(self.n_components)

    @property
    def _n_units(self) -> int:
        params = self._state.params
        return sum(params[name].size for name in (self.units.name, "c") if name in params)

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """S from the covariance of windows and A from the spectrum of images; random filters; γ
        such that the units make up for what the Gaussian lacks, as in models of patches."""
        xp, layout = namespace(x), self.layout()
        sets, d = layout.sets, layout.size**2 * x.shape[3]
        k, m = int(self.n_components), int(self.n_mean_components)
        mean = x.mean(axis=(0, 1, 2), dtype=np.float64)
        scale = math.sqrt(float(((x - mean) ** 2).mean(dtype=np.float64))) or 1.0
        v = (_random_windows(x, layout.size, rng).astype(np.float64) - mean) / scale
        v = v.reshape(len(v), d)
        value, vector = xp.linalg.eigh(v.T @ v / len(v))
        white = (vector / xp.sqrt(xp.maximum(value, 0) + RIDGE)) @ vector.T
        C = self.first_filters(white, rng.normal((sets, d, k), x.dtype).astype(np.float64))
        z = 0.5 * (v[: len(v) // 10 + 1] @ white @ C[0]) ** 2
        wanted = max(1 - 1 / self.sigma**2, 0.0) * d / layout.coverage
        params = {
            "C": C,
            "a": xp.zeros((sets, k)) + self.units.start(z, wanted),
            "S": white,
            "mean_v": mean,
            "deviation": xp.full(1, scale),
            "log_var": xp.full(1, 2 * math.log(self.sigma)),
            "spectrum": xp.asarray(_spectrum((x[:_IMAGES_OF_START] - mean) / scale)),
            "windows": xp.full(1, float(math.prod(layout.places(*x.shape[1:3])))),
        }
        if m:
            W = rng.normal((sets, d, m), x.dtype).astype(np.float64)
            params |= {"W": 0.05 * W, "c": xp.full((sets, m), -2.0)}
        return {name: value.astype(x.dtype) for name, value in params.items()}

    def first_filters(self, white: Array, noise: Array) -> Array:
        """C to begin with, from standard normal ``noise`` of its shape."""
        return noise * (FIRST_LENGTH / namespace(noise).sqrt((noise * noise).sum(axis=1)))[:, None]

    def param_specs(self) -> dict[str, Param]:
        specs = {"C": Param(10.0), "a": self.units.spec()}
        if self.n_mean_components:
            specs |= {"W": Param(rate=0.2, decay=True), "c": Param(rate=0.1)}
        buffers = "S", "mean_v", "deviation", "log_var", "spectrum", "windows"
        return specs | {key: Param(trainable=False) for key in buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        layout, c = self.layout(), self._n_channels
        sets, d = layout.sets, layout.size**2 * c
        k, m = int(self.n_components), int(self.n_mean_components)
        shapes: dict[str, tuple[int, ...]] = {"C": (sets, d, k), "a": (sets, k), "S": (d, d)}
        shapes |= {"mean_v": (c,), "deviation": (1,), "log_var": (1,), "spectrum": (3,)}
        shapes["windows"] = (1,)
        return shapes | ({"W": (sets, d, m), "c": (sets, m)} if m else {})

    def precondition(self, params: Params, grads: Params) -> None:
        """Gradients for each window rather than image; filters move by no more than a share of
        their length; in place."""
        for name in grads:
            grads[name] /= params["windows"]
        shorten(params["C"], grads["C"])
        self.units.precondition(params, grads)

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Filters of equal length, which may drift together."""
        if self.equal_norms:
            xp, C = namespace(params["C"]), params["C"]
            lengths = xp.sqrt((C * C).sum(axis=1, keepdims=True))
            C *= lengths.mean() / xp.maximum(lengths, np.finfo(C.dtype).tiny)

    # ------------------------------------------------------------ verbs

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> FieldPass:
        """One product with the filters of each kind, and all that follows."""
        return FieldPass(self, params, x, beta)

    def on_torus(self, params: Params, x: Array, beta: Any = 1.0) -> FieldPass:
        return FieldPass(self, params, x, beta, torus=True)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, the shape of x."""
        return self.forward(params, x).input_grad()

    def torus_grad_function(self, params: Params) -> TorusGradient:
        """y → ∂F/∂y of states of chains, params worked into the filters once."""

        def amplitude(shape: tuple[int, ...]) -> Array:
            return _amplitude(params["spectrum"], shape)

        return TorusGradient(params, self.layout(), self.units.shapes(params), amplitude)

    # ------------------------------------------------------------ coordinates of chains

    def chain_states(self, params: Params, torus: Array) -> Array:
        u = (torus - params["mean_v"]) / params["deviation"]
        return _shaded(u, 1 / _amplitude(params["spectrum"], u.shape))

    def tori(self, params: Params, states: Array) -> Array:
        u = self.pulled(params, states)
        u *= params["deviation"]
        u += params["mean_v"]
        return u

    def pulled(self, params: Params, v: Array) -> Array:
        """Av, for v on a torus; A is symmetric."""
        return _shaded(v, _amplitude(params["spectrum"], v.shape))

    def first_states(self, params: Params, shape: tuple[int, ...], rng: Any) -> Array:
        """White noise, which is stationary noise with the spectrum of the data."""
        return rng.normal(shape, params["C"].dtype)

    # ------------------------------------------------------------ windows

    def white(self, params: Params, image: Array) -> Array:
        """Su of every window of images of u, (sets, n, places, d)."""
        return times(self.layout().cut(image), params["S"])

    def unwhite(self, params: Params, w: Array, shape: tuple[int, ...]) -> Array:
        """The adjoint of `white`: images of ``shape``."""
        return self.layout().paste(times(w, params["S"]), shape)

    def from_maps(self, maps: Array) -> tuple[Array, Array | None]:
        """Maps of all units as covariance units and mean units of windows."""
        layout, k = self.layout(), self.n_gates
        h = layout.from_maps(maps[..., :k])
        return h, layout.from_maps(maps[..., k:]) if self.n_mean_components else None

    # ------------------------------------------------------------ an image given hidden units

    def given(self, params: Params, h: Array, rng: Any = None, beta: Any = 1.0) -> Array:
        """Mean of chain states given maps ``h`` of hidden units, or with ``rng`` a draw, by
        conjugate gradients. Gamma units are tempered themselves, not their coupling.

        Raises
        ------
        FloatingPointError
            If these do not converge.
        """
        precision, right = self._system(params, h, rng, beta)

        def product(y: Array) -> Array:
            return self.pulled(params, precision(self.pulled(params, y)))

        return _conjugate_gradients(product, self.pulled(params, right))

    def repainted(self, params: Params, h: Array, rng: Any, x: Array, free: Array) -> Array:
        """A draw of the ``free`` pixels of tori ``x``, (n, h, w, c), given maps ``h`` of hidden
        units and the other pixels. Raises as `given`.
        """
        xp = namespace(x)
        precision, right = self._system(params, h, rng, 1.0)
        u = (x - params["mean_v"]) / params["deviation"]
        held = xp.where(free, u.dtype.type(0), u)

        def of_free(values: Array) -> Array:
            return xp.where(free, values, values.dtype.type(0))

        def eased(r: Array) -> Array:
            return of_free(self.pulled(params, self.pulled(params, r)))

        right = of_free(right - precision(held))
        found = _conjugate_gradients(lambda v: of_free(precision(v)), right, eased)
        return xp.where(free, found * params["deviation"] + params["mean_v"], x)

    def _system(
        self, params: Params, h: Array, rng: Any, beta: Any
    ) -> tuple[Callable[[Array], Array], Array]:
        """u → Λu on tori, and the right side Λ mean, with ``rng`` perturbed by N(0, Λ)."""
        xp, layout, S = namespace(h), self.layout(), params["S"]
        sides = (side * layout.grain + layout.reach for side in h.shape[1:3])
        wrapped = (len(h), *sides, len(params["mean_v"]))
        h, g = self.from_maps(h)
        beta = xp.asarray(beta, h.dtype).reshape(-1, 1, 1)
        own = beta * xp.exp(-params["log_var"]) / h.dtype.type(layout.coverage)
        back = params["C"].transpose(0, 2, 1)

        def folded(w: Array) -> Array:
            return layout.fold(self.unwhite(params, w, wrapped))

        def precision(u: Array) -> Array:
            w = self.white(params, layout.wrap(u))
            r = times(w, params["C"])
            r *= h
            return folded(own * w + times(r, back))

        right = xp.zeros((*h.shape[:3], len(S)), h.dtype)
        if g is not None:
            right += beta * times(g, params["W"].transpose(0, 2, 1))
        if rng is not None:
            right += xp.sqrt(own) * _noise(rng, right)
            right += times(xp.sqrt(h) * _noise(rng, h), back)
        return precision, folded(right)

    # ------------------------------------------------------------ fitted

    @property
    def components_(self) -> Any:
        """Covariance filters SC as they see pixels, shape (sets · filters, size · size ·
        channels)."""
        self._need_fit("components_")
        filters = self._params["S"] @ self._params["C"]
        return self._fitted(filters.transpose(0, 2, 1).reshape(-1, filters.shape[1]))

    @property
    def patterns_(self) -> Any:
        """S⁻¹C as rows: what windows are like where a filter answers, up to a factor; the shape of
        `components_`."""
        self._need_fit("patterns_")
        S, C = self._params["S"], self._params["C"]
        patterns = namespace(S).linalg.solve(S, C.transpose(1, 0, 2).reshape(len(S), -1))
        return self._fitted(patterns.T)


def _noise(rng: Any, like: Array) -> Array:
    """Standard normal numbers for windows (sets, n, …), image by image."""
    sets, n, *rest = like.shape
    return rng.normal((n, sets, *rest), like.dtype).transpose(1, 0, 2, 3)


def _random_windows(x: Array, size: int, rng: Any) -> Array:
    """Windows of images (n, h, w, c) at random places, (rows, size, size, c)."""
    xp, (n, h, w, _) = namespace(x), x.shape
    u = rng.uniform((3, _WINDOWS_OF_START), np.float64)
    side = xp.arange(size)
    image, top, left = (
        xp.minimum((u[i] * most).astype(np.int64), most - 1)
        for i, most in enumerate((n, h - size + 1, w - size + 1))
    )
    down, across = top[:, None, None] + side[:, None], left[:, None, None] + side
    return x[image[:, None, None], down, across]


# ---------------------------------------------------------------- stationary noise


def _laplacian(h: int, w: int, xp: Any) -> Array:
    """4 - 2 cos ω - 2 cos ω' at the frequencies of a real transform of h × w."""
    down = 2 - 2 * xp.cos(2 * np.pi * xp.arange(h) / h)
    across = 2 - 2 * xp.cos(2 * np.pi * xp.arange(w // 2 + 1) / w)
    return down[:, None] + across


def _spectrum(u: Array) -> list[float]:
    """p, q, log κ² of log power = p + q log(κ² + L), by least squares on the mean periodogram of
    images that a Hann window fades out, then p such that the variance is theirs; on the host."""
    xp, (_, h, w, _) = namespace(u), u.shape
    fade = np.outer(np.hanning(h + 2)[1:-1], np.hanning(w + 2)[1:-1])
    faded = u * xp.asarray(fade / math.sqrt((fade * fade).mean()))[:, :, None]
    power = abs(xp.fft.rfft2(faded, axes=(1, 2))) ** 2
    power = to_host(power.mean(axis=(0, 3))).ravel() / (h * w) + 1e-12
    # All columns but the first, and the last of an even width, stand for two frequencies.
    twice = 2.0 - (np.arange(w // 2 + 1) % (w / 2) == 0)
    often = np.broadcast_to(twice, (h, len(twice))).ravel()
    laplacian, best = _laplacian(h, w, np).ravel(), (math.inf, [0.0, 0.0, 0.0])
    for bend in _BENDS:
        columns = np.stack([np.ones_like(laplacian), np.log(bend + laplacian)], axis=1)
        line = np.linalg.lstsq(columns, np.log(power), rcond=None)[0]
        fit = columns @ line
        misfit = float(((np.log(power) - fit) ** 2).sum())
        if misfit < best[0]:
            level = line[0] + math.log((often @ power) / (often @ np.exp(fit)))
            best = misfit, [float(level), float(line[1]), math.log(bend)]
    return best[1]


def _amplitude(spectrum: Array, shape: tuple[int, ...]) -> Array:
    """Of every frequency of tori (n, h, w, c), shape (1, h, w // 2 + 1, 1)."""
    xp = namespace(spectrum)
    level, slope, bend = spectrum.astype(np.float64)
    L = _laplacian(shape[1], shape[2], xp)
    amplitude = xp.exp(0.5 * (level + slope * xp.log(xp.exp(bend) + L)))
    return amplitude.astype(spectrum.dtype)[None, :, :, None]


def _shaded(x: Array, amplitude: Array) -> Array:
    """Tori with every frequency multiplied."""
    # SciPy's transforms are three times as quick as NumPy's.
    fft = scipy.fft if isinstance(x, np.ndarray) else namespace(x).fft
    wave = fft.rfft2(x, axes=(1, 2))
    wave *= amplitude
    return fft.irfft2(wave, s=x.shape[1:3], axes=(1, 2)).astype(x.dtype, copy=False)


# ---------------------------------------------------------------- linear systems


def _conjugate_gradients(
    product: Callable[[Array], Array],
    b: Array,
    ease: Callable[[Array], Array] = lambda r: r,
) -> Array:
    """x with product(x) = b, for one symmetric positive system a row, until all residuals are a
    1e-5th of b (1e-10th in float64); ``ease`` goes some of the way from a residual to its error,
    and lengths are measured by it."""
    xp = namespace(b)
    limit = _TOLERANCE if b.dtype == np.float32 else _TOLERANCE**2

    def dot(p: Array, q: Array) -> Array:
        return (p * q).sum(axis=(1, 2, 3), dtype=np.float64)

    def column(values: Array) -> Array:
        return values.astype(b.dtype)[:, None, None, None]

    x, r, p = xp.zeros_like(b), b.copy(), ease(b).copy()
    size = start = dot(r, p)
    for _ in range(_MOST_ROUNDS):
        if float((size - limit**2 * start).max()) <= 0:
            return x
        moved = product(p)
        step = column(size / xp.maximum(dot(p, moved), 1e-300))
        x += step * p
        r -= step * moved
        near = ease(r)
        size, before = dot(r, near), size
        p = near + column(size / xp.maximum(before, 1e-300)) * p
    raise FloatingPointError(
        f"conjugate gradients did not reach a relative residual of {limit:g} in {_MOST_ROUNDS} "
        "rounds: the filters' lengths or the hidden units are out of all proportion"
    )
