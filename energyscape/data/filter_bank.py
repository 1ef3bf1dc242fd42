"""Filters of patches, slid over whole images: a stage that a model of patches learned.

    y(n, i, j, k) = f_k(patch of x(n) at (i, j))

where f is the encoder of a sparse model, g tanh(Wx + b) in the first hierarchies (Kavukcuoglu et
al., 2008; Jarrett et al., 2009). The way back is that of a code: Σ_k y_k d_k at every place, and
the mean where patches overlap.

References
----------
Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2008). Fast inference in sparse coding algorithms with
applications to object recognition. CBLL-TR-2008-12-01, arXiv:1010.3467.
Jarrett, K., Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2009). What is the best multi-stage
architecture for object recognition? ICCV. Section 3.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape import io
from energyscape.backend import (
    Array,
    Purpose,
    device_of,
    draw_seed,
    is_gpu_array,
    namespace,
    stream,
    to_device,
)
from energyscape.convolution import overlap_add, pair, windows
from energyscape.data.patches import PatchExtractor, n_channels, varied
from energyscape.data.random_filters import GIVEN, as_like
from energyscape.data.stages import Stage
from energyscape.errors import CapabilityError
from energyscape.models.inputs import as_images
from energyscape.models.psd import PSD
from energyscape.models.stacks import fitted_model
from energyscape.registry import register
from energyscape.strips import WindowRows
from energyscape.verbs import Params, check_count

__all__ = ["FilterBank"]


@register
class FilterBank(Stage):
    """Maps of the codes of all patches, by the encoder of a sparse model that is fitted to some.

    Parameters
    ----------
    model : model with an encoder, optional
        `PSD`, `LISTA` or `RandomFilters`, of which a clone is fitted to patches as rows. A `PSD` or
        `LISTA` that is fitted already comes in ``sklearn.frozen.FrozenEstimator(model)``. Default:
        ``PSD(32)``.
    size : int or (int, int), default 7
        Of a patch.
    n_inputs : int, optional
        Maps that a group of filters sees, drawn at random from all. Default: all.
    n_groups : int, default 1
        Groups of filters, each with inputs, a clone of the model and a seed of its own, which are
        put side by side: ``n_groups`` times as many maps as the model has codes.
    n_patches : int, default 100_000
        Random patches to fit to.
    flat : float in [0, 1), default 0
        Patches whose variance is at most this share of the mean one are left out, as by
        `PatchExtractor`; 0 leaves out constant ones.
    random_state : int, None, RandomState or Generator
        Of places and inputs, and of models that have none of their own.

    Attributes
    ----------
    models_ : list of fitted models
        One for each group.
    connections_ : integer array, shape (n_groups, n_inputs)
        The maps that each group sees.
    filters_ : array, shape (n_maps, h, w, channels)
        Atoms as images: what a map at 1 leads back to; 0 in maps that it is not connected to.
    n_flat_ : int
        Patches that were left out, over all groups.
    image_shape_ : tuple of int
    seed_ : int

    Examples
    --------
    >>> from energyscape.data import FilterBank, LocalContrastNormalize, load_digits
    >>> from energyscape.models import PSD
    >>> from energyscape.trainers import EnergyLoss
    >>> images = load_digits()[0].reshape(-1, 8, 8)
    >>> bank = FilterBank(PSD(12, trainer=EnergyLoss(n_epochs=1)), 3, n_patches=500, random_state=0)
    >>> bank.fit_transform(LocalContrastNormalize().fit_transform(images)).shape
    (1797, 6, 6, 12)
    """

    models_: list[Any]
    connections_: np.ndarray
    n_flat_: int
    seed_: int
    switched = False

    def __init__(
        self,
        model: Any = None,
        size: int | tuple[int, int] = 7,
        n_inputs: int | None = None,
        n_groups: int = 1,
        n_patches: int = 100_000,
        flat: float = 0.0,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.size = size
        self.n_inputs = n_inputs
        self.n_groups = n_groups
        self.n_patches = n_patches
        self.flat = flat
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Fit a clone of ``model`` to random patches, for every group.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds no images, patches do not fit into them, or all are flat.
        CapabilityError
            If the model has no encoder that can be slid over images.
        """
        rows = as_images(self, X)
        shape = tuple(rows.event_shape)
        self.check_maps(shape)
        model, seed = self._checked_model(), draw_seed(self.random_state)
        size, channels = pair("size", self.size), n_channels(shape)
        cut = PatchExtractor(size, self.n_patches, random_state=seed)
        patches = cut.fit_transform(rows.X).reshape(self.n_patches, -1, channels)
        connections = self._drawn_connections(channels, seed)
        models, flat = [], 0
        for i, inputs in enumerate(connections):
            part = _chosen(patches, inputs, 2).reshape(self.n_patches, -1)
            kept = varied(part, self.flat, "FilterBank")
            if not len(kept):
                raise ValueError(
                    f"FilterBank found no patch of {size[0]}×{size[1]} that varies, of "
                    f"{self.n_patches}: the maps are constant"
                )
            flat += self.n_patches - len(kept)
            models.append(fitted_model(model, kept, seed + i))
        self.image_shape_, self.seed_, self.n_flat_ = shape, seed, flat
        self.models_, self.connections_ = models, connections
        return self

    def check_maps(self, shape: tuple[int, ...]) -> None:
        size, channels = pair("FilterBank.size", self.size), n_channels(shape)
        for name in ("n_groups", "n_patches"):
            check_count(f"FilterBank.{name}", getattr(self, name))
        if not 0 <= self.flat < 1:
            raise ValueError(f"FilterBank.flat must lie in [0, 1), got {self.flat!r}")
        if size[0] > shape[0] or size[1] > shape[1]:
            raise ValueError(
                f"FilterBank.size: filters of {size[0]}×{size[1]} do not fit into images of "
                f"{shape[0]}×{shape[1]}"
            )
        if self.n_inputs is not None:
            check_count("FilterBank.n_inputs", self.n_inputs)
            if self.n_inputs > channels:
                raise ValueError(
                    f"FilterBank.n_inputs asks for {self.n_inputs} maps, there are {channels}"
                )

    def _checked_model(self) -> Any:
        model = PSD(32) if self.model is None else self.model
        inner = getattr(model, "estimator", model)  # of a FrozenEstimator
        if not hasattr(inner, "chosen_encoder"):
            raise CapabilityError(
                "FilterBank slides an encoder over images: it needs a model that has one, such as "
                f"PSD, LISTA or RandomFilters, and {type(inner).__name__} has none. PatchFeatures "
                "takes any model of patches"
            )
        return model

    def _drawn_connections(self, channels: int, seed: int) -> np.ndarray:
        count = channels if self.n_inputs is None else self.n_inputs
        rng = stream(seed, Purpose.INIT)
        drawn = [np.sort(rng.permutation(channels)[:count]) for _ in range(self.n_groups)]
        return np.array(drawn, np.int64)

    # ------------------------------------------------------------ up and down

    def trainable(self) -> Params:
        return {
            f"{name}{i}": value
            for i, model in enumerate(self.models_, 1)
            for name, value in _encoder_arrays(model).items()
        }

    def feasible(self, params: Params) -> Params:
        found: Params = {}
        for i, model in enumerate(self.models_, 1):
            own = model.chosen_encoder().feasible(self._of(model, i, params))
            found |= {f"{name}{i}": value for name, value in own.items()}
        return found

    def units(self, params: Params, x: Array) -> dict[str, float]:
        """Root mean squares of the arrays themselves; of the responses Wx, where biases add to
        them."""
        found: dict[str, float] = {}
        for i, (model, inputs) in enumerate(self._groups(), 1):
            own = {name: params[f"{name}{i}"] for name in model.chosen_encoder().names}
            size = {name: _rms(value) for name, value in own.items()}
            if "c" in own:
                size["c"] = _rms(self._rows(x, inputs) @ own["W"])
            found |= {f"{name}{i}": value for name, value in size.items()}
        return found

    def forward(self, params: Params, x: Array) -> tuple[Array, Any]:
        parts, caches = [], []
        places = self.shape_out(x.shape[1:])[:2]
        for i, (model, inputs) in enumerate(self._groups(), 1):
            encoder, own = model.chosen_encoder(), self._of(model, i, params)
            h, cache = encoder.forward(own, self._rows(x, inputs), model.positive)
            parts.append(h.reshape(len(x), *places, -1))
            caches.append((own, cache))
        maps = parts[0] if len(parts) == 1 else namespace(x).concatenate(parts, axis=3)
        return maps, (x.shape, caches)

    def backward(
        self, params: Params, cache: Any, dy: Array, need_dx: bool = True
    ) -> tuple[Params, Array]:
        (n, h, w, c), caches = cache
        xp, size = namespace(dy), pair("size", self.size)
        dx = xp.zeros((n, h, w, c), dy.dtype) if need_dx else None
        grads: Params = {}
        ends = np.cumsum([len(model.components_) for model in self.models_])
        for i, (model, inputs) in enumerate(self._groups(), 1):
            own, kept = caches[i - 1]
            k = len(model.components_)
            dh = dy[:, :, :, ends[i - 1] - k : ends[i - 1]].reshape(-1, k)
            encoder = model.chosen_encoder()
            found, drows = encoder.backward(own, kept, dh, need_dx)
            grads |= {f"{name}{i}": found[name] for name in encoder.names}
            if need_dx:
                part = overlap_add(
                    drows.reshape(n, -1, own["D"].shape[0]), size, (n, h, w, len(inputs))
                )
                _add(dx, part, inputs)
        return grads, dx

    def invert(self, y: Array, *switches: Array) -> Array:
        xp, size = namespace(y), pair("size", self.size)
        shape = (*self.image_shape_, 1)[:3]
        one = xp.ones((1, math.prod(y.shape[1:3]), size[0] * size[1]), y.dtype)
        cover = overlap_add(one, size, (1, *shape[:2], 1))
        sums, count = xp.zeros((len(y), *shape), y.dtype), xp.zeros((1, *shape), y.dtype)
        start = 0
        for model, inputs in self._groups():
            k = len(model.components_)
            atoms = as_like(y, model.components_)
            rows = y[:, :, :, start : start + k].reshape(-1, k) @ atoms
            rows = rows.reshape(len(y), -1, atoms.shape[1])
            _add(sums, overlap_add(rows, size, (len(y), *shape[:2], len(inputs))), inputs)
            _add(count, xp.repeat(cover, len(inputs), axis=3), inputs)
            start += k
        return sums / xp.maximum(count, 1)

    def shape_out(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        fh, fw = pair("size", self.size)
        maps = sum(len(model.components_) for model in self.models_)
        return shape[0] - fh + 1, shape[1] - fw + 1, maps

    def row_numbers(self, shape: tuple[int, ...]) -> int:
        down, across, maps = self.shape_out(shape)
        fh, fw = pair("size", self.size)
        return down * across * (fh * fw * self.connections_.shape[1] + 4 * maps)

    def _groups(self) -> Any:
        return zip(self.models_, self.connections_, strict=True)

    def _of(self, model: Any, i: int, params: Params) -> Params:
        """All that the encoder of group i computes with: ``params``, and what stays."""
        moved = {name: params[f"{name}{i}"] for name in model.chosen_encoder().names}
        like = next(iter(moved.values()))
        return {key: as_like(like, v) for key, v in model.params_.items() if key in GIVEN} | moved

    def _rows(self, x: Array, inputs: np.ndarray) -> Any:
        """All patches of some maps as rows of a matrix."""
        some, size = _chosen(x, inputs, 3), pair("size", self.size)
        if not is_gpu_array(x):
            return WindowRows(some, size)
        found = windows(some, size)
        return found.reshape(-1, math.prod(found.shape[3:]))

    # ------------------------------------------------------------ attributes and files

    @property
    def filters_(self) -> Any:
        """Atoms as images, shape (n_maps, h, w, channels); container of ``fit``'s X."""
        if not hasattr(self, "models_"):
            raise AttributeError("FilterBank has no filters_ before fit")
        size, channels = pair("size", self.size), n_channels(self.image_shape_)
        parts = []
        for model, inputs in self._groups():
            atoms = model.components_
            out = namespace(atoms).zeros((len(atoms), *size, channels), atoms.dtype)
            _add(out, atoms.reshape(len(atoms), *size, len(inputs)), inputs)
            parts.append(out)
        return namespace(parts[0]).concatenate(parts)

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments, the fitted models included."""
        check_is_fitted(self)
        described, arrays = [], {"connections": self.connections_}
        for i, model in enumerate(self.models_):
            meta, own = io.describe(model)
            described.append(meta)
            arrays |= {f"models/{i}/{key}": value for key, value in own.items()}
        fitted = {
            "image_shape": list(self.image_shape_),
            "seed": self.seed_,
            "n_flat": self.n_flat_,
            "models": described,
        }
        return fitted, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        self.models_ = [
            io.restore(each, io.under(arrays, f"models/{i}/"))
            for i, each in enumerate(meta["models"])
        ]
        self.connections_ = arrays["connections"]
        self.image_shape_ = tuple(int(v) for v in meta["image_shape"])
        self.seed_, self.n_flat_ = int(meta["seed"]), int(meta["n_flat"])


def _encoder_arrays(model: Any) -> Params:
    params = model.params_
    return {name: params[name] for name in model.chosen_encoder().names}


def _chosen(x: Array, inputs: np.ndarray, axis: int) -> Array:
    """Some maps of ``x``; ``x`` itself if they are all."""
    if len(inputs) == x.shape[axis]:
        return x
    return namespace(x).take(x, to_device(inputs, device_of(x)), axis=axis)


def _add(out: Array, part: Array, inputs: np.ndarray) -> None:
    """``out[..., inputs] += part`` in place."""
    if len(inputs) == out.shape[3]:
        out += part
    else:
        out[:, :, :, to_device(inputs, device_of(out))] += part


def _rms(value: Array) -> float:
    """Root mean square; 1 where all is 0."""
    square = float((value * value).mean(dtype=np.float64))
    return math.sqrt(square) if square > 0 else 1.0
