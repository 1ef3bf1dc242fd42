"""What and where: codes of clips that are products of what stays and of where it is.

    E(x, c, l) = Σ_t [½|x_t - Dz_t|² + (α/2)|z_t - f(x_t)|² + λ|c|₁ + λ|l_t|₁],
    z_t = (P'c) ⊙ l_t,   c, l >= 0,   |d_j| = 1,   F(x) = E where descent in c, l rests

What, c, is one for all frames of a clip; where, l_t, is free in each and sparse; they multiply in
simple units z (Gregor and LeCun, 2010, who learn the weights of both: here P says which pool a
simple unit is in, and where is one factor for each simple unit). One λ is enough: two with the same
product give the same z, in other units of c and l.

For the best c both norms together are 2λT Σ_k √(Σ_t Σ_{j∈k} z_tj / T), where pools do not overlap:
a pool that is on anyway explains the next frame for less, by whichever of its atoms. So atoms of a
pool become what follows one another in time.

References
----------
Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
local receptive fields. arXiv:1006.0448.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.models.base import EnergyModel
from energyscape.models.inputs import as_clips
from energyscape.models.psd import PSD
from energyscape.models.sparse_base import CodePass
from energyscape.pools import best_swap, pooling
from energyscape.registry import register
from energyscape.solvers.encode import Codes
from energyscape.solvers.product import (
    equal_what,
    factors_of,
    next_what,
    product_codes,
    simple_codes,
)
from energyscape.sources import Rows
from energyscape.verbs import Param, Params

_FEATURES = ("what", "both")
# Clips that say what follows what at first.
_SOME, _ROUGHLY = 500, dict[str, Any](tol=1e-2, max_iter=100)
_FORGET = 0.01  # weight of an update in what follows what
_GAIN = 0.1  # least gain of two atoms that change places, in cosines of codes
_SETTLED = 20  # steps of c given the encoder's z; the first is exact where pools do not overlap


class ClipPass(CodePass):
    """The codes of clips, and what follows from them."""

    def stats(self) -> Params:
        z = simple_codes(self.codes.h, self.params["P"])
        late = (self.codes.gap > self.model.tol).sum()
        return {
            "mean/usage": (z * z).mean(axis=1).sum(axis=0),
            "mean/late": namespace(self.x).asarray(late, dtype=self.x.dtype),
            "mean/follow": _follow(z),
        }


@register
class WhatWhere(PSD):
    """Codes of clips: what is there all the time, and where it is in each frame.

    Rows are clips (n, t, n_features), e.g. from `ClipExtractor`; centre or whiten their images
    first. Frames of a clip are taken in any order: time says which belong together, no more.

    Parameters
    ----------
    n_components : int, optional
        Atoms m. Default: as many as features.
    pools : int or array, shape (n_what, m), default 4
        Atoms of a pool, which follow one another, or how much each atom is in each pool, >= 0
        (`torus_pools`).
    learn_pools : bool, default True
        Whether atoms change places in the pools, two at an update, where then those share pools
        that follow one another, rather than going together.
    encoder : encoder, optional
        Guesses z of a frame; any of `PSD`'s. Default: ``ShrinkEncoder()``. What is the best given
        that guess, so that a pool's is the root of its mean activity.
    alpha : float, default 1
        α >= 0: how far z is pulled to the encoder's.
    features : {"what", "both"}, default "what"
        What ``transform`` gives: c, of clips of any length; or c and the l_t one after the other,
        of clips as long as in ``fit``, which ``inverse_transform`` takes back.
    exact : bool, default False
        Whether ``transform`` gives inferred codes; by default it gives the encoder's.
    sparsity : float, default 0.5
        At which share of the median over frames of max_j |d_j'x| one code that pays alone comes on,
        for an atom orthogonal to others, at the first dictionary: s = 3 (λ/2)^⅔.
    dictionary, max_iter, replace
        As for `SparseCoding`.
    tol : float, default 1e-4
        Change of a step, relative to the largest code that one step from 0 gives, at which a clip
        is done.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=20)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Atoms, of norm 1.
    pools_ : array, shape (n_what, n_components)
        P.
    strength_ : float
        λ, in units of the data to the power of 3/2; c and l are in those of its root.
    n_replaced_
        As for `SparseCoding`.
    params_ : dict
        Those of `PSD`, and the buffers ``P``, ``frames`` (t of the training) and ``follow`` (which
        atoms are on in other frames of a clip rather than in the same).
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`; n_features_in_ is that of a frame.

    Notes
    -----
    The energy is not convex in codes: F is that of the point where descent rests, from codes of
    equal weights on. It jumps where descent changes its valley, so that exp(-F) is no density that
    chains could follow; new clips come from `generate`.

    References
    ----------
    Gregor, K., LeCun, Y. (2010). Emergence of complex-like cells in a temporal product network with
    local receptive fields. arXiv:1006.0448.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import WhatWhere
    >>> rng = np.random.default_rng(0)
    >>> X = np.abs(rng.laplace(size=(200, 1, 8))) * (rng.random((200, 3, 8)) < 0.3)
    >>> model = WhatWhere(12, pools=3, random_state=0).fit(X)
    >>> what, where = model.factors(X)
    >>> what.shape, where.shape, model.generate(what, where[:, ::-1]).shape
    ((200, 4), (200, 3, 12), (200, 3, 8))
    """

    takes_clips = True
    # Settings of its kin that are fixed here.
    joint, train_dictionary, positive = True, True, True
    penalty, algorithm = None, "auto"

    def __init__(
        self,
        n_components: int | None = None,
        *,
        pools: Any = 4,
        learn_pools: bool = True,
        encoder: Any = None,
        alpha: float = 1.0,
        features: str = "what",
        exact: bool = False,
        sparsity: float = 0.5,
        dictionary: Any = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.pools = pools
        self.learn_pools = learn_pools
        self.encoder = encoder
        self.alpha = alpha
        self.features = features
        self.exact = exact
        self.sparsity = sparsity
        self.dictionary = dictionary
        self.tol = tol
        self.max_iter = max_iter
        self.replace = replace
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    @property
    def proper(self) -> bool:
        """Whether chains have a density to go to: F jumps."""
        return False

    def check_settings(self) -> None:
        super().check_settings()
        if self.features not in _FEATURES:
            raise ValueError(f"WhatWhere.features must be 'what' or 'both', got {self.features!r}")
        if self.n_components is not None:
            pooling(self.pools, self.n_components)
        if self.learn_pools and getattr(self.trainer, "averaging", None) is not None:
            raise ValueError(
                "WhatWhere.learn_pools lets atoms change pools, which a trainer's averaging would "
                "mix: set averaging=None, or learn_pools=False"
            )

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """Those of frames, and λ at which a lone code comes on where `PSD`'s does."""
        xp, m = namespace(x), self._atoms(x.shape[2])
        params = super().init_params(_frames(x), rng)
        params |= {
            "lam": 2 * (params["lam"] / 3) ** 1.5,
            "P": xp.array(pooling(self.pools, m), dtype=x.dtype),  # a copy, which swaps write to
            "frames": xp.asarray(x.shape[1]),
        }
        some = x[:_SOME]
        found = product_codes(params["D"], some, params["P"], float(params["lam"]), **_ROUGHLY)
        z = simple_codes(found.h, params["P"])
        return params | {"follow": _follow(z) / x.dtype.type(len(some))}

    def param_specs(self) -> dict[str, Param]:
        buffers = ("P", "frames", "follow")
        return super().param_specs() | {k: Param(trainable=False) for k in buffers}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        m = self._atoms(n_features)
        own = {"P": pooling(self.pools, m).shape, "frames": (), "follow": (m, m)}
        return super().param_shapes(n_features) | own

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one clip of the training."""
        return int(params["frames"]), params["D"].shape[0]

    # ------------------------------------------------------------ verbs

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> ClipPass:
        """The codes at clips ``x``, and all that follows from them."""
        EnergyModel.forward(self, params, x, beta, base)  # refuses other temperatures
        return ClipPass(self, params, x)

    def guess(self, params: Params, x: Array) -> Array:
        """c and the l_t that the encoder's z makes, shape (n, n_what + t·m)."""
        z, P = self._guessed(params, x), params["P"]
        c = equal_what(z, P, float(params["lam"]))
        for _ in range(_SETTLED):
            c = next_what(z, c, P)
        return factors_of(z, c, P)

    def _guessed(self, params: Params, x: Array) -> Array:
        return super().guess(params, _frames(x)).reshape(*x.shape[:2], -1)

    def infer(self, params: Params, x: Array, start: Array = None) -> Codes:
        """c and the l_t of each clip, one after the other, where descent rests."""
        return self._descended(params, x, self.pull(), start)

    def best_codes(self, params: Params, x: Array) -> Codes:
        """Codes of the energy without the encoder, from its guess on."""
        return self._descended(params, x, 0.0)

    def fixed_codes(self, params: Params, x: Array) -> Array:
        """None: where descent rests depends on where it begins."""
        return None

    def _descended(self, params: Params, x: Array, alpha: float, start: Array = None) -> Codes:
        return product_codes(
            params["D"],
            x,
            params["P"],
            float(params["lam"]),
            alpha=alpha,
            prediction=self._guessed(params, x),
            start=start,
            tol=self.tol,
            max_iter=self.max_iter,
        )

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, c, l), shape (n,), float64."""
        xp, z, t = namespace(x), simple_codes(h, params["P"]), x.shape[1]
        rest, away = x - z @ params["D"].T, z - self._guessed(params, x)
        squares, far = (xp.einsum("ntj,ntj->n", v, v, dtype=np.float64) for v in (rest, away))
        k = len(params["P"])
        paid = t * h[:, :k].sum(axis=1, dtype=np.float64) + h[:, k:].sum(axis=1, dtype=np.float64)
        return 0.5 * squares + 0.5 * self.alpha * far + float(params["lam"]) * paid

    def joint_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂E(x_i, c_i, l_i)/∂θ at fixed codes."""
        return super().joint_grad(params, *self._by_frame(params, x, h, weights))

    def prediction_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂/∂θ Σ_t ½|z_it - f(x_it)|² in the encoder; 0 in the dictionary."""
        return super().prediction_grad(params, *self._by_frame(params, x, h, weights))

    def joint_input_grad(self, params: Params, x: Array, h: Array) -> Array:
        """∂E/∂x at fixed codes, the shape of x."""
        z = _frames(simple_codes(h, params["P"]))
        return super().joint_input_grad(params, _frames(x), z).reshape(x.shape)

    def _by_frame(
        self, params: Params, x: Array, h: Array, weights: Array
    ) -> tuple[Array, Array, Array]:
        """Frames, their simple units and weights, as the same of `PSD`."""
        z = _frames(simple_codes(h, params["P"]))
        return _frames(x), z, namespace(x).repeat(weights, x.shape[1])

    def encode(self, params: Params, x: Array) -> Array:
        """The encoder's codes, or inferred ones if ``exact``: those that ``features`` names."""
        return self._chosen(params, self._codes(params, x))

    def _codes(self, params: Params, x: Array) -> Array:
        return self.infer(params, x).h if self.exact else self.guess(params, x)

    def _chosen(self, params: Params, h: Array) -> Array:
        k, m = params["P"].shape
        if self.features == "what":
            return h[:, :k]
        t, length = int(params["frames"]), (h.shape[1] - k) // m
        if length != t:
            raise ValueError(
                f"WhatWhere with features='both' was fitted to clips of {t} frames, X has clips of "
                f"{length}; features='what' and factors(X) take any length"
            )
        return h

    @available_if(lambda self: self.features == "both")
    def decode(self, params: Params, h: Array) -> Array:
        """Clips of codes (c, l_1, ..., l_t), shape (n, t, n_features)."""
        return self._clips(params, h)

    def _clips(self, params: Params, h: Array) -> Array:
        return simple_codes(h, params["P"]) @ params["D"].T

    # ------------------------------------------------------------ training

    def unexplained(self, params: Params, x: Array) -> Array:
        """What the codes leave of frames, each of them a clip."""
        clips = x[:, None]
        return (clips - self._clips(params, self.infer(params, clips).h))[:, 0]

    def precondition(self, params: Params, grads: Params) -> None:
        """Each array in units of the curvature that the energy has in it, in place; a clip is as
        many rows as it has frames."""
        for name in grads.keys() & {"D", *self.chosen_encoder().names}:
            grads[name] /= params["frames"].astype(grads[name].dtype)
        super().precondition(params, grads)

    def project(self, params: Params, sums: Params, rng: Any) -> None:
        """Besides wasted atoms: running means, and two atoms that change places, in place."""
        super().project(params, sums, rng)
        if not (self.learn_pools and "mean/follow" in sums):
            return
        xp, follow = namespace(params["P"]), params["follow"]
        follow += follow.dtype.type(_FORGET) * (sums["mean/follow"] - follow)
        size = xp.sqrt(xp.where(params["usage"] > 0, params["usage"], 1))
        params["P"][...] = best_swap(params["P"], follow / xp.outer(size, size), _GAIN)

    # ------------------------------------------------------------ the face

    def read(self, X: Any, reset: bool) -> Rows:
        """Checked clips (n, t, n_features) of any length."""
        return as_clips(self, X, reset)

    def transform(self, X: Any) -> Any:
        """What is in each clip, or ``features="both"``.

        Parameters
        ----------
        X : array, shape (n, t, n_features)

        Returns
        -------
        array, shape (n, n_what) or (n, n_what + t·n_components), container of X, dtype of the fit

        Warns
        -----
        ConvergenceWarning
            If inferred codes did not reach ``tol``; `dual_gap` says which.
        """
        return super().transform(X) if self.exact else self._map(X, self.encode)

    def _codes_and_gaps(self, params: Params, x: Array) -> Array:
        found = self.infer(params, x)
        gap = found.gap[:, None].astype(x.dtype)
        return namespace(x).concatenate([self._chosen(params, found.h), gap], axis=1)

    def factors(self, X: Any) -> tuple[Any, Any]:
        """What and where of each clip, by the encoder, or inferred if ``exact``.

        Parameters
        ----------
        X : array, shape (n, t, n_features)

        Returns
        -------
        what : array, shape (n, n_what)
        where : array, shape (n, t, n_components)
            Container of X, dtype of the fit.
        """
        h, k = self._map(X, self._codes), self._n_what
        return h[:, :k], h[:, k:].reshape(len(h), -1, super()._n_features_out)

    def generate(self, what: Any, where: Any) -> Any:
        """Clips of codes: hold what, move where.

        Parameters
        ----------
        what : array, shape (n, n_what)
        where : array, shape (n, t, n_components)
            For any t >= 1.

        Returns
        -------
        array, shape (n, t, n_features), container of the codes, dtype of the fit
        """
        check_is_fitted(self)
        what, where = (v if is_gpu_array(v) else np.asarray(v) for v in (what, where))
        n, m = what.shape[0], super()._n_features_out
        wanted = n >= 1 and where.ndim == 3 and where.shape[1] >= 1
        if not wanted or what.shape != (n, self._n_what) or where.shape[::2] != (n, m):
            raise ValueError(
                f"what and where have shapes {what.shape} and {where.shape}; WhatWhere generates "
                f"from (n, {self._n_what}) and (n, t, {m}), as `factors` gives them"
            )
        h = namespace(what).concatenate([what, where.reshape(n, -1)], axis=1)
        return self._in_blocks(Rows(h), self._clips)

    def reconstruct(self, X: Any) -> Any:
        """The clips of the codes of clips, shape (n, t, n_features)."""
        return self._map(X, lambda params, x: self._clips(params, self._codes(params, x)))

    def dual_gap(self, X: Any) -> Any:
        """The change of the last step of inference, relative to the largest code that one step
        from 0 gives: no duality gap, of which an energy that is not convex has none.

        Parameters
        ----------
        X : array, shape (n, t, n_features)

        Returns
        -------
        array, shape (n,), dtype of the fit
        """
        return super().dual_gap(X)

    @property
    def pools_(self) -> Any:
        self._need_fit("pools_")
        return self._fitted(self._params["P"])

    @property
    def _n_what(self) -> int:
        return len(self._state.params["P"])

    @property
    def _n_features_out(self) -> int:
        if self.features == "what":
            return self._n_what
        return self._n_what + int(self._state.params["frames"]) * super()._n_features_out

    def _block_width(self, event_shape: tuple[int, ...]) -> int:
        frames = -(-math.prod(event_shape) // self.n_features_in_)
        return math.prod(event_shape) + 4 * frames * super()._n_features_out

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


def _frames(x: Array) -> Array:
    """Frames of all clips as rows."""
    return x.reshape(-1, x.shape[2])


def _follow(z: Array) -> Array:
    """How much more atoms are on in other frames of a clip than in the same, shape (m, m): products
    of codes, means over frames, summed over clips. Atoms that a pool makes cheap are so in all."""
    t, flat, whole = z.shape[1], _frames(z), z.sum(axis=1)
    same = flat.T @ flat
    if t == 1:
        return same * 0
    return ((whole.T @ whole - same) / (t - 1) - same) / t
