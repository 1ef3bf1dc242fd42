"""The face of stationary models of whole images: images in, samples of any size out.

Chains live on a torus, where every pixel has as many neighbours as any other; rows of data are
windows of it. A torus of h × w wrapped to the size of a row has as many windows for every filter as
the row, so that the two meet in one gradient. Images that are observed, to be denoised or painted
in, are no tori: filters see what lies inside, and pixels beyond the edge are unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, is_gpu_array, namespace, stream
from energyscape.models.base import EnergyModel
from energyscape.models.image_face import PIXELS_AT_ONCE, EdgeTarget, ImageFace, mirrored
from energyscape.models.inputs import as_images
from energyscape.models.layouts import Layout
from energyscape.samplers import Target
from energyscape.verbs import Params, Pass, speaks


class TorusTarget(Target):
    """A field on a torus, in the coordinates that its chains move in."""

    def forward(self, x: Array) -> Pass:
        return self.model.on_torus(self.params, x, self.beta)

    def energy_and_grad(self, x: Array) -> tuple[Array, Array]:
        prepared = self._prepared()
        if prepared is not None:
            return prepared.energy_and_grad(x)
        passed, put = self.forward(x), namespace(x).concatenate
        parts = passed.parts()  # type: ignore[attr-defined]
        both = [(part.energy(), part.input_grad()) for _, part in parts]
        return put([energy for energy, _ in both]), put([grad for _, grad in both])

    def gradient(self) -> Callable[[Array], Array]:
        return self._prepared() or self.input_grad

    def _prepared(self) -> Any:
        """The model's quick gradient, or None."""
        plain = np.ndim(self.beta) == 0 and self.beta == 1.0
        # A GPU is better served by few calls on all images than by blocks for a cache.
        if not plain or is_gpu_array(self.like) or speaks(self.model, ("torus_grad_function",)):
            return None
        if self._gradient is None:
            self._gradient = self.model.torus_grad_function(self.params)
        return self._gradient


class ImageModel(ImageFace, EnergyModel):
    """Base of models of whole images; subclasses say where windows lie and write the verbs."""

    def layout(self) -> Layout:
        """Where the filters' windows lie."""
        raise NotImplementedError

    def on_torus(self, params: Params, x: Array, beta: Any = 1.0) -> Pass:
        """The pass at chain states ``x``."""
        raise NotImplementedError

    def chain_states(self, params: Params, torus: Array) -> Array:
        """Tori (n, h, w, c) as states of chains."""
        raise NotImplementedError

    def tori(self, params: Params, states: Array) -> Array:
        """States of chains as tori (n, h, w, c)."""
        raise NotImplementedError

    def given(self, params: Params, h: Array, rng: Any = None, beta: Any = 1.0) -> Array:
        """Mean of chain states given maps ``h`` of hidden units, or with ``rng`` a draw."""
        raise NotImplementedError

    def sample_visible(
        self, params: Params, h: Array, rng: Any, beta: Any = 1.0, base: Params | None = None
    ) -> Array:
        """States of chains on the torus given maps of hidden units."""
        return self.given(params, h, rng, beta)

    def first_states(self, params: Params, shape: tuple[int, ...], rng: Any) -> Array:
        """Where chains begin without data, for tori of ``shape`` (n, h, w, c)."""
        raise NotImplementedError

    # ------------------------------------------------------------ rows and chains

    def event_shape(self, params: Params) -> None:
        """Images of any size."""

    def edged_target(self, params: Params, beta: Any = 1.0) -> Target:
        """What a sampler sees of images that are no tori."""
        return EdgeTarget(self, params, None, beta)

    def target(self, params: Params, base: Params | None = None, beta: Any = 1.0) -> Target:
        """What a sampler sees of this model: the field on a torus."""
        return TorusTarget(self, params, None, beta)

    def to_chains(self, params: Params, x: Array) -> Array:
        """States of chains that begin at images ``x``, whose last rows and columns are left off."""
        layout = self.layout()
        sides = [side - layout.reach for side in x.shape[1:3]]
        return self.chain_states(params, x[:, : sides[0], : sides[1]])

    def from_chains(self, params: Params, states: Array) -> Array:
        """States of chains as images like those of the data: tori, wrapped; shape (n, h, w, c)."""
        return self.layout().wrap(self.tori(params, states))

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        layout, (h, w) = self.layout(), event_shape[:2]
        if layout.fits(h, w):
            return
        least = layout.torus(layout.size) + layout.reach
        fitting = [layout.image(side, side)[0] for side in (h, w)]
        grain = "" if layout.grain == 1 else f" plus multiples of {layout.grain}"
        raise ValueError(
            f"{type(self).__name__} trains on images whose sides are {least}{grain}, so that its "
            f"windows fit; got {h}×{w}. Crop them, or take larger ones of {fitting[0]}×{fitting[1]}"
        )

    # ------------------------------------------------------------ the face

    def transform(self, X: Any) -> Any:
        """Activities of all units at all places of each image.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of the shape seen in ``fit``.

        Returns
        -------
        array, shape (n, n_features_out), container of X, dtype of the fit
        """
        check_is_fitted(self)
        as_images(self, X, self.image_shape_)
        rows = self.read(X, reset=False)
        return self._in_blocks(rows, lambda p, x: self.encode(p, x).reshape(len(x), -1))

    def maps(self, X: Any) -> Any:
        """The same as maps, shape (n, places down, places across, units), for images of any size
        whose windows fit."""
        check_is_fitted(self)
        rows = self.read(X, reset=False)
        self.check_rows(len(rows), rows.event_shape)
        return self._in_blocks(rows, self.encode)

    def energy(self, X: Any) -> Any:
        """F(x) of each image at the fitted parameters, in nats, shape (n,), float64.

        Images have any size; windows that do not fit into them whole are left out.
        """
        return super().energy(X)

    @property
    def filter_shape(self) -> tuple[int, ...]:
        """Of a filter, as an image: (size, size), with channels if there are several."""
        size, c = self.layout().size, self._n_channels
        return (size, size) if c == 1 else (size, size, c)

    @property
    def _n_features_out(self) -> int:
        down, across = self.layout().places(*self.image_shape_[:2])
        return down * across * self._n_units

    @property
    def _n_units(self) -> int:
        """Units at every place."""
        raise NotImplementedError

    def _block_width(self, event_shape: tuple[int, ...]) -> int:
        layout = self.layout()
        return math.prod(event_shape) * (2 + 3 * self._n_units // layout.grain**2)

    # ------------------------------------------------------------ samples

    def _drawn(
        self,
        n: int,
        shape: tuple[int, int] | None,
        start: Any,
        sampler: Any,
        n_steps: int,
        beta: float,
        rng: Any,
        seed: int,
    ) -> list[Array]:
        params, layout = self._params, self.layout()
        h, w = self.image_shape_[:2] if shape is None else (int(side) for side in shape)
        sides = [max(layout.torus(side), layout.torus(layout.size)) for side in (h, w)]
        states = self._torus_states(n, (h, w), sides, start, rng)
        size = max(1, PIXELS_AT_ONCE // math.prod(states.shape[1:]))
        parts = []
        for i, lo in enumerate(range(0, n, size)):
            rng = stream(seed, Purpose.SAMPLE, 1 + i, self._device)
            target = self.target(params, beta=beta)
            chains = states[lo : lo + size]
            run = sampler.run(target, chains, n_steps, rng, verbose=bool(self.verbose))
            parts.append(self._shown_images(self.tori(params, run.x)[:, :h, :w]))
        return parts

    def _torus_states(
        self, n: int, shape: tuple[int, int], sides: list[int], start: Any, rng: Any
    ) -> Array:
        params = self._params
        if start is not None:
            x = self._finite(self._images(start, "start", n, shape), "start")
            pad = [(0, 0), (0, sides[0] - shape[0]), (0, sides[1] - shape[1]), (0, 0)]
            return self.chain_states(params, mirrored(x, pad))
        kept = self._state.carry.get("chain/x")
        if kept is not None and list(kept.shape[1:3]) == sides:
            return kept[namespace(kept).arange(n) % len(kept)]
        kept = self._state.carry.get("chain/h")
        layout = self.layout()
        if kept is not None and [side * layout.grain for side in kept.shape[1:3]] == sides:
            h = kept[namespace(kept).arange(n) % len(kept)]
            return self.sample_visible(params, h, rng)
        return self.first_states(params, (n, *sides, self._n_channels), rng)

    # ------------------------------------------------------------ images with an edge

    def _edged(self, x: Array, known: Array) -> tuple[Array, Array]:
        """Images and what is known of them, put into the next larger ones that windows fit into;
        what lies beyond is unknown, and begins as the mirror image."""
        h, w = x.shape[1:3]
        sides = self.layout().image(h, w)
        top, left = (sides[0] - h) // 2, (sides[1] - w) // 2
        pad = [(0, 0), (top, sides[0] - h - top), (left, sides[1] - w - left), (0, 0)]
        xp = namespace(x)
        grown = xp.zeros((len(x), *sides, x.shape[3]), bool)
        grown[:, top : top + h, left : left + w] = known
        return mirrored(x, pad), grown
