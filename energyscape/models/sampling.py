"""``sample`` and ``denoise``: chains from a fitted model, with clamping, by blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    is_gpu_array,
    namespace,
    on_device,
    stream,
    to_device,
    to_host,
)
from energyscape.errors import CapabilityError
from energyscape.samplers import HMC, Clamped, Posterior
from energyscape.samplers.base import Sampler
from energyscape.verbs import check_count, need, speaks

# Chains that move together on a CPU: more of them leave its caches (measured: 20,000 chains of
# 64 + 256 units take 5.0 µs a chain and step in one go, 1.6 µs by thousands).
CHAINS_AT_ONCE = 1000


class SamplingMixin:
    """Draws of x from a fitted model."""

    def sample(
        self: Any,
        n_samples: int = 1,
        *,
        sampler: Any = None,
        n_steps: int = 1000,
        start: Any = None,
        clamp: tuple[Any, Any] | None = None,
        beta: float = 1.0,
        random_state: Any = None,
    ) -> Any:
        """Draw points of low energy.

        Where the model has exact draws as a formula (mixtures, PCA, ICA) these are what comes,
        unless ``sampler``, ``start``, ``clamp`` or ``beta`` ask for chains.

        Parameters
        ----------
        n_samples : int, default 1
        sampler : sampler, optional
            Default: ``default_sampler()``.
        n_steps : int, default 1000
            Steps of every chain.
        start : array, shape (n_samples, n_features), optional
            Where chains begin. Default: the persistent chains of the training, in turn, or draws
            of the base measure where there are none.
        clamp : (mask, values), optional
            In-painting: coordinates where ``mask`` is True are held at ``values``; both of shape
            (n_features,) or (n_samples, n_features).
        beta : float, default 1
            Inverse temperature of the joint energy.
        random_state : int, RandomState, Generator or None
            None uses the model's own: the same call gives the same samples.

        Returns
        -------
        array, shape (n_samples, n_features), dtype of the fit, container of ``fit``'s X
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        check_count("n_steps", n_steps, 0)
        if np.ndim(beta) or not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self._settle()
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        if sampler is None and start is None and clamp is None and beta == 1 and self._draws:
            with on_device(self._device):
                rng = stream(seed, Purpose.SAMPLE, 0, self._device)
                return to_device(self.sample_exact(self._params, n_samples, rng), self._home)
        sampler = checked_sampler(self.default_sampler() if sampler is None else sampler)
        if sampler.follows_energy and not self.proper:
            raise CapabilityError(
                f"exp(-F) of {type(self).__name__} has no normaliser, so that the chains of "
                f"{type(sampler).__name__} would run away; call sample(n) alone, where there are "
                "exact draws, or give it a DenoisingChain, where rows are reconstructed"
            )
        if sampler.tempers and beta != 1:
            raise ValueError(f"beta={beta} with {sampler!r}: its ladder leads from β = 1 downwards")
        with on_device(self._device):
            x = self._start(n_samples, start, stream(seed, Purpose.SAMPLE, 0, self._device))
            held = None if clamp is None else self._clamp(clamp, n_samples)
            size = CHAINS_AT_ONCE if self._device == "cpu" else n_samples
            tempered = sampler.tempers and not speaks(self, ("base_measure",))
            base = self.base_measure(self._params) if tempered else None
            parts = []
            for i, lo in enumerate(range(0, n_samples, size)):
                target: Any = self.target(self._params, base, beta)
                chains = x[lo : lo + size]
                if held is not None:
                    own = [a[lo : lo + size] if a.ndim == x.ndim else a for a in held]
                    target = Clamped(target, *own)
                    chains = target.hold(chains)
                rng = stream(seed, Purpose.SAMPLE, 1 + i, self._device)
                run = sampler.run(target, chains, n_steps, rng, verbose=bool(self.verbose))
                parts.append(run.x)
            x = parts[0] if len(parts) == 1 else namespace(x).concatenate(parts)
        return to_device(self._visible_part(x), self._home)

    def denoise(
        self: Any,
        X: Any,
        sigma: Any,
        *,
        sampler: Any = None,
        n_steps: int = 100,
        n_warmup: int = 50,
        random_state: Any = None,
    ) -> Any:
        """Mean of x given noisy rows y = x + σξ, with ξ standard normal.

        One chain for each row on F(x) + |x - y|²/2σ²; its states are averaged. (The mean has the
        least squared error; the x of the lowest energy is much worse.)

        Parameters
        ----------
        X : array, shape (n, n_features)
            What was observed.
        sigma : float > 0, or array of such, shape (n_features,)
            Deviation of the noise, in the units of X: of whitened noisy patches it differs by
            feature. Infinite where nothing was observed, whatever X says there.
        sampler : sampler, optional
            Default: `HMC` with masses that follow from σ and the variances of the rows.
        n_steps : int, default 100
            States that are averaged.
        n_warmup : int, default 50
            Steps before, in which the sampler adapts.
        random_state : int, RandomState, Generator or None
            None uses the model's own: the same call gives the same rows.

        Returns
        -------
        array, shape (n, n_features), container of X, dtype of the fit

        Raises
        ------
        CapabilityError
            If the model is of other than real values, or its energy is that of no density.
        ValueError
            For a ``sigma`` that is not positive or of another shape.

        References
        ----------
        Schmidt, U., Gao, Q., Roth, S. (2010). A generative perspective on MRFs in low-level vision.
        """
        check_is_fitted(self)
        need(self, ("input_grad",), "denoising")
        if self.domain != "real" or not self.proper:
            raise CapabilityError(
                f"denoising needs a density of real values; {type(self).__name__} "
                + (f"has {self.domain} units" if self.proper else "has none")
            )
        check_count("n_steps", n_steps)
        rows = self.read(X, reset=False)
        self._settle(rows.X)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        with on_device(self._device):
            noise = self._noise(sigma)
            parts = []
            size = CHAINS_AT_ONCE if self._device == "cpu" else len(rows)
            for i, block in enumerate(rows.blocks(size)):
                y = to_device(block, self._device).astype(self._dtype, copy=False)
                target = Posterior(self.target(self._params), y, noise)
                start, masses = _shrunk(y, noise)
                kernel = checked_sampler(HMC(inverse_mass=masses) if sampler is None else sampler)
                rng = stream(seed, Purpose.SAMPLE, i, self._device)
                run = kernel.run(
                    target, start, n_steps, rng, n_warmup=n_warmup, reducers=[ChainMeans()]
                )
                parts.append(to_device(run.reduced[0].astype(y.dtype), device_of(rows.X)))
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)

    def _noise(self: Any, sigma: Any) -> Array:
        """σ of every feature, on the device."""
        values = np.asarray(sigma, np.float64) if not is_gpu_array(sigma) else sigma
        if values.shape not in ((), (self.n_features_in_,)) or not bool((values > 0).all()):
            raise ValueError(
                f"sigma must be > 0, one number or one for each of the {self.n_features_in_} "
                f"features; got {sigma!r}"
            )
        values = to_device(values, self._device)
        return namespace(values).zeros(self.n_features_in_) + values

    def _visible_part(self: Any, x: Array) -> Array:
        """What of the chains' states is handed out: all of it, for most models."""
        return x

    @property
    def _draws(self: Any) -> bool:
        """Whether exact draws are a formula."""
        exact = not speaks(self, ("sample_exact",))
        return exact and self.enumerable_units(self._params) == 0

    def _start(self: Any, n: int, start: Any, rng: Any) -> Array:
        if start is not None:
            start = self._points(start, "start", ((n, self.n_features_in_),), self._dtype)
            return self._finite(start, "start")
        carry = self._state.carry
        h = carry.get("chain/h")
        if "chain/x" in carry:
            return carry["chain/x"][namespace(carry["chain/x"]).arange(n) % len(carry["chain/x"])]
        if h is None and self._draws:
            return self.sample_exact(self._params, n, rng)
        if h is None and not speaks(self, ("start_points",)):
            return self.start_points(self._params, n, rng)
        if h is None:
            need(self, ("base_measure",), "sample without start= or persistent chains")
            base = self.base_measure(self._params)
            return self.target(self._params, base=base).sample_base(n, rng)
        h = h[namespace(h).arange(n) % len(h)]
        return self.sample_visible(self._params, h, rng)

    def _clamp(self: Any, clamp: tuple[Any, Any], n: int) -> tuple[Array, Array]:
        if not (isinstance(clamp, tuple | list) and len(clamp) == 2):
            raise ValueError(f"clamp must be a pair (mask, values), got {type(clamp).__name__}")
        mask, values = clamp
        shapes = ((self.n_features_in_,), (n, self.n_features_in_))
        if np.dtype(getattr(mask, "dtype", None) or np.asarray(mask).dtype) != bool:
            raise ValueError("the mask of clamp must be boolean, True where values are held")
        mask = self._points(mask, "mask", shapes, bool)
        values = self._points(values, "values", shapes, self._dtype)
        values = namespace(values).where(mask, values, 0)  # NaN may stand for the unknown
        return mask, self._finite(values, "values")

    def _points(self: Any, x: Any, name: str, shapes: tuple[Any, ...], dtype: Any) -> Array:
        x = x if is_gpu_array(x) else np.asarray(x)
        if tuple(x.shape) not in shapes:
            raise ValueError(
                f"{name} has shape {tuple(x.shape)}, wanted {' or '.join(map(str, shapes))}"
            )
        return to_device(x, self._device).astype(dtype, copy=False)

    def _finite(self: Any, x: Array, name: str) -> Array:
        if not bool(namespace(x).isfinite(x).all()):
            raise ValueError(f"{name} contains NaN or infinity")
        return x


def checked_sampler(sampler: Any) -> Sampler:
    """``sampler``, or ValueError if it is none."""
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler must be a sampler, got {sampler!r}")
    return sampler


def _shrunk(y: Array, noise: Array) -> tuple[Array, np.ndarray]:
    """Noisy rows drawn to their mean by the share of their variance that is noise, and the
    posterior variances of features that were Gaussian, on the host."""
    xp = namespace(y)
    mean, total = y.mean(axis=0, dtype=np.float64), y.var(axis=0, dtype=np.float64)
    seen = xp.isfinite(noise)
    power = xp.where(seen, noise, 0.0) ** 2
    # Where the rows say nothing, they are taken to be mostly noise.
    signal = xp.maximum(total - power, 0.01 * power)
    signal = xp.where(seen | (signal > 0), signal, 1.0)
    share = xp.where(seen, signal / (signal + power), 0.0)
    start = mean + (y - mean) * share
    return start.astype(y.dtype), to_host(xp.where(seen, share * power, signal))


class ChainMeans:
    """Mean of every chain over the states shown, in float64."""

    def begin(self, x: Array, n: int) -> tuple[Array, int]:
        """Nothing seen yet."""
        return namespace(x).zeros(x.shape, np.float64), 0

    def add(self, state: tuple[Array, int], x: Array) -> tuple[Array, int]:
        """One more state."""
        total, count = state
        total += x
        return total, count + 1

    def end(self, state: tuple[Array, int]) -> Array:
        """The means, the shape of x."""
        return state[0] / state[1]
