"""Restricted Boltzmann machine over binary visible units.

RBM (Smolensky, 1986; Hinton, 2002)
    E(x, h) = -b'x - c'h - x'Wh
    F(x)    = -b'x - Σ_j softplus(c_j + (x'W)_j)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from energyscape.backend import Array, is_gpu_array, namespace
from energyscape.kernels import matmul, sigmoid
from energyscape.layers import Affine, Sigmoid
from energyscape.models.binary_visible import BinaryVisible
from energyscape.models.bipartite import BipartitePass, bipartite_shapes
from energyscape.registry import register
from energyscape.verbs import Param, Params

# Elements of hidden units that flips are worked on at once: what stays in a cache of the CPU, and
# what keeps a GPU busy.
_FLIPPED, _ON_GPU = 1 << 18, 1 << 26


class RBMPass(BipartitePass):
    """The pass, with a quick way to flip single bits."""

    def flips(
        self, bits: Array, slope: Callable[[Array], Array] | None = None
    ) -> tuple[Array, Params]:
        """As `Pass.flips`: a flip of bit d moves the field by ±W_d, and costs no product. Each
        unit's softplus is compared with its own before, so that no large energies are subtracted.
        """
        xp, x, W, field = namespace(self.x), self.x, self.params["W"], self.field
        size = max(1, (_ON_GPU if is_gpu_array(x) else _FLIPPED) // field.size)
        before, differences = xp.empty_like(field), list[Array]()
        _softplus(field.copy(), before)
        # Kept: new memory for every block would take longer than the arithmetic.
        room = xp.empty((2, min(size, len(bits)), *field.shape), x.dtype)
        share, pulled = xp.zeros_like(field), xp.zeros(len(x), x.dtype)
        grads = {"W": xp.zeros_like(W), "b": xp.zeros_like(self.params["b"])}
        for lo in range(0, len(bits), size):
            part = bits[lo : lo + size]
            sign = 1 - 2 * x[:, part].T  # (bits, n)
            moved, after = room[:, : len(part)]
            xp.multiply(sign[:, :, None], W[part][:, None], out=moved)
            moved += field
            _softplus(moved, after)
            change = xp.subtract(after, before, out=moved).sum(axis=2).astype(np.float64)
            change += sign * self.params["b"][part][:, None]
            differences.append(change.T)
            if slope is None:
                continue
            weights = slope(change).astype(x.dtype)
            off = xp.exp(xp.negative(after, out=after), out=after)  # 1 - σ of the moved field
            share += xp.einsum("dn,dnk->nk", weights, off)
            pulled += weights.sum(axis=0)
            weights *= sign
            total = weights.sum(axis=1)
            grads["W"][part] = total[:, None] - xp.matmul(weights[:, None], off)[:, 0]
            grads["b"][part] = total
        found = xp.concatenate(differences, axis=1)
        if slope is None:
            return found, {}
        rest = pulled[:, None] * xp.exp(-before)
        rest -= share
        grads["W"] += x.T @ rest
        return found, grads | {"c": rest.sum(axis=0)}


def _softplus(a: Array, out: Array) -> None:
    """log(1 + e^a) to the last place of 1, into ``out``; ``a`` is used up."""
    xp = namespace(a)
    xp.abs(a, out=out)
    xp.negative(out, out=out)
    xp.exp(out, out=out)
    out += 1
    xp.log(out, out=out)
    out += xp.maximum(a, 0, out=a)


@register
class RBM(BinaryVisible):
    """Restricted Boltzmann machine with binary visible and hidden units.

    Rows in [0, 1] are read as probabilities or as bits; for grey images give the trainer
    ``batch_transform=Binarize()``, which draws fresh bits each epoch.

    Parameters
    ----------
    n_components : int, default 256
        Hidden units.
    centered : bool, default True
        Train on centred units: steadier, and as good on data with bits flipped. The attributes
        show the plain parameters either way.
    trainer : Trainer, optional
        Default: ``PCD()``.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
        Where to compute; "auto" follows the data.
    verbose : int, default 0
        Progress on stderr where not 0.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Weights W'.
    intercept_hidden_, intercept_visible_ : arrays, shape (n_components,) and (n_features,)
        Biases c and b.
    params_ : dict
        ``W`` (n_features, n_components), ``b``, ``c`` and the offsets ``mean_v``, ``mean_h``.
    log_partition_, log_partition_interval_, log_partition_ess_ : float, (float, float), float
        log Z, exact up to 20 units on the smaller side, and how far to trust it.
    history_ : dict of lists
    n_iter_, n_features_in_, seed_ : int
    trainer_ : Trainer

    References
    ----------
    Hinton, G. E. (2002). Training products of experts by minimizing contrastive divergence.
    Melchior, J., Fischer, A., Wiskott, L. (2016). How to center deep Boltzmann machines.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import RBM
    >>> X, _ = load_digits()
    >>> RBM(n_components=16, random_state=0).fit_transform(X).shape
    (1797, 16)
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        centered: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.centered = centered
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """b at the data's log-odds, small W, c so that hidden units are on half of the time."""
        xp, n = namespace(x), len(x)
        mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        p = xp.clip((mean * n + 0.5) / (n + 1), 0.5 / (n + 1), 1 - 0.5 / (n + 1))
        spread = xp.maximum(p * (1 - p), 0).sum()
        W = rng.normal((x.shape[1], self.n_components), x.dtype)
        W *= (0.1 / xp.sqrt(spread)).astype(x.dtype)
        return {
            "W": W,
            "b": xp.log(p / (1 - p)).astype(x.dtype),
            "c": -(mean @ W),
            "mean_v": mean,
            "mean_h": xp.full(self.n_components, 0.5, x.dtype),
        }

    def param_specs(self) -> dict[str, Param]:
        return {
            "W": Param(decay=True),
            "b": Param(),
            "c": Param(),
            "mean_v": Param(trainable=False),
            "mean_h": Param(trainable=False),
        }

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        return bipartite_shapes(n_features, self.n_components)

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> RBMPass:
        """One product x'W, and all that follows from it."""
        return RBMPass(self, params, x, beta, base)

    def scaled(self, params: Params, x: Array) -> Array:
        return x

    def grad_from(self, params: Params, x: Array, hidden: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(x_i)/∂θ = -Σ_i w_i (x_i p_i', x_i, p_i) with p = p(h = 1|x)."""
        pull = -weights
        h = hidden * pull[:, None]
        return {"W": matmul(x.T, h), "b": pull @ x, "c": h.sum(axis=0)}

    def affine_layers(self, params: Params) -> list[Affine]:
        """One layer: p(h = 1|x), and the mean of x given h."""
        W, f = params["W"], Sigmoid()
        return [Affine(W, params["c"], f, W.T, params["b"], f)]

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of x given hidden activities, shape (n, n_features)."""
        field = self.visible_field(params, h)
        return sigmoid(field, out=field)

    def visible_product(self, params: Params, h: Array) -> Array:
        return matmul(h, params["W"].T)

    # ------------------------------------------------------------ fitted

    def pseudo_log_likelihood(self, X: Any) -> Any:
        """Σ_i log p(x_i | all other x) of each row, exact, over all its bits.

        A cheap monitor for runs of one model on one data set. It grows with the number of
        features, sees nothing of Z, and must not choose between models: that is `score_samples`.

        Parameters
        ----------
        X : array, shape (n, n_features)
            Bits; other values are taken at their word, a flip being x → 1 - x.

        Returns
        -------
        array, shape (n,), float64, in nats
        """
        return self._map(X, lambda params, x: self.forward(params, x).pseudo_log_likelihood())
