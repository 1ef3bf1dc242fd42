"""Restricted Boltzmann machine of maps of binary units, connected within windows.

    E(x, h) = -Σ_windows [b'w/q + c'h + w'Wh]
    F(x)    = -Σ_windows [b'w/q + Σ_j softplus(c_j + W_j'w)]

with w the units of all maps in a window and q the number of windows that a place lies in, so that
on a torus every place has the bias b. Each set of windows, shifted along the diagonal, has weights
of its own (Ranzato et al., 2011). Training is centred as in `bipartite`, the offset of b being the
mean over the places within a window.

References
----------
Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
applications to recognition.
Melchior, J., Fischer, A., Wiskott, L. (2016). How to center deep Boltzmann machines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid, softplus_sum
from energyscape.models.bipartite import follow_means
from energyscape.models.from_pass import UnitsFromPass
from energyscape.models.image_model import ImageModel
from energyscape.models.layouts import Tiles, check_tiles
from energyscape.models.window_pass import WindowPass, flat, times
from energyscape.registry import register
from energyscape.samplers import Gibbs
from energyscape.trainers import PCD
from energyscape.verbs import Param, Params, is_one

__all__ = ["TiledRBM"]


class MachinePass(WindowPass):
    """Everything that one product of all windows with the weights gives."""

    def fields(self) -> dict[str, Array]:
        """Of every window: w and the hidden units' field a."""
        layout = self.model.layout()
        w = layout.cut(layout.wrap(self.x) if self.torus else self.x)
        a = times(w, self.params["W"])
        a += self.params["c"][:, None, None]
        return {"w": w, "a": a}

    def energy(self) -> Array:
        w, a = self.known["w"], self.times_beta(self.known["a"])
        seen = w.sum(axis=(0, 2), dtype=np.float64)
        own = -(seen @ self.model.window_bias(self.params).astype(np.float64))
        rows = softplus_sum(a.reshape(-1, a.shape[3])).reshape(a.shape[:3])
        return own * (1.0 if is_one(self.beta) else self.beta) - rows.sum(axis=(0, 2))

    def hidden(self) -> Array:
        """p(h = 1 | x) as maps (n, down, across, units)."""
        return sigmoid(self._tempered())

    def sample_hidden(self, rng: Any) -> Array:
        return rng.bernoulli_logit(self._tempered())

    def _tempered(self) -> Array:
        return self.to_maps(self.times_beta(self.known["a"]))

    def grad(self, weights: Array) -> Params:
        w, p = self.known["w"], sigmoid(self.times_beta(self.known["a"]))
        p *= weights[:, None, None]
        model, seen = self.model, weights @ w.sum(axis=(0, 2))
        return {
            "W": -(flat(w).transpose(0, 2, 1) @ flat(p)),
            "b": -model.by_channel(seen) / w.dtype.type(model.layout().coverage),
            "c": -p.sum(axis=(1, 2)),
        }

    def stats(self) -> Params:
        p = sigmoid(self.known["a"])
        return {
            "mean/v": self.x.mean(axis=(1, 2)).sum(axis=0),
            "mean/h": p.mean(axis=2).sum(axis=1),
        }


@register
class TiledRBM(UnitsFromPass, ImageModel):
    """Binary hidden units on windows of maps of binary units, such as `TiledMPoT.maps` gives.

    Parameters
    ----------
    n_components : int, default 128
        Hidden units of each of the tile // stride sets.
    tile : int, default 2
        Side of a window, in places of the maps. Training maps have sides of a multiple of it plus
        tile - stride, so that all sets have as many windows.
    stride : int, default 1
        Offset from a set to the next, along the diagonal; divides ``tile``.
    trainer : Trainer, optional
        Default: ``PCD(batch_size=32, n_chains=32)``, whose chains are tori moved by `Gibbs`.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (sets * n_components, tile * tile * channels)
        Weights of each hidden unit.
    image_shape_ : tuple
        Of the training maps.
    params_ : dict
        ``W`` (sets, tile * tile * channels, n_components), ``c`` (sets, n_components), ``b`` by
        channel; the offsets ``mean_v``, ``mean_h`` and ``windows`` (of a set in a training map).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Ranzato, M., Susskind, J., Mnih, V., Hinton, G. E. (2011). On deep generative models with
    applications to recognition.
    """

    domain = "binary"
    codes = "unit"
    latents = "binary"

    def __init__(
        self,
        n_components: int = 128,
        *,
        tile: int = 2,
        stride: int = 1,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.tile = tile
        self.stride = stride
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """PCD on 32 images at a time."""
        return PCD(batch_size=32, n_chains=32)

    def default_sampler(self) -> Any:
        """Block Gibbs."""
        return Gibbs()

    def check_settings(self) -> None:
        super().check_settings()
        check_tiles(self.tile, self.stride)

    def layout(self) -> Tiles:
        return Tiles(int(self.tile), int(self.stride))

    @property
    def _n_units(self) -> int:
        return int(self._state.params["c"].size)

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """b at the data's log-odds, small W, c so that hidden units are on half of the time."""
        xp, layout, k = namespace(x), self.layout(), int(self.n_components)
        mean = x.mean(axis=(0, 1, 2), dtype=np.float64)
        p = xp.clip(mean, 1e-3, 1 - 1e-3)
        area = layout.size**2
        W = rng.normal((layout.sets, area * x.shape[3], k), x.dtype).astype(np.float64)
        W *= 0.1 / math.sqrt(area * float((p * (1 - p)).sum()))
        params = {
            "W": W,
            "b": xp.log(p / (1 - p)),
            "c": -(xp.tile(mean, area) @ W),
            "mean_v": mean,
            "mean_h": xp.full((layout.sets, k), 0.5),
            "windows": xp.full(1, float(math.prod(layout.places(*x.shape[1:3])))),
        }
        return {name: value.astype(x.dtype) for name, value in params.items()}

    def param_specs(self) -> dict[str, Param]:
        buffers = {key: Param(trainable=False) for key in ("mean_v", "mean_h", "windows")}
        return {"W": Param(decay=True), "b": Param(), "c": Param()} | buffers

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        layout, channels = self.layout(), self._n_channels
        units = (layout.sets, int(self.n_components))
        shapes: dict[str, tuple[int, ...]] = {"b": (channels,), "c": units}
        shapes |= {"mean_v": (channels,), "mean_h": units, "windows": (1,)}
        return shapes | {"W": (layout.sets, layout.size**2 * channels, units[1])}

    def window_bias(self, params: Params) -> Array:
        """b/q at every place of a window and channel, flat."""
        b = params["b"]
        return namespace(b).tile(b, self.layout().size ** 2) / b.dtype.type(self.layout().coverage)

    def by_channel(self, seen: Array) -> Array:
        """Values of a window, (…, tile · tile · channels), summed over its places."""
        return seen.reshape(*seen.shape[:-1], self.layout().size ** 2, -1).sum(axis=-2)

    # ------------------------------------------------------------ the centred step

    def coordinates(self, params: Params) -> Params:
        """b and c at the means of the data."""
        at_h, at_v = self._fields_at_means(params)
        return params | {"b": params["b"] + at_h, "c": params["c"] + at_v}

    def set_coordinates(self, params: Params, coordinates: Params) -> None:
        """The way back, with whatever W has become."""
        super().set_coordinates(params, coordinates)
        at_h, at_v = self._fields_at_means(params)
        params["b"] -= at_h
        params["c"] -= at_v

    def _fields_at_means(self, params: Params) -> tuple[Array, Array]:
        W = params["W"]
        pulled = (W @ params["mean_h"][:, :, None])[..., 0].sum(axis=0)
        area = pulled.dtype.type(self.layout().size ** 2)
        return self.by_channel(pulled) / area, self._mean_window(params) @ W

    def _mean_window(self, params: Params) -> Array:
        mean = params["mean_v"]
        return namespace(mean).tile(mean, self.layout().size ** 2)

    def precondition(self, params: Params, grads: Params) -> None:
        """∇ in plain parameters → ∇ in `coordinates`, for each window rather than map, in place; a
        bias, which all places share, takes the mean of what they ask for."""
        xp, area = namespace(params["W"]), self.layout().size ** 2
        for name in grads:
            grads[name] /= params["windows"]
        grads["b"] /= grads["b"].dtype.type(area)
        grads["W"] -= self._mean_window(params)[:, None] * grads["c"][:, None, :]
        grads["W"] -= xp.tile(grads["b"], area)[:, None] * params["mean_h"][:, None, :]

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Let the offsets follow the means of the data."""
        follow_means(params, sums)

    # ------------------------------------------------------------ verbs

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> MachinePass:
        """One product of all windows with the weights, and all that follows."""
        return MachinePass(self, params, x, beta)

    def on_torus(self, params: Params, x: Array, beta: Any = 1.0) -> MachinePass:
        return MachinePass(self, params, x, beta, torus=True)

    def given(self, params: Params, h: Array, rng: Any = None, beta: Any = 1.0) -> Array:
        """Rates on the torus given maps ``h`` of hidden units, or with ``rng`` a draw."""
        layout, (n, down, across) = self.layout(), h.shape[:3]
        sides = (side * layout.grain + layout.reach for side in (down, across))
        pulled = times(layout.from_maps(h), params["W"].transpose(0, 2, 1))
        field = layout.fold(layout.paste(pulled, (n, *sides, len(params["b"]))))
        field += params["b"]
        if not is_one(beta):
            field *= namespace(field).asarray(beta, field.dtype).reshape(-1, 1, 1, 1)
        return sigmoid(field, out=field) if rng is None else rng.bernoulli_logit(field, out=field)

    # ------------------------------------------------------------ coordinates of chains

    def chain_states(self, params: Params, torus: Array) -> Array:
        return torus

    def tori(self, params: Params, states: Array) -> Array:
        return states

    def first_states(self, params: Params, shape: tuple[int, ...], rng: Any) -> Array:
        """Independent bits at the rates of the data."""
        rates = namespace(params["b"]).zeros(shape, params["b"].dtype) + params["mean_v"]
        return rng.bernoulli(rates)

    # ------------------------------------------------------------ fitted

    @property
    def components_(self) -> Any:
        """Weights of each hidden unit, shape (sets · units, tile · tile · channels)."""
        self._need_fit("components_")
        W = self._params["W"].transpose(0, 2, 1)
        return self._fitted(W.reshape(-1, W.shape[2]))
