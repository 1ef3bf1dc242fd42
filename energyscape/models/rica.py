"""Reconstruction ICA: linear features, seldom on, from which rows can be put together again.

    F(x) = ½|x - W'Wx|² + λ Σ_g (√(δ² + Σ_j P_gj h_j²) - δ),    h = Wx,    |w_j|² = min(1, d/m)

for m features of rows of d; without pools P a unit each. The reconstruction stands for the
constraint WW' = I of independent components, which more features than the rows have cannot meet: on
white rows its mean is ½|W'W - I|²_F (Le, Karpenko, Ngiam, Ng, 2011), so that W is drawn to a tight
frame, W'W = I. Norms are fixed, as in programs of the authors' group (at 1, with which W'W = (m/d)I
at best): otherwise what a unit of norm s pays, λs, for the s² that it adds to W'W is least where d
units do all and the rest are 0. With y = W'h - x and p what codes pay,

    ∂F/∂W = h y' + (Wy + p'(h)) x',    ∂F/∂x = W'(Wy + p'(h)) - y.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import norm
from energyscape.models.base import EnergyModel
from energyscape.models.dictionary import unit_columns
from energyscape.models.from_pass import EnergyFromPass
from energyscape.pools import pooling
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.solvers.quadratic import largest_eigenvalue
from energyscape.trainers import EnergyLoss
from energyscape.verbs import Param, Params, Pass, check_count

_SPARSITY = 0.3


class RICAPass(Pass):
    """Codes and errors of reconstruction, and what follows from them."""

    def __init__(self, model: RICA, params: Params, x: Array, known: Any = None) -> None:
        super().__init__(model, params, x)
        if known is None:
            h = x @ params["W"].T
            known = h, h @ params["W"] - x
        self.h, self.error = known

    def __getitem__(self, rows: Any) -> RICAPass:
        known = self.h[rows], self.error[rows]
        return RICAPass(self.model, self.params, self.x[rows], known)

    def join(self, other: Pass) -> RICAPass:
        put = namespace(self.x).concatenate
        both = put([self.h, other.h]), put([self.error, other.error])  # type: ignore[attr-defined]
        return RICAPass(self.model, self.params, put([self.x, other.x]), both)

    def energy(self) -> Array:
        squares = (self.error * self.error).sum(axis=1, dtype=np.float64)
        return 0.5 * squares + self.model.paid(self.params, self.h)

    def _to_codes(self) -> Array:
        """Wy + p'(h), what comes back to the first product."""
        return self.error @ self.params["W"].T + self.model.paid_grad(self.params, self.h)

    def grad(self, weights: Array) -> Params:
        weights = weights.astype(self.x.dtype)[:, None]
        total = self._to_codes().T @ (self.x * weights)
        total += self.h.T @ (self.error * weights)
        return {"W": total}

    def input_grad(self) -> Array:
        return self._to_codes() @ self.params["W"] - self.error


@register
class RICA(EnergyFromPass, EnergyModel):
    """Reconstruction independent component analysis, over-complete and topographic as well.

    Rows are taken as they come: centre and whiten them first (`ZCA`, `PCAWhitening`), or features
    are those of the leading directions. Codes are linear, Wx: one product.

    Parameters
    ----------
    n_components : int, optional
        Features; may be more than the rows have, or fewer. Default: as many.
    sparsity : float, optional
        What codes pay on the mean, as a fraction of the mean |x|²; λ follows from it at the first
        W, which is random, so that it means the same on any scale. Default: 0.3.
    pools : int or array, shape (n_pools, n_components), optional
        Size of equal groups that share no feature, or any weights P >= 0, as of
        `energyscape.pools.torus_pools`, on the host. Features of a pool are on together.
    epsilon : float > 0, default 1
        δ/λ: how far the tip of √ is rounded.
    penalty : penalty of codes, optional
        In place of ``sparsity`` and ``pools``: one that has a gradient, as ``L1(λ)``,
        ``Student(λ)``, ``PooledL1(P, λ)``, with λ in the units of the data.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=50, learning_rate=0.2)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        W, rows of norm 1, or √(n_features/n_components) where that is less.
    strength_ : float
        λ.
    params_ : dict
        ``W``; buffers ``lam``, ``power`` (largest eigenvalue of Σxx'/n, in units of which W learns)
        and, with pools, ``P``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Le, Q. V., Karpenko, A., Ngiam, J., Ng, A. Y. (2011). ICA with reconstruction cost for efficient
    overcomplete feature learning.
    Le, Q. V., Ranzato, M., Monga, R., Devin, M., Chen, K., Corrado, G., Dean, J., Ng, A. Y. (2012).
    Building high-level features using large scale unsupervised learning. The pools.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import RICA
    >>> X = np.random.default_rng(0).laplace(size=(300, 10))
    >>> model = RICA(16, random_state=0).fit(X)
    >>> model.transform(X).shape
    (300, 16)
    >>> bool(((model.reconstruct(X) - X) ** 2).sum() < 0.1 * (X**2).sum())
    True
    """

    domain = "real"
    _counted = ("W", 0)
    # exp(-F) has a bounded volume for all W: along an eigenvector of W'W, of eigenvalue a, F is at
    # least ½(1 - a)²t² + λ√a t (or what another penalty pays), and both cannot be small.
    limited = True
    nonnegative = True

    def __init__(
        self,
        n_components: int | None = None,
        *,
        sparsity: float | None = None,
        pools: Any = None,
        epsilon: float = 1.0,
        penalty: Any = None,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components  # type: ignore[assignment]
        self.sparsity = sparsity
        self.pools = pools
        self.epsilon = epsilon
        self.penalty = penalty
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_trainer(self) -> Any:
        """Gradient descent on the energy of the data."""
        return EnergyLoss(n_epochs=50, learning_rate=0.2)

    def default_sampler(self) -> Any:
        """HMC, whose steps are the shorter the sharper the tips are."""
        return HMC(10, step_size=0.7 / math.sqrt(1.0 + 1.0 / self.epsilon))

    # ------------------------------------------------------------ settings

    def check_settings(self) -> None:
        if self.n_components is not None:
            check_count("n_components", self.n_components)
        if self.sparsity is not None and not 0 < self.sparsity < math.inf:
            raise ValueError(f"RICA.sparsity must be > 0, got {self.sparsity!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"RICA.epsilon must be > 0, got {self.epsilon!r}")
        if self.penalty is not None:
            self._check_penalty()

    def _check_penalty(self) -> None:
        for name in ("sparsity", "pools"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"RICA got both {name} and a penalty, which has its own λ and pools: give one "
                    "(PooledL1 takes pools)"
                )
        if not hasattr(self.penalty, "code_grad") or isinstance(self.penalty, type):
            raise ValueError(
                "RICA.penalty must be a penalty of codes with a gradient, such as L1(0.5), "
                f"Student(0.5) or PooledL1(2, 0.5), got {self.penalty!r}"
            )
        self.penalty.check_numbers()
        if not self.penalty.strength > 0:
            raise ValueError(
                f"RICA: λ must be > 0, got {self.penalty!r}; without a penalty every tight frame "
                "is as good"
            )

    def check_rows(self, n: int, event_shape: tuple[int, ...]) -> None:
        if self.pools is not None:
            pooling(self.pools, self._count(math.prod(event_shape)))

    def _count(self, n_features: int) -> int:
        return n_features if self.n_components is None else int(self.n_components)

    # ------------------------------------------------------------ parameters

    def init_params(self, x: Array, rng: Any) -> Params:
        """A random W, near a tight frame (WW' = I for no more features than the rows have), and
        λ."""
        xp, (n, d) = namespace(x), x.shape
        m = self._count(d)
        Q = xp.linalg.qr(rng.normal((max(m, d), min(m, d)), np.float64))[0]
        W = unit_columns(Q if m <= d else Q.T).T * math.sqrt(min(1.0, d / m))
        W = xp.ascontiguousarray(W.astype(x.dtype))
        power = largest_eigenvalue(x.T @ x / x.dtype.type(n))
        params = {"W": W, "power": xp.asarray(power if power > 0 else 1.0, dtype=x.dtype)}
        if self.pools is not None:
            params["P"] = xp.asarray(pooling(self.pools, m), dtype=x.dtype)
        if self.penalty is None:
            sparsity = _SPARSITY if self.sparsity is None else float(self.sparsity)
            squares = (x * x).sum(dtype=np.float64)
            sizes = xp.sqrt(self._squares(params, x @ W.T)).sum(dtype=np.float64)
            lam = xp.where(sizes > 0, sparsity * squares / xp.where(sizes > 0, sizes, 1), 1.0)
        else:
            lam = xp.asarray(float(self.penalty.strength))
        return params | {"lam": lam.astype(x.dtype)}

    def param_specs(self) -> dict[str, Param]:
        kept = ("lam", "power") if self.pools is None else ("lam", "power", "P")
        return {"W": Param()} | {name: Param(trainable=False) for name in kept}

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        m = self._count(n_features)
        shapes: dict[str, tuple[int, ...]] = {"W": (m, n_features), "lam": (), "power": ()}
        return shapes if self.pools is None else shapes | {"P": (len(pooling(self.pools, m)), m)}

    def feasible(self, params: Params) -> Params:
        """A copy with rows of W of their norm."""
        m, d = params["W"].shape
        W = unit_columns(params["W"].T).T
        W *= W.dtype.type(math.sqrt(min(1.0, d / m)))
        return params | {"W": W}

    def event_shape(self, params: Params) -> tuple[int, ...]:
        """Shape of one row."""
        return (params["W"].shape[1],)

    # ------------------------------------------------------------ verbs

    def forward(self, params: Params, x: Array, beta: Any = 1.0, base: Any = None) -> RICAPass:
        """Codes and what they leave of ``x``: two products."""
        super().forward(params, x, beta, base)  # refuses other temperatures
        return RICAPass(self, params, x)

    def input_grad(self, params: Params, x: Array) -> Array:
        """∂F/∂x, shape (n, n_features)."""
        return RICAPass(self, params, x).input_grad()

    def _squares(self, params: Params, h: Array) -> Array:
        """Σ_j P_gj h_j² of every pool, shape (n, n_pools)."""
        return (h * h) @ params["P"].T if "P" in params else h * h

    def _delta(self, params: Params) -> Array:
        return params["lam"] * params["lam"].dtype.type(self.epsilon)

    def paid(self, params: Params, h: Array) -> Array:
        """What codes pay, shape (n,), float64."""
        if self.penalty is not None:
            return self.penalty.code_value(h)
        squares, delta = self._squares(params, h), self._delta(params)
        # √(δ² + s) - δ = s/(√(δ² + s) + δ), which does not cancel.
        squares /= namespace(h).sqrt(squares + delta * delta) + delta
        return params["lam"].astype(np.float64) * squares.sum(axis=1, dtype=np.float64)

    def paid_grad(self, params: Params, h: Array) -> Array:
        """p'(h) = λ h_j Σ_g P_gj/r_g, the shape of h."""
        if self.penalty is not None:
            return self.penalty.code_grad(h)
        squares, delta = self._squares(params, h), self._delta(params)
        squares += delta * delta
        each = params["lam"] / namespace(h).sqrt(squares, out=squares)
        return h * (each @ params["P"] if "P" in params else each)

    def encode(self, params: Params, x: Array) -> Array:
        """Wx, shape (n, n_components)."""
        return x @ params["W"].T

    def decode(self, params: Params, h: Array) -> Array:
        """W'h, shape (n, n_features)."""
        return h @ params["W"]

    def start_points(self, params: Params, n: int, rng: Any) -> Array:
        """Where chains begin: normal rows of the data's largest deviation."""
        W = params["W"]
        return rng.normal((n, W.shape[1]), W.dtype) * namespace(W).sqrt(params["power"])

    def precondition(self, params: Params, grads: Params) -> None:
        """Steps in units of the curvature, at most of the size of W, in place: a row far out would
        turn all features to itself."""
        xp, W, step = namespace(params["W"]), params["W"], grads["W"]
        step /= params["power"]
        most = norm(W)
        step *= most / xp.maximum(xp.maximum(norm(step), most), np.finfo(W.dtype).tiny)

    # ------------------------------------------------------------ the face

    def pooled(self, X: Any) -> Any:
        """What each pool holds, √(Σ_j P_gj h_j²): features that are the same whichever of a pool's
        units are on.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_pools), container of X, dtype of the fit; |Wx| without pools
        """

        def lengths(params: Params, x: Array) -> Array:
            return namespace(x).sqrt(self._squares(params, self.encode(params, x)))

        return self._map(X, lengths)

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"])

    @property
    def strength_(self) -> float:
        self._need_fit("strength_")
        return float(self._params["lam"])
