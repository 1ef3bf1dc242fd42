"""What models of a convolutional dictionary share: images in, maps of codes out, one M step.

    F(x) = min_z ½ Σ m ⊙ (x - D z)² + λ|z|₁ + what a subclass adds,    D z = Σ_k z_k * f_k

Averages and gradients are taken per place of a map, so that steps have the units of a dictionary of
patches whatever the size of the images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, Purpose, is_gpu_array, namespace, stream
from energyscape.convolution import pair
from energyscape.models.conv_filters import (
    first_filters,
    laid_out,
    unit_filters,
    wasted_filters,
    worst_windows,
)
from energyscape.models.dictionary import given_atoms
from energyscape.models.image_face import ImageFace
from energyscape.models.inputs import as_images
from energyscape.models.sparse_base import SparseModel, squared_codes
from energyscape.penalties import L1
from energyscape.solvers.conv_admm import conv_admm
from energyscape.solvers.conv_descent import conv_descent
from energyscape.solvers.conv_dictionary import ConvDictionary
from energyscape.solvers.conv_fista import conv_fista
from energyscape.solvers.encode import Codes
from energyscape.solvers.laid_filters import BOUNDARIES, longer
from energyscape.solvers.local_dictionary import LocalDictionary
from energyscape.sources import joined
from energyscape.tiles import tiled, untiled
from energyscape.verbs import Params, as_column

_SPARSITY = 0.2
# Before training: images that say how large codes are, by their pixels, and how exactly.
_SOME_PIXELS = 1 << 15
_ROUGHLY: dict[str, Any] = {"tol": 1e-2, "max_iter": 50}
_SPARE_PIXELS, _MOST_SPARE = 1 << 16, 256  # of images kept for filters that nobody uses
# Codes that are worked on together.
_CODES_AT_ONCE, _ON_A_GPU = 1 << 22, 1 << 27
# Images of fewer pixels are solved by FISTA. Windows of natural images as 16 or 64 filters of 9×9,
# to a gap of 1e-3: ADMM takes 0.2 to 0.8 of the time at 16×16, 0.3 to 0.6 at 32×32.
_SMALL = 100
_SOLVERS = {"fista": conv_fista, "admm": conv_admm, "greedy": conv_descent}


class ConvSparseModel(ImageFace, SparseModel):
    """Base of them: subclasses write `infer`, and what they add to the energy."""

    algorithms = ("auto", *_SOLVERS)
    # Each takes maps.
    monitored_rows, decoded_rows = 50, 10

    filter_size: Any
    boundary: str
    mask: bool
    # Filters are each place's own, and the same again a period on; 1 is convolution. Codes are then
    # maps of tiles (`tiles.tiled`).
    period = 1

    # ------------------------------------------------------------ settings

    def check_settings(self) -> None:
        super().check_settings()
        name = type(self).__name__
        pair(f"{name}.filter_size", self.filter_size)
        if self.boundary not in BOUNDARIES:
            known = ", ".join(map(repr, BOUNDARIES))
            raise ValueError(f"{name}.boundary must be one of {known}, got {self.boundary!r}")
        if self.algorithm == "greedy" and (self.boundary == "valid" or self._masked):
            raise ValueError(
                f"{name}: algorithm='greedy' needs maps without a border; use 'auto', or "
                "boundary='circular', or boundary='full' with mask=False"
            )

    def _check_penalty(self, name: str) -> None:
        if self.penalty is not None and not isinstance(self.penalty, L1):
            raise ValueError(
                f"{name}: codes of whole images are solved for L1(λ) alone, got {self.penalty!r}"
            )
        if self.penalty is not None and not 0 < self.penalty.strength < math.inf:
            raise ValueError(f"{name}: λ must be > 0, got {self.penalty!r}")

    @property
    def _masked(self) -> bool:
        return bool(self.mask) and self.boundary == "full"

    # ------------------------------------------------------------ shapes

    @property
    def _size(self) -> tuple[int, int]:
        return pair("filter_size", self.filter_size)

    def _shape(self, channels: int) -> tuple[int, int, int, int]:
        """(k, fh, fw, c)."""
        return (self.period**2 * int(self.n_components), *self._size, channels)  # type: ignore[arg-type]

    def _sides(self, maps: tuple[int, ...]) -> tuple[int, int]:
        """Of the images that have such maps."""
        P = self.period
        h, w = (P * m + self._more(f) for m, f in zip(maps, self._size, strict=True))
        return h, w

    def _maps(self, sides: tuple[int, ...]) -> tuple[int, int]:
        """Sides of the maps of such images."""
        P = self.period
        h, w = ((s - self._more(f)) // P for s, f in zip(sides, self._size, strict=True))
        return h, w

    def _more(self, size: int) -> int:
        """By how much an image is longer than its places."""
        return longer(self.boundary, size)

    def dictionary_at(
        self, params: Params, sides: tuple[int, int]
    ) -> ConvDictionary | LocalDictionary:
        """The dictionary of images of these sides."""
        return laid_out(params["D"], sides, self.boundary, self._masked, self.period)

    def _parts(self, x: Array, sides: tuple[int, int]) -> Iterator[slice]:
        """Images (or their maps) that are worked on together."""
        most = _ON_A_GPU if is_gpu_array(x) else _CODES_AT_ONCE
        step = max(1, most // (math.prod(self._maps(sides)) * self._shape(1)[0]))
        return (slice(lo, lo + step) for lo in range(0, max(1, len(x)), step))

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """Filters from random windows (or those given), and λ from the windows' λ_max."""
        xp, (h, w, c) = namespace(x), x.shape[1:]
        D = first_filters(x, self._shape(c), rng) if self.dictionary is None else self._given(x)
        params, some = {"D": D}, x[: max(1, _SOME_PIXELS // (h * w))]
        lam = xp.asarray(1.0)
        if self.penalty is not None:
            lam = xp.asarray(float(self.penalty.strength))
        else:
            dictionary = self.dictionary_at(params, (h, w))
            q = dictionary.analyze(dictionary.weighted(some))
            most = xp.median(xp.abs(q).max(axis=3).astype(np.float64))
            most *= _SPARSITY if self.sparsity is None else self.sparsity
            lam = xp.where(most > 0, most, 1.0)
        params["lam"] = lam.astype(x.dtype)
        usage = squared_codes(self.solve_codes(params, some, **_ROUGHLY).h) / len(some)
        spare = min(_MOST_SPARE, max(1, _SPARE_PIXELS // (h * w)))
        return params | {
            "usage": xp.where((usage > 0).any(), usage, 1).astype(x.dtype),
            "spare": x[xp.arange(spare) % len(x)],
            "replaced": xp.zeros((), np.int64),
            "late": xp.zeros((), x.dtype),
        }

    def _given(self, x: Array) -> Array:
        """The user's filters, of norm 1."""
        shape, name = self._shape(x.shape[3]), f"{type(self).__name__}.dictionary"
        grey = shape[3] == 1 and np.ndim(self.dictionary) == 3
        axes = "n_components, height, width" + ("" if grey else ", channels")
        given = given_atoms(self.dictionary, shape[:3] if grey else shape, axes, name)
        return unit_filters(namespace(x).asarray(given.reshape(shape), dtype=x.dtype))

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        h, w = self.image_shape_[:2]
        spare = min(_MOST_SPARE, max(1, _SPARE_PIXELS // (h * w)))
        shape = self._shape(self._n_channels)
        shapes = {"D": shape, "usage": shape[:1], "spare": (spare, h, w, shape[3])}
        return shapes | dict.fromkeys(("lam", "replaced", "late"), ())

    def event_shape(self, params: Params) -> None:  # type: ignore[override]
        """Images of any size."""

    def feasible(self, params: Params) -> Params:
        """A copy with filters of norm 1."""
        return params | {"D": unit_filters(params["D"])}

    # ------------------------------------------------------------ verbs

    def solve_codes(
        self,
        params: Params,
        x: Array,
        start: Array = None,
        alpha: float = 0.0,
        prediction: Array = None,
        tol: float | None = None,
        max_iter: int | None = None,
    ) -> Codes:
        """Maps of least ½ Σ m ⊙ (x - D z)² + λ|z|₁ + (α/2)|z - prediction|², or with what `pools`
        says in place of λ|z|₁; by the model's settings."""
        xp, sides = namespace(x), x.shape[1:3]
        dictionary, lam = self.dictionary_at(params, sides), float(params["lam"])
        settings: dict[str, Any] = {
            "positive": self.positive,
            "tol": self.tol if tol is None else tol,
            "max_iter": self.max_iter if max_iter is None else max_iter,
        }
        pools = self.pools(params)
        if pools is not None:
            settings["penalty"] = pools
        # What pulls every code makes the problem strongly convex, where FISTA is quick.
        solve, found = conv_fista if alpha else self._solver(sides), []
        for rows in self._parts(x, sides):
            begin = None if start is None else start[rows]
            if alpha:
                settings |= {"alpha": alpha, "prediction": prediction[rows]}
            codes = solve(dictionary, x[rows], lam, start=begin, **settings)
            steps = xp.full(len(codes.z), codes.n_iter, np.int64)
            found.append(Codes(codes.z, codes.gap, steps))
        parts = ([getattr(part, key) for part in found] for key in ("h", "gap", "n_iter"))
        return found[0] if len(found) == 1 else Codes(*map(xp.concatenate, parts))

    def _solver(self, sides: tuple[int, int]) -> Any:
        if self.algorithm != "auto":
            return _SOLVERS[self.algorithm]
        return conv_fista if sides[0] * sides[1] < _SMALL else conv_admm

    def pools(self, params: Params) -> Any:
        """A penalty of maps that codes pay in place of λ|z|₁, if any."""
        return None

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, z), shape (n,), float64."""
        dictionary = self.dictionary_at(params, x.shape[1:3])
        rest = x - dictionary.synthesize(h)
        return self.energy_of(params, rest, dictionary.weighted(rest), h)

    def energy_of(self, params: Params, rest: Array, weighted: Array, h: Array) -> Array:
        """½ Σ m ⊙ rest² and what the codes pay, shape (n,), float64."""
        squares = (rest * weighted).sum(axis=(1, 2, 3), dtype=np.float64)
        pools = self.pools(params)
        if pools is not None:
            return 0.5 * squares + pools.code_value(h)
        return 0.5 * squares + self.code_penalty(params).code_value(h.reshape(len(h), -1))

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(x), shape (n,), float64; the maps of few images are kept at a time."""
        parts = [self.forward(params, x[p]).energy() for p in self._parts(x, x.shape[1:3])]
        return namespace(x).concatenate(parts)

    def joint_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂E(x_i, z_i)/∂θ at fixed codes."""
        if not self.moves_dictionary:
            return {}
        dictionary = self.dictionary_at(params, x.shape[1:3])
        rest = dictionary.weighted(x - dictionary.synthesize(h)) * -as_column(weights, x)
        return {"D": dictionary.slopes(rest, h)}

    def joint_input_grad(self, params: Params, x: Array, h: Array) -> Array:
        """∂E/∂x = m ⊙ (x - D z) at fixed codes, the shape of x."""
        dictionary = self.dictionary_at(params, x.shape[1:3])
        return dictionary.weighted(x - dictionary.synthesize(h))

    def decode(self, params: Params, h: Array) -> Array:
        """D z, shape (n, h, w, c)."""
        return self.dictionary_at(params, self._sides(h.shape[1:3])).synthesize(h)

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin: sparse mixtures of filters, and noise."""
        return self._start_images(params, n, params["spare"].shape[1:3], rng)

    def _start_images(self, params: Params, n: int, sides: tuple[int, ...], rng: Any) -> Array:
        xp, dtype = namespace(params["D"]), params["D"].dtype
        shape = (n, *self._maps(sides), len(params["D"]))
        signs = xp.sign(rng.uniform(shape, np.float64) - 0.5)
        h = (signs * rng.exponential(shape) * xp.sqrt(0.5 * params["usage"])).astype(dtype)
        x = self.decode(params, h)
        return x + rng.normal(x.shape, dtype)

    # ------------------------------------------------------------ training

    def wasted_filters(self, D: Array, usage: Array) -> Array:
        """Numbers of filters to replace."""
        return wasted_filters(D, usage)

    def renewed(self, params: Params, usage: Array) -> tuple[Array, Array]:
        """The filters with the worst explained windows of spare images in place of those that are
        wasted, and which these were."""
        D, spare = params["D"], params["spare"]
        which = self.wasted_filters(D, usage)
        if not len(which):
            return D, which
        rest = spare - self.decode(params, self.infer(params, spare).h)
        found = worst_windows(rest, D.shape, len(which))
        which = which[: len(found)]
        D = D.copy()
        D[which] = found
        return D, which

    def precondition(self, params: Params, grads: Params) -> None:
        """Per place of a training image, and for each filter in units of its mean squared code, in
        place."""
        places = math.prod(self._maps(params["spare"].shape[1:3]))
        for name in grads:
            if "/" not in name:
                grads[name] /= places
        if "D" in grads:
            usage = params["usage"]
            least = usage.dtype.type(0.1) * usage.mean()
            grads["D"] /= namespace(usage).maximum(usage, least)[:, None, None, None]

    # ------------------------------------------------------------ the face

    def check_sides(self, sides: tuple[int, ...]) -> None:
        """Raise ValueError for images that are smaller than the filters, or have a number of places
        that the model cannot take."""
        size = self._size
        if sides[0] < size[0] or sides[1] < size[1]:
            raise ValueError(
                f"{type(self).__name__} has filters of {size[0]}×{size[1]}, X has smaller images, "
                f"of {sides[0]}×{sides[1]}; take larger ones, or a smaller filter_size"
            )
        self._check_places(sides)

    def _check_places(self, sides: tuple[int, ...]) -> None:
        """Raise ValueError where such images have a number of places that the model cannot take."""

    def transform(self, X: Any) -> Any:
        """The best codes of each image, as maps.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of any size.

        Returns
        -------
        array, shape (n, h', w', n_components), container of X, dtype of the fit
            h' = h - fh + 1, h + fh - 1 or h where the boundary is "full", "valid" or "circular".

        Warns
        -----
        ConvergenceWarning
            If images did not reach ``tol``; `dual_gap` says which.
        """
        check_is_fitted(self)
        X = joined(X, 3)
        flat = super().transform(X)
        maps = self._maps(np.shape(X)[1:3])
        return untiled(flat.reshape(len(flat), *maps, -1), self.period)

    def _codes_and_gaps(self, params: Params, x: Array) -> Array:
        codes = self.infer(params, x)
        flat = codes.h.reshape(len(x), -1)
        return namespace(x).concatenate([flat, codes.gap[:, None].astype(x.dtype)], axis=1)

    def reconstruct(self, X: Any) -> Any:
        """D z at the codes of `transform`, the shape of X."""
        found = self._map(X, lambda params, x: self.decode(params, self.encode(params, x)))
        return self._shown_images(found)

    def inverse_transform(self, H: Any) -> Any:
        """D z of maps of codes, shape (n, h', w', n_components); shape (n, h, w) or (n, h, w,
        channels)."""
        check_is_fitted(self)
        rows = as_images(self, H)
        k, P, shape = int(self.n_components), self.period, rows.event_shape  # type: ignore[arg-type]
        least = [f - self._more(f) for f in self._size]
        fits = len(shape) == 3 and shape[2] == k
        if not (fits and all(s >= m and s % P == 0 for s, m in zip(shape[:2], least, strict=True))):
            tiles = f", in tiles of {P}×{P}" if P > 1 else ""
            raise ValueError(
                f"H has shape {tuple(rows.X.shape)}; {type(self).__name__} decodes maps of shape "
                f"(n, h', w', {k}), of at least {least[0]}×{least[1]} places{tiles}"
            )
        found = self._in_blocks(rows, lambda params, h: self.decode(params, tiled(h, P)))
        return self._shown_images(found)

    def _block_width(self, event_shape: tuple[int, ...]) -> int:
        return math.prod(event_shape) + 4 * math.prod(event_shape[:2]) * int(self.n_components)  # type: ignore[arg-type]

    @property
    def _n_features_out(self) -> int:
        return len(self._state.params["D"]) // self.period**2

    @property
    def filter_shape(self) -> tuple[int, ...]:
        """Of a filter, as an image: (height, width), with channels if there are several."""
        return self._size if self._n_channels == 1 else (*self._size, self._n_channels)

    @property
    def filters_(self) -> Any:
        self._need_fit("filters_")
        D = self._params["D"]
        return self._fitted(D.reshape(len(D), *self.filter_shape))

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        D = self._params["D"]
        return self._fitted(D.reshape(len(D), -1))

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
        params, kept = self._params, self._state.carry.get("chain/x")
        h, w = self.image_shape_[:2] if shape is None else (int(side) for side in shape)
        self._check_places((h, w))
        if start is not None:
            x = self._finite(self._images(start, "start", n, (h, w)), "start")
        elif kept is not None and kept.shape[1:3] == (h, w):
            x = kept[namespace(kept).arange(n) % len(kept)]
        else:
            x = self._start_images(params, n, (h, w), rng)
        rng = stream(seed, Purpose.SAMPLE, 1, self._device)
        target = self.target(params, beta=beta)
        run = sampler.run(target, x, n_steps, rng, verbose=bool(self.verbose))
        return [self._shown_images(run.x)]
