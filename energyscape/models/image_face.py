"""The face of models of whole images: images in, maps or features out, samples of any size.

What is the same whether windows lie on a torus or filters are laid over an image: how images are
read, drawn, painted in and denoised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    namespace,
    on_device,
    stream,
    to_device,
)
from energyscape.models.inputs import as_images
from energyscape.models.sampling import ChainMeans, checked_sampler
from energyscape.samplers import HMC, Clamped, Posterior, Target
from energyscape.sources import Rows, open_rows
from energyscape.verbs import Params, check_count, need

PIXELS_AT_ONCE = 1 << 20  # of the images that are worked on together


class EdgeTarget(Target):
    """A field at images with an edge. Given hidden units only tori can be drawn: no Gibbs steps."""

    has_sweep = False

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"an image with an edge, of {super().name}"


class ImageFace:
    """For models of images (n, h, w, c); a subclass says by `_drawn` where chains live."""

    takes_images = True

    def edged_target(self: Any, params: Params, beta: Any = 1.0) -> Target:
        """What a sampler sees of images of any size, filters inside."""
        return self.target(params, beta=beta)

    def _drawn(
        self: Any,
        n: int,
        shape: tuple[int, int] | None,
        start: Any,
        sampler: Any,
        n_steps: int,
        beta: float,
        rng: Any,
        seed: int,
    ) -> list[Array]:
        """Images of ``shape`` by chains, in parts."""
        raise NotImplementedError

    def read(self: Any, X: Any, reset: bool) -> Rows:
        """Checked images, (n, h, w) or (n, h, w, channels), as rows with a channel axis."""
        if not reset:
            self._check_settings_fit()
        rows = as_images(self, X)
        shape = rows.event_shape
        self.check_sides(shape[:2])
        if reset:
            self.image_shape_, self.n_features_in_ = shape, math.prod(shape)
        wanted = (*self.image_shape_, 1)[2]
        if (*shape, 1)[2] != wanted:
            raise ValueError(
                f"{type(self).__name__} was fitted to images of {wanted} channel(s), X has images "
                f"of shape {shape}"
            )
        return open_rows(rows.X, (*shape, 1)[:3])

    def check_sides(self, sides: tuple[int, ...]) -> None:
        """Raise ValueError for images of these sides where they cannot be read."""

    @property
    def _n_channels(self: Any) -> int:
        return (*self.image_shape_, 1)[2]

    def _shown_images(self: Any, x: Array) -> Array:
        """Images (n, h, w, c) as they came: grey ones without the axis of channels."""
        return x.reshape(len(x), *x.shape[1:3], *self.image_shape_[2:])

    def _images(self: Any, x: Any, name: str, n: int, shape: tuple[int, int]) -> Array:
        """Users' images (n, h, w, c) of a size, on the device; one may stand for all."""
        c = self.image_shape_[2:]
        x = self._points(x, name, ((*shape, *c), (n, *shape, *c)), self._dtype)
        xp = namespace(x)
        full = xp.zeros((n, *shape, *c), x.dtype) + x
        return full.reshape(n, *shape, self._n_channels)

    def sample(
        self: Any,
        n_samples: int = 1,
        *,
        shape: tuple[int, int] | None = None,
        sampler: Any = None,
        n_steps: int = 1000,
        start: Any = None,
        clamp: tuple[Any, Any] | None = None,
        beta: float = 1.0,
        random_state: Any = None,
    ) -> Any:
        """Draw images of low energy, of any size.

        Parameters
        ----------
        n_samples : int, default 1
        shape : (int, int), optional
            Height and width; default: those of the training images. Where chains live on a
            torus, it is the next larger one that windows fit onto.
        sampler : sampler, optional
            Default: ``default_sampler()``.
        n_steps : int, default 1000
            Steps of every chain.
        start : array, shape (n_samples, *shape) or (n_samples, *shape, channels), optional
            Where chains begin. Default: the persistent chains of the training where they have the
            size, else images that are roughly like the data.
        clamp : (mask, values), optional
            In-painting: pixels where ``mask`` is True are held at ``values``, of shape (h, w) or
            (n_samples, h, w), with channels if there are any. Chains are then images with an edge,
            not tori; they begin at ``start``, or where the mask is False, at the mean of the known.
        beta : float, default 1
            Inverse temperature of the joint energy.
        random_state : int, RandomState, Generator or None
            None uses the model's own: the same call gives the same samples.

        Returns
        -------
        array, shape (n_samples, h, w) or (n_samples, h, w, channels), dtype of the fit, container
            of ``fit``'s X
        """
        check_is_fitted(self)
        check_count("n_samples", n_samples)
        check_count("n_steps", n_steps, 0)
        if np.ndim(beta) or not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self._settle()
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        sampler = checked_sampler(self.default_sampler() if sampler is None else sampler)
        with on_device(self._device):
            rng = stream(seed, Purpose.SAMPLE, 0, self._device)
            if clamp is not None:
                if shape is not None:
                    raise ValueError("clamp says the shape of the images; leave shape out")
                parts = self._painted(n_samples, clamp, start, sampler, n_steps, beta, rng, seed)
            else:
                parts = self._drawn(n_samples, shape, start, sampler, n_steps, beta, rng, seed)
            x = parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)
        return to_device(x, self._home)

    def _painted(
        self: Any,
        n: int,
        clamp: tuple[Any, Any],
        start: Any,
        sampler: Any,
        n_steps: int,
        beta: float,
        rng: Any,
        seed: int,
    ) -> list[Array]:
        need(self, ("input_grad",), "in-painting")
        params, (mask, values) = self._params, clamp
        mask, values, x = self._held_images(n, mask, values, start)
        shape = x.shape[1:3]
        x, known = self._edged(x, mask)
        values = mirrored(values, _pads(values.shape, x.shape))
        size = max(1, PIXELS_AT_ONCE // math.prod(x.shape[1:]))
        parts = []
        for i, lo in enumerate(range(0, n, size)):
            rows = slice(lo, lo + size)
            rng = stream(seed, Purpose.SAMPLE, 1 + i, self._device)
            target = Clamped(self.edged_target(params, beta), known[rows], values[rows])
            chains = target.hold(x[rows])
            run = sampler.run(target, chains, n_steps, rng, verbose=bool(self.verbose))
            parts.append(self._shown_images(self._cropped(run.x, shape)))
        return parts

    def _held_images(
        self: Any, n: int, mask: Any, values: Any, start: Any
    ) -> tuple[Array, Array, Array]:
        if np.dtype(getattr(mask, "dtype", None) or np.asarray(mask).dtype) != bool:
            raise ValueError("the mask of clamp must be boolean, True where values are held")
        shape = tuple(np.shape(values))
        sides = shape[1:3] if len(shape) == 3 + len(self.image_shape_[2:]) else shape[:2]
        if len(sides) != 2 or min(sides) < 1:
            raise ValueError(f"values of clamp are images, got an array of shape {shape}")
        known = self._images(mask, "mask", n, sides).astype(bool)
        values = namespace(known).where(known, self._images(values, "values", n, sides), 0)
        values = self._finite(values, "values")
        if start is not None:
            x = self._finite(self._images(start, "start", n, sides), "start")
        else:
            xp, count = namespace(known), known.sum(axis=(1, 2, 3), keepdims=True)
            mean = values.sum(axis=(1, 2, 3), keepdims=True) / xp.maximum(count, 1)
            x = xp.where(known, values, mean).astype(values.dtype)
        return known, values, x

    def denoise(
        self: Any,
        X: Any,
        sigma: float,
        *,
        sampler: Any = None,
        n_steps: int = 50,
        n_warmup: int = 50,
        random_state: Any = None,
    ) -> Any:
        """Mean of whole images x given noisy ones y = x + σξ, with ξ standard normal.

        One chain for each image on F(x) + |x - y|²/2σ²; its states are averaged.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of any size.
        sigma : float > 0
            Deviation of the noise, in the units of X.
        sampler, n_steps, n_warmup, random_state
            As for models of rows.

        Returns
        -------
        array, shape of X, container of X, dtype of the fit
        """
        check_is_fitted(self)
        need(self, ("input_grad",), "denoising")
        if np.ndim(sigma) or not sigma > 0:
            raise ValueError(f"sigma must be a number > 0, got {sigma!r}")
        check_count("n_steps", n_steps)
        rows = self.read(X, reset=False)
        self._settle(rows.X)
        seed = self.seed_ if random_state is None else draw_seed(random_state)
        kernel = checked_sampler(HMC() if sampler is None else sampler)
        parts, shape, given = [], rows.event_shape, tuple(rows.X.shape[1:])
        with on_device(self._device):
            for i, block in enumerate(rows.blocks(max(1, PIXELS_AT_ONCE // math.prod(shape)))):
                y = to_device(block, self._device).astype(self._dtype, copy=False)
                wide, known = self._edged(y, namespace(y).ones(y.shape, bool))
                xp = namespace(y)
                noise = xp.where(known[0], sigma, xp.inf)
                target = Posterior(self.edged_target(self._params), wide, noise)
                rng = stream(seed, Purpose.SAMPLE, i, self._device)
                run = kernel.run(
                    target, wide, n_steps, rng, n_warmup=n_warmup, reducers=[ChainMeans()]
                )
                mean = self._cropped(run.reduced[0], shape).astype(y.dtype)
                parts.append(to_device(mean.reshape(len(mean), *given), device_of(rows.X)))
        return parts[0] if len(parts) == 1 else namespace(parts[0]).concatenate(parts)

    def __sklearn_tags__(self: Any) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.sparse = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags

    def _edged(self: Any, x: Array, known: Array) -> tuple[Array, Array]:
        """Images and what is known of them, as the model takes them: larger, if windows ask it."""
        return x, known

    def _cropped(self: Any, x: Array, shape: tuple[int, ...]) -> Array:
        top, left = ((x.shape[1 + i] - shape[i]) // 2 for i in (0, 1))
        return x[:, top : top + shape[0], left : left + shape[1]]


def _pads(small: tuple[int, ...], large: tuple[int, ...]) -> list[tuple[int, int]]:
    before = [(b - a) // 2 for a, b in zip(small, large, strict=True)]
    return [(lo, b - a - lo) for lo, a, b in zip(before, small, large, strict=True)]


def mirrored(x: Array, pads: list[tuple[int, int]]) -> Array:
    """Mirrored beyond the edges, edge pixels not repeated; as far as there is something."""
    xp = namespace(x)
    for axis in (1, 2):
        lo, hi = pads[axis]
        side = x.shape[axis]
        index = np.abs(np.arange(-lo, side + hi))
        period = max(1, 2 * (side - 1))
        index = index % period
        index = np.where(index >= side, period - index, index) if side > 1 else index * 0
        x = xp.take(x, xp.asarray(index), axis=axis)
    return x
