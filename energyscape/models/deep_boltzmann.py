"""Deep Boltzmann machine: layers of binary units, of which only neighbours are connected.

DeepBoltzmannMachine (Salakhutdinov and Hinton, 2009)
    E(v, h1, h2, …) = -b'v - Σ_l c_l'h_l - v'W1 h1 - h1'W2 h2 - h2'W3 h3 - …

Even layers y = (v, h2, …) meet odd layers (h1, h3, …) only, so that this is an RBM over y whose
weights come in blocks: Gibbs sampling alternates between the two sides, and with the odd layers
summed out F(y) = -b'y - Σ_j softplus(field_j(y)) is exact. F(v) is not, since h2, h4, … are left.
Rows v are *completed* to (v, μ) by mean field, and with q the factorial distribution of means μ

    F(v) <= E_q[E] - H(q) = F(v, μ) - H(μ).

Sweeps over odd and even layers lower this bound every time (each is exact given the other), with
no damping. Entropy has no parameters, so ∂F/∂θ at (v, μ) is the gradient of the bound where the
sweeps have come to rest: what data push down is F at the completed rows.

Training is centred from small weights (Montavon and Müller, 2012), or from an RBM: with the layers
above it uncoupled a deep machine has the RBM's density of v, from which it goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, Purpose, namespace, stream
from energyscape.kernels import sigmoid
from energyscape.layers import Affine, Sigmoid
from energyscape.models.binary_visible import BinaryVisible
from energyscape.models.bipartite import BipartitePass
from energyscape.models.layered import Layers
from energyscape.models.likelihood import LikelihoodBounds
from energyscape.models.rbm import RBM
from energyscape.registry import register
from energyscape.samplers import AIS
from energyscape.sources import Rows
from energyscape.verbs import Param, Params, check_count

_TINY = np.finfo(np.float64).tiny
_SHARED_RATE = 100.0  # of weights between hidden layers, times √(units below · units above)


class _CompletedPass(BipartitePass):
    """The pass at rows completed by mean field: its energy is the variational one."""

    def _visible_energies(self) -> tuple[Array, Array | None]:
        if not self._visible:
            own, at_base = self.model.visible_energies(self.params, self.x, self.base)
            hidden = self.x[:, self.params["W1"].shape[0] :]
            self._visible += [own - _entropy(hidden), at_base]
        return super()._visible_energies()


@register
class DeepBoltzmannMachine(BinaryVisible):
    """Deep Boltzmann machine with binary units.

    Rows in [0, 1] are read as probabilities or as bits; for grey images give the trainer
    ``batch_transform=Binarize()``. With one hidden layer it is an `RBM`.

    Parameters
    ----------
    hidden_layer_sizes : sequence of int, default (500, 1000)
        Units of each hidden layer, from the visible one upwards.
    centered : bool, default True
        Train on centred units (Montavon and Müller, 2012). The attributes show the plain
        parameters either way.
    n_mean_field : int, default 5
        Sweeps over the hidden layers that complete a row, which are most of an update's cost. The
        bound holds for any number, and is tighter the more there are.
    features : {"all", "last"}, default "all"
        What `transform` gives: mean-field activities of all hidden layers side by side, or of the
        last one.
    pretraining : Trainer, optional
        What trains an `RBM` of ``hidden_layer_sizes[0]`` units first, on the same rows, whose
        density is where the whole machine starts. Default: none, all layers learn together from
        small weights.
    trainer : Trainer, optional
        Default: ``PCD()``.
    random_state : int, RandomState, Generator or None
    device : {"auto", "cpu", "cuda", "cuda:i"}, default "auto"
        Where to compute; "auto" follows the data.
    verbose : int, default 0
        Progress on stderr where not 0.

    Attributes
    ----------
    components_ : array, shape (hidden_layer_sizes[0], n_features)
        Weights W1'.
    coefs_ : list of arrays
        Weights W1, W2, … between neighbouring layers, shape (units below, units above).
    intercepts_ : list of arrays
        Biases of the layers, the visible one first.
    params_ : dict
        ``W1``, ``W2``, …; biases ``b`` of even layers (visible, second hidden, …) and ``c`` of odd
        ones, side by side; offsets ``mean_v`` and ``mean_h`` of the two sides.
    log_partition_, log_partition_interval_, log_partition_ess_ : float, (float, float), float
        log Z, exact up to 20 units on the smaller side, and how far to trust it.
    history_ : dict of lists
    n_iter_, n_features_in_, seed_ : int
    trainer_ : Trainer

    Notes
    -----
    F(v) has no closed form. `energy` is the variational free energy, an upper bound of it, so that
    `score_samples` is a *lower bound* of the log-likelihood as far as log Z is exact.

    References
    ----------
    Salakhutdinov, R., Hinton, G. E. (2009). Deep Boltzmann machines.
    Montavon, G., Müller, K.-R. (2012). Deep Boltzmann machines and the centering trick.
    Melchior, J., Fischer, A., Wiskott, L. (2016). How to center deep Boltzmann machines.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import DeepBoltzmannMachine
    >>> from energyscape.trainers import PCD
    >>> X, _ = load_digits()
    >>> model = DeepBoltzmannMachine((32, 16), trainer=PCD(n_epochs=2), random_state=0)
    >>> model.fit_transform(X).shape
    (1797, 48)
    """

    def __init__(
        self,
        hidden_layer_sizes: Sequence[int] = (500, 1000),
        *,
        centered: bool = True,
        n_mean_field: int = 5,
        features: str = "all",
        pretraining: Any = None,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.centered = centered
        self.n_mean_field = n_mean_field
        self.features = features
        self.pretraining = pretraining
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def check_settings(self) -> None:
        sizes = self.hidden_layer_sizes
        if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not len(sizes):
            raise ValueError(
                f"hidden_layer_sizes must be a sequence of at least one integer, got {sizes!r}"
            )
        for size in sizes:
            check_count("every entry of hidden_layer_sizes", size)
        check_count("n_mean_field", self.n_mean_field)
        if self.features not in ("all", "last"):
            raise ValueError(f"features must be 'all' or 'last', got {self.features!r}")

    # ------------------------------------------------------------ verbs

    def init_params(self, x: Array, rng: Any) -> Params:
        """Small W; biases that put every field at the data's log-odds, or at 0 in hidden layers,
        where all other units are at their means."""
        xp, n = namespace(x), len(x)
        mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        p = xp.clip((mean * n + 0.5) / (n + 1), 0.5 / (n + 1), 1 - 0.5 / (n + 1))
        sizes = (len(mean), *map(int, self.hidden_layer_sizes))
        spread = xp.maximum(p * (1 - p), 0).sum()
        params: Params = {}
        for layer in range(1, len(sizes)):
            W = rng.normal((sizes[layer - 1], sizes[layer]), x.dtype)
            W *= (0.1 / xp.sqrt(spread)).astype(x.dtype)
            params[f"W{layer}"] = W
            spread = xp.full((), 0.25 * sizes[layer], np.float64)
        even = xp.full(sum(sizes[2::2]), 0.5, x.dtype)
        params["mean_v"] = xp.concatenate([mean, even])
        params["mean_h"] = xp.full(sum(sizes[1::2]), 0.5, x.dtype)
        at_h, at_v = self._fields_at_means(params)
        odds = xp.concatenate([xp.log(p / (1 - p)).astype(x.dtype), xp.zeros_like(even)])
        return params | {"b": odds - at_h, "c": -at_v}

    def first_params(self, rows: Rows, x: Array, rng: Any) -> Params:
        params = super().first_params(rows, x, rng)
        if self.pretraining is not None:
            self.take_up(params, self._pretrained(rows))
        return params

    def sharing_obstacle(self) -> str | None:
        if self.pretraining is None:
            return None
        return "its pretraining is a fit of its own; set pretraining=None"

    def _pretrained(self, rows: Rows) -> Params:
        """Parameters of an RBM of the first hidden layer, trained on the same rows."""
        rbm = RBM(
            int(self.hidden_layer_sizes[0]),
            centered=self.centered,
            trainer=self.pretraining,
            verbose=self.verbose,
        )
        trainer = rbm.chosen_trainer()
        rbm.n_features_in_ = self.n_features_in_
        rbm.seed_, rbm._device = self.seed_, self._device
        rbm.learn(trainer, rows)
        return rbm._params

    def take_up(self, params: Params, rbm: Params) -> None:
        """Put an RBM's layer into ``params``, in place; fields of the layers above it stay at 0
        where all units are at their means."""
        d, units = rbm["W"].shape
        params["W1"][:] = rbm["W"]
        params["mean_v"][:d], params["mean_h"][:units] = rbm["mean_v"], rbm["mean_h"]
        at_h, at_v = self._fields_at_means(params)
        params["b"][:], params["c"][:] = -at_h, -at_v
        params["b"][:d] = rbm["b"]
        params["c"][:units] = rbm["c"]
        if "W2" in params:
            params["c"][:units] -= params["W2"] @ params["mean_v"][d:][: params["W2"].shape[1]]

    def param_specs(self) -> dict[str, Param]:
        weights = {"W1": Param(decay=True)}
        for layer in range(2, len(self.hidden_layer_sizes) + 1):
            below, above = self.hidden_layer_sizes[layer - 2 : layer]
            # A mode that all units of two layers share grows with the root of their numbers. Where
            # it orders by itself before the data ask for it, both phases saturate and learning is
            # over (500-1000 on MNIST: at a rate of 0.1 after 250 updates, at 0.03 not at all).
            rate = min(1.0, _SHARED_RATE / math.sqrt(below * above))
            weights[f"W{layer}"] = Param(rate=rate, decay=True)
        buffers = {name: Param(trainable=False) for name in ("mean_v", "mean_h")}
        return weights | {"b": Param(), "c": Param()} | buffers

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        sizes = (n_features, *map(int, self.hidden_layer_sizes))
        even, odd = (sum(sizes[0::2]),), (sum(sizes[1::2]),)
        pairs = {f"W{n}": (sizes[n - 1], sizes[n]) for n in range(1, len(sizes))}
        return pairs | {"b": even, "c": odd, "mean_v": even, "mean_h": odd}

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one y: what chains move."""
        return tuple(params["b"].shape)

    def complete(self, params: Params, x: Array, rng: Any = None) -> Array:
        """Rows v with the other even layers filled in: y = (v, μ2, μ4, …).

        Parameters
        ----------
        params : dict of arrays
        x : array, shape (n, n_features), or (n, units of the even layers) to be left as it is
        rng : Stream, optional
            Draw bits at the mean-field rates instead of giving the rates.

        Returns
        -------
        array, shape (n, units of the even layers)
        """
        if x.shape[1] == len(params["b"]):
            return x
        layers = Layers(params)
        means = layers.mean_field({0: x}, self.n_mean_field)
        y = namespace(x).empty((len(x), len(params["b"])), x.dtype)
        for layer in range(0, layers.last + 1, 2):
            y[:, layers.places[layer]] = means[layer]
        if rng is not None:
            y[:, x.shape[1] :] = rng.bernoulli(y[:, x.shape[1] :])
        return y

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Params | None = None
    ) -> BipartitePass:
        """One product a block, and all that follows; rows v alone are completed first."""
        y = self.complete(params, x)
        kind = BipartitePass if y is x else _CompletedPass
        return kind(self, params, y, beta, base)

    def free_energy(self, params: Params, x: Array) -> Array:
        """F(y) of rows over all even layers, exact; for rows v its variational bound from above.

        Shape (n,), float64.
        """
        return super().free_energy(params, x)

    def hidden_product(self, params: Params, x: Array) -> Array:
        return Layers(params).fields(x, 1)

    def grad_from(self, params: Params, x: Array, hidden: Array, weights: Array) -> Params:
        """Σ_i w_i ∂F(y_i)/∂θ, with p of the odd side in ``hidden``."""
        h = hidden * -weights[:, None]
        return Layers(params).products(x, h) | {"b": -(weights @ x), "c": h.sum(axis=0)}

    def visible_product(self, params: Params, h: Array) -> Array:
        """What the odd layers send to the even ones."""
        return Layers(params).fields(h, 0)

    def encode(self, params: Params, x: Array) -> Array:
        """Mean-field activities of rows v, by ``features``; of rows over all even layers, the exact
        p(odd layers | y)."""
        passed = self.forward(params, x)
        if passed.x is x:
            return passed.hidden()
        layers = Layers(params).split(passed.x, passed.hidden())[1:]
        if self.features == "last":
            return layers[-1].copy()
        return namespace(x).concatenate(layers, axis=1)

    def decode(self, params: Params, h: Array) -> Array:
        """Mean of v given activities as `encode` gives them, shape (n, n_features).

        The first hidden layer is all that v depends on; from the last one alone it is the mean
        field of everything below.
        """
        d, units = params["W1"].shape
        if self.features == "last":
            last = len(self.hidden_layer_sizes)
            mean = Layers(params).mean_field({last: h}, self.n_mean_field)[0]
            return namespace(h).broadcast_to(mean, (len(h), d)).copy()
        field = h[:, :units] @ params["W1"].T
        field += params["b"][:d]
        return sigmoid(field, out=field)

    @available_if(lambda self: len(self.hidden_layer_sizes) == 2)
    def network_inputs(self, X: Any) -> Any:
        """Rows with the mean-field guess of the second layer: what the first layer of a classifier
        takes (Salakhutdinov and Hinton, 2009, figure 3)."""
        return self._map(X, self.complete)

    @available_if(lambda self: len(self.hidden_layer_sizes) == 2)
    def affine_layers(self, params: Params) -> list[Affine]:
        """h1 from v and the guess of h2, then h2 from h1: two layers, for `network_inputs`."""
        W1, W2, b, f = params["W1"], params["W2"], params["b"], Sigmoid()
        up, d = namespace(W1).concatenate([W1, W2.T]), len(W1)
        return [
            Affine(up, params["c"], f, up.T, b, f),
            Affine(W2, b[d:], f, W2.T, params["c"], f),
        ]

    # ------------------------------------------------------------ the centred step

    def _fields_at_means(self, params: Params) -> tuple[Array, Array]:
        layers = Layers(params)
        at_h = layers.fields(params["mean_h"][None], 0)[0]
        return at_h, layers.fields(params["mean_v"][None], 1)[0]

    def precondition(self, params: Params, grads: Params) -> None:
        """As in an RBM, block by block."""
        if not self.centered:
            return
        xp, layers = namespace(params["b"]), Layers(params)
        means = layers.split(params["mean_v"], params["mean_h"])
        slopes = layers.split(grads["b"], grads["c"])
        for n in range(1, len(means)):
            left = xp.stack([means[n - 1], slopes[n - 1]], axis=1)
            grads[f"W{n}"] -= left @ xp.stack([slopes[n], means[n]])

    # ------------------------------------------------------------ fitted

    def log_likelihood_bounds(
        self, X: Any, ais: AIS | None = None, random_state: Any = None
    ) -> LikelihoodBounds:
        """Mean log-likelihood of ``X`` from below; changes nothing in the model.

        ``low`` is as for an `RBM`, with the variational free energy in F's place and hidden layers
        drawn by mean field; it holds for the same thing, in expectation. ``high`` is infinite: the
        bound on F(v) has one side.

        Parameters
        ----------
        X : array, shape (n, n_features)
        ais : AIS, optional
            Chains and temperatures; default ``AIS()``.
        random_state : int, RandomState, Generator or None
            None uses the model's own.

        Returns
        -------
        LikelihoodBounds
            Unpacks as ``low, high``, in nats per row.
        """
        bounds = super().log_likelihood_bounds(X, ais, random_state)
        return dataclasses.replace(bounds, high=math.inf)

    def _some_rows(self, X: Any, n: int, seed: int) -> Array:
        # Draws, since E_q[p(v, h2)/q(h2)] = p(v) is what makes RAISE a bound of p(v).
        rng = stream(seed, Purpose.PARTITION, 4, self._device)
        return self.complete(self._params, super()._some_rows(X, n, seed), rng)

    def _start(self, n: int, start: Any, rng: Any) -> Array:
        return self.complete(self._params, super()._start(n, start, rng), rng)

    def _clamp(self, clamp: tuple[Any, Any], n: int) -> tuple[Array, Array]:
        mask, values = super()._clamp(clamp, n)
        return self._widened(mask), self._widened(values)

    def _widened(self, values: Array) -> Array:
        """``values`` of visible units with zeros for the other even layers."""
        shape = (*values.shape[:-1], len(self._params["b"]))
        wide = namespace(values).zeros(shape, values.dtype)
        wide[..., : values.shape[-1]] = values
        return wide

    def _visible_part(self, x: Array) -> Array:
        return x[:, : self.n_features_in_].copy()

    @property
    def _n_features_out(self) -> int:
        hidden = sum(len(self._state.params[name]) for name in "bc") - self.n_features_in_
        return int(self.hidden_layer_sizes[-1]) if self.features == "last" else hidden

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W1"].T)

    @property
    def coefs_(self) -> Any:
        self._need_fit("coefs_")
        layers = range(1, len(self.hidden_layer_sizes) + 1)
        return [self._fitted(self._params[f"W{n}"]) for n in layers]

    @property
    def intercepts_(self) -> Any:
        self._need_fit("intercepts_")
        params = self._params
        return [self._fitted(part) for part in Layers(params).split(params["b"], params["c"])]

    @property
    def intercept_visible_(self) -> Any:
        self._need_fit("intercept_visible_")
        return self.intercepts_[0]

    @property
    def intercept_hidden_(self) -> Any:
        self._need_fit("intercept_hidden_")
        return self.intercepts_[1]


def _entropy(p: Array) -> Array:
    """Entropy of independent bits with means ``p``, summed over columns, (n,) float64."""
    xp, p = namespace(p), p.astype(np.float64)
    terms = p * xp.log(xp.maximum(p, _TINY))
    p = 1 - p
    terms += p * xp.log(xp.maximum(p, _TINY))
    return -terms.sum(axis=1)
