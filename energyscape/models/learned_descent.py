"""Learned coordinate descent: a few greedy steps as a network whose matrices are learned.

    b = We'x,  z = 0;   T times:  k = argmax |h_θ(b) - z|,   e = h_θ(b)_k - z_k,
                                  b ← b + e S_k,   z_k ← z_k + e;       f(x) = h_θ(b)

At first We = D, S = I - D'D and θ = λ: T steps of coordinate descent with atoms of norm 1, each
along the coordinate that moves furthest. Going forward and back, a step costs what one row of S
does, for each row of x, where a step of `LISTAEncoder` costs all of S.

References
----------
Gregor, K., LeCun, Y. (2010). Learning fast approximations of sparse coding. ICML. Algorithms 5
and 6.
Li, Y., Osher, S. (2009). Coordinate descent optimization for l1 minimization with application to
compressed sensing; a greedy algorithm. Algorithm 1.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.kernels import soft_threshold
from energyscape.models.encoders import Encoder, reflected
from energyscape.models.moments import group_sums
from energyscape.registry import register
from energyscape.verbs import Params, check_count

__all__ = ["LCoDEncoder"]


@register
class LCoDEncoder(Encoder):
    """Learned coordinate descent.

    Parameters
    ----------
    n_steps : int, default 10
        T: coordinates that are changed, >= 0, one after the other; 0 is a shrinkage encoder.
    """

    names = ("We", "S", "theta")

    def __init__(self, n_steps: int = 10) -> None:
        self.n_steps = n_steps

    def check(self) -> None:
        """Raise ValueError unless n_steps is an integer >= 0."""
        check_count("LCoDEncoder.n_steps", self.n_steps, 0)

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        return {"We": (n_features, m), "S": (m, m), "theta": (m,)}

    def init(self, D: Array, lam: float, x: Array) -> Params:
        xp, m = namespace(D), D.shape[1]
        S = xp.eye(m, dtype=D.dtype) - D.T @ D
        return {"We": D.copy(), "S": S, "theta": xp.full(m, lam, D.dtype)}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def curvature(self, params: Params) -> Params:
        """A row of S is met by the codes of one atom alone, and all of them by Σ e²."""
        return {"We": params["power"], "S": params["usage"].sum()}

    def forward(self, params: Params, x: Array, positive: bool = False) -> tuple[Array, Any]:
        xp, S, theta = namespace(x), params["S"], params["theta"]
        b = x @ params["We"]
        z, each, steps = xp.zeros_like(b), xp.arange(len(b)), []
        for _ in range(self.n_steps):
            bar = soft_threshold(b, theta, positive)
            k = xp.abs(bar - z).argmax(axis=1)
            new = bar[each, k]
            e = new - z[each, k]
            b += e[:, None] * S[k]
            z[each, k] = new
            steps.append((k, e, new))
        h = soft_threshold(b, theta, positive)
        return h, (x, h, steps)

    def backward(
        self, params: Params, cache: Any, dh: Array, need_dx: bool = False
    ) -> tuple[Params, Array]:
        x, h, steps = cache
        xp, S = namespace(x), params["S"]
        db = dh * (h != 0)
        dtheta = -(xp.sign(h) * db).sum(axis=0)
        dz, each, parts = xp.zeros_like(db), xp.arange(len(db)), []
        for k, e, new in reversed(steps):
            de = (db * S[k]).sum(axis=1)
            # The value after a step is seen by what followed, the one before by the step alone.
            dk = (dz[each, k] + de) * (new != 0)
            parts.append((k, e[:, None] * db, (xp.sign(new) * dk)[:, None]))
            dz[each, k] = -de
            db[each, k] += dk
        dS = xp.zeros_like(S)
        if parts:
            k, rows, of_theta = (xp.concatenate(part) for part in zip(*parts, strict=True))
            dS = group_sums(rows, k, len(S))
            dtheta -= group_sums(of_theta, k, len(S))[:, 0]
        grads = {"We": x.T @ db, "S": dS, "theta": dtheta}
        return grads, db @ params["We"].T if need_dx else None
