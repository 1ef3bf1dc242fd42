"""Gated Markov random fields of whole images, whose filters are the same everywhere.

`TiledMPoT` has tiles with a few offsets along the diagonal, each with filters of its own;
`FieldsOfExperts` one set of filters at every place, or given ones: with the differences of
neighbouring pixels it is the pair-wise Markov random field. The equations are those of
`gated_field`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.models.gated_field import GatedField
from energyscape.models.layouts import Sliding, Tiles, check_tiles
from energyscape.registry import register
from energyscape.verbs import Params, check_count

__all__ = ["FieldsOfExperts", "TiledMPoT"]


@register
class TiledMPoT(GatedField):
    """Mean and Student's t units on tiles that cover an image several times over.

    Trained on crops, it samples, paints in and denoises images of any size.

    Parameters
    ----------
    n_components : int, default 64
        Covariance filters of each of the tile // stride sets.
    n_mean_components : int, default 16
        Mean units of each set; 0 leaves them out (a tiled PoT).
    tile : int, default 8
        Side of a tile, in pixels. Training images have sides of a multiple of it plus
        tile - stride, so that all sets have as many tiles.
    stride : int, default 2
        Offset from a set to the next, along the diagonal; divides ``tile``.
    sigma : float > 0, default 2
        Deviation of x where no constraint holds, in multiples of that of the data.
    equal_norms : bool, default True
        Keep all covariance filters at their common mean length.
    trainer : Trainer, optional
        Default: ``PCD(batch_size=32, n_chains=32, learning_rate=0.1, averaging=0.1)``, whose
        chains are tori that `HMC` moves by 20 leapfrog steps.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (sets * n_components, tile * tile * channels)
        Covariance filters as they see pixels.
    patterns_ : array, of that shape
        What windows are like where a filter answers: their covariance times the filter, up to a
        factor.
    mean_components_ : array, shape (sets * n_mean_components, tile * tile * channels)
        S⁻¹W, as pixels: by what a mean unit moves its window, up to a factor, where no constraint
        holds.
    image_shape_ : tuple
        Of the training images.
    params_ : dict
        ``C``, ``a`` (γ = e^a), ``W`` and ``c`` by set; the buffers ``S``, ``mean_v`` (by channel),
        ``deviation``, ``log_var`` (log σ²), ``spectrum`` (of the coordinates that chains move in)
        and ``windows`` (of a set in a training image).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Ranzato, M., Mnih, V., Hinton, G. E. (2010). Generating more realistic images using gated MRF's.
    Kivinen, J. J., Williams, C. K. I. (2012). Multiple texture Boltzmann machines.
    """

    def __init__(
        self,
        n_components: int = 64,
        *,
        n_mean_components: int = 16,
        tile: int = 8,
        stride: int = 2,
        sigma: float = 2.0,
        equal_norms: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.n_mean_components = n_mean_components
        self.tile = tile
        self.stride = stride
        self.sigma = sigma
        self.equal_norms = equal_norms
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def check_settings(self) -> None:
        super().check_settings()
        check_tiles(self.tile, self.stride)

    def layout(self) -> Tiles:
        return Tiles(int(self.tile), int(self.stride))

    @property
    def mean_components_(self) -> Any:
        self._need_fit("mean_components_")
        if not self.n_mean_components:
            raise AttributeError("n_mean_components=0 leaves no mean_components_")
        S, W = self._params["S"], self._params["W"]
        moved = namespace(S).linalg.solve(S, W.transpose(1, 0, 2).reshape(len(S), -1))
        return self._fitted(moved.T)


@register
class FieldsOfExperts(GatedField):
    """Student's t experts on the outputs of filters at every place of an image.

    Parameters
    ----------
    n_components : int, default 24
        Filters.
    size : int, default 5
        Side of a filter, in pixels. Training images have sides of at least 2 size - 1.
    filters : array, shape (n_components, size, size) or (n_components, size, size, channels), \
optional
        Filters that keep their shape; only their lengths and γ are learned. Differences of
        neighbours, [[-1, 1], [0, 0]] and [[-1, 0], [1, 0]], make the pair-wise Markov random field.
    sigma : float > 0, default 10
        Deviation of x where no constraint holds, in multiples of that of the data.
    equal_norms : bool, default True
        Keep all filters at their common mean length; given ones keep their own.
    trainer : Trainer, optional
        Default: ``PCD(batch_size=32, n_chains=32, learning_rate=0.1, averaging=0.1)``, whose
        chains are tori that `HMC` moves by 20 leapfrog steps.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, size * size * channels)
        Filters as they see pixels.
    patterns_ : array, of that shape
        As for `TiledMPoT`.
    image_shape_, params_, history_, n_iter_, n_features_in_, seed_, trainer_
        As for `TiledMPoT`, with one set and without mean units.

    References
    ----------
    Roth, S., Black, M. J. (2009). Fields of experts.
    Schmidt, U., Gao, Q., Roth, S. (2010). A generative perspective on MRFs in low-level vision.
    """

    def __init__(
        self,
        n_components: int = 24,
        *,
        size: int = 5,
        filters: Any = None,
        sigma: float = 10.0,
        equal_norms: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.size = size
        self.filters = filters
        self.sigma = sigma
        self.equal_norms = equal_norms
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def check_settings(self) -> None:
        super().check_settings()
        check_count("size", self.size)
        if self.filters is None:
            return
        shape, wanted = np.shape(self.filters), (self.n_components, self.size, self.size)
        if len(shape) not in (3, 4) or shape[:3] != wanted:
            raise ValueError(
                f"filters must have shape {wanted}, (n_components, size, size), with channels if "
                f"the images have any, got {shape}"
            )
        values = np.asarray(self.filters, np.float64).reshape(shape[0], -1)
        if not np.isfinite(values).all() or not (abs(values).max(axis=1) > 0).all():
            raise ValueError("filters must be finite, and none of them zero")

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        super().check_rows(n, event_shape)
        shape = np.shape(self.filters)
        if self.filters is not None and (*shape, 1)[3] != event_shape[2]:
            raise ValueError(
                f"filters of shape {shape} are for images of {(*shape, 1)[3]} channel(s), X has "
                f"{event_shape[2]}"
            )

    def layout(self) -> Sliding:
        return Sliding(int(self.size))

    def first_filters(self, white: Array, noise: Array) -> Array:
        if self.filters is None:
            return super().first_filters(white, noise)
        xp = namespace(white)
        seen = xp.asarray(np.asarray(self.filters, np.float64).reshape(len(self.filters), -1))
        return super().first_filters(white, xp.linalg.solve(white, seen.T)[None])

    def precondition(self, params: Params, grads: Params) -> None:
        if self.filters is not None:  # filters move along themselves
            C, slope = params["C"], grads["C"]
            along = (C * slope).sum(axis=1, keepdims=True)
            grads["C"] = C * (along / (C * C).sum(axis=1, keepdims=True))
        super().precondition(params, grads)

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        if self.filters is None:
            super().project(params, sums, rng)
