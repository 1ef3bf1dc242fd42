"""Unrolled inference: a few steps of an iterative solver as a network whose matrices are learned.

    LISTA     z_0 = h_θ(We x),   z_t = h_θ(We x + S z_{t-1}),   t = 1 … T     (Algorithm 3)
    coupled   z_t = h_θt(z_{t-1} + W_t (x - D z_{t-1}))          (Chen et al., 2018)
    step      z_t = h_{λγ_t}(z_{t-1} + γ_t D'(x - D z_{t-1}))    (Ablin et al., 2019)

At first We = D'/L, S = I - D'D/L and θ = λ/L: T + 1 steps of ISTA from 0, with T multiplications by
S. Gradients go back through all steps (Algorithm 4).

References
----------
Gregor, K., LeCun, Y. (2010). Learning fast approximations of sparse coding. ICML.
Chen, X., Liu, J., Wang, Z., Yin, W. (2018). Theoretical linear convergence of unfolded ISTA and its
practical weights and thresholds. NeurIPS.
Ablin, P., Moreau, T., Massias, M., Gramfort, A. (2019). Learning step sizes for unfolded sparse
coding. NeurIPS.
"""

from __future__ import annotations

from typing import Any

from energyscape.backend import Array, namespace
from energyscape.kernels import soft_threshold
from energyscape.models.encoders import Encoder, reflected
from energyscape.registry import register
from energyscape.solvers.quadratic import Gram
from energyscape.verbs import Params, check_count

__all__ = ["CoupledLISTAEncoder", "LISTAEncoder", "StepLISTAEncoder"]


class UnrolledEncoder(Encoder):
    """Steps z_t = h_θt(a_t(x, z_{t-1})): subclasses write a_t, its derivatives and θ_t.

    Parameters
    ----------
    n_layers : int
        T: multiplications after the first step, >= 0.
    """

    n_layers: int
    # Whether steps multiply by the dictionary, so that it has a gradient here, too.
    uses_dictionary = False

    def curvature(self, params: Params) -> Params:
        """Arrays that all steps share are that much steeper; the largest eigenvalue of E[zz'] lies
        between the largest usage and their sum."""
        steps, usage = float(self.n_layers + 1), params["usage"]
        power = steps * params["power"]
        root = namespace(usage).sqrt  # of each: their product may be too small for float32
        codes = steps * root(usage.max()) * root(usage.sum())
        return {"We": power, "Wt": power, "S": codes, "theta": steps, "gamma": power**2}

    def check(self) -> None:
        """Raise ValueError unless n_layers is an integer >= 0."""
        check_count(f"{type(self).__name__}.n_layers", self.n_layers, 0)

    def threshold(self, params: Params, t: int) -> Array:
        """θ of step ``t``: a number or one for each code."""
        raise NotImplementedError

    def threshold_grad(self, params: Params, t: int, of_theta: Array, grads: Params) -> None:
        """Add the derivative in θ of step ``t``, summed over rows, to that of its arrays."""
        raise NotImplementedError

    def inputs(self, params: Params, x: Array) -> Any:
        """What all steps need of x."""
        return x

    def step(self, params: Params, t: int, given: Any, z: Array | None) -> Array:
        """a_t, a new array; z is None before the first step."""
        raise NotImplementedError

    def step_grad(
        self, params: Params, t: int, given: Any, z: Array | None, da: Array, grads: Params
    ) -> tuple[Array | None, Array]:
        """Add the gradients of a_t to ``grads``; its derivatives in z and in `inputs`."""
        raise NotImplementedError

    def inputs_grad(
        self, params: Params, x: Array, dgiven: Array, grads: Params, need_dx: bool
    ) -> Array | None:
        """The derivative in x, and in what `inputs` was made with."""
        return dgiven

    def forward(self, params: Params, x: Array, positive: bool = False) -> tuple[Array, Any]:
        given, z, steps = self.inputs(params, x), None, []
        for t in range(self.n_layers + 1):
            a = self.step(params, t, given, z)
            new = soft_threshold(a, self.threshold(params, t), positive)
            steps.append((z, a, new))
            z = new
        return z, (x, given, steps, positive)

    def backward(
        self, params: Params, cache: Any, dh: Array, need_dx: bool = False
    ) -> tuple[Params, Array]:
        x, given, steps, _ = cache
        xp = namespace(x)
        names = (*self.names, "D") if self.uses_dictionary else self.names
        grads: Params = {name: xp.zeros_like(params[name]) for name in names}
        dgiven: Any = 0.0
        for t in reversed(range(len(steps))):
            z, a, new = steps[t]
            da = dh * (new != 0)
            self.threshold_grad(params, t, -(xp.sign(a) * da), grads)
            dh, part = self.step_grad(params, t, given, z, da, grads)
            dgiven = dgiven + part
        dx = self.inputs_grad(params, x, dgiven, grads, need_dx)
        return grads, dx if need_dx else None


@register
class LISTAEncoder(UnrolledEncoder):
    """z_t = h_θ(We x + S z_{t-1}).

    Parameters
    ----------
    n_layers : int, default 3
        T, multiplications by S; 0 is a shrinkage encoder.
    tied : bool, default True
        Whether all steps share S and θ; else each has its own.
    """

    names = ("We", "S", "theta")

    def __init__(self, n_layers: int = 3, tied: bool = True) -> None:
        self.n_layers = n_layers
        self.tied = tied

    def _sizes(self) -> tuple[int, int]:
        """Matrices S and thresholds θ."""
        return (min(1, self.n_layers), 1) if self.tied else (self.n_layers, self.n_layers + 1)

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        matrices, thresholds = self._sizes()
        return {"We": (n_features, m), "S": (matrices, m, m), "theta": (thresholds, m)}

    def init(self, D: Array, lam: float, x: Array) -> Params:
        xp, m, real = namespace(D), D.shape[1], D.dtype.type
        bound, (matrices, thresholds) = Gram.of(D).bound, self._sizes()
        S = xp.eye(m, dtype=D.dtype) - (D.T @ D) / real(bound)
        theta = xp.full((thresholds, m), lam / bound, D.dtype)
        return {"We": D / real(bound), "S": xp.tile(S, (matrices, 1, 1)), "theta": theta}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def threshold(self, params: Params, t: int) -> Array:
        return params["theta"][0 if self.tied else t]

    def threshold_grad(self, params: Params, t: int, of_theta: Array, grads: Params) -> None:
        grads["theta"][0 if self.tied else t] += of_theta.sum(axis=0)

    def inputs(self, params: Params, x: Array) -> Array:
        return x @ params["We"]

    def step(self, params: Params, t: int, given: Array, z: Array | None) -> Array:
        if z is None:
            return given
        a = z @ params["S"][0 if self.tied else t - 1].T
        a += given
        return a

    def step_grad(
        self, params: Params, t: int, given: Array, z: Array | None, da: Array, grads: Params
    ) -> tuple[Array | None, Array]:
        if z is None:
            return None, da
        which = 0 if self.tied else t - 1
        grads["S"][which] += da.T @ z
        return da @ params["S"][which], da

    def inputs_grad(
        self, params: Params, x: Array, dgiven: Array, grads: Params, need_dx: bool
    ) -> Array | None:
        grads["We"] += x.T @ dgiven
        return dgiven @ params["We"].T if need_dx else None


@register
class CoupledLISTAEncoder(UnrolledEncoder):
    """z_t = h_θt(z_{t-1} + W_t (x - D z_{t-1})): each step has its own W and θ, and none has an S.

    Parameters
    ----------
    n_layers : int, default 3
        T: steps after the first.
    """

    names = ("Wt", "theta")
    uses_dictionary = True

    def __init__(self, n_layers: int = 3) -> None:
        self.n_layers = n_layers

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        steps = self.n_layers + 1
        return {"Wt": (steps, n_features, m), "theta": (steps, m)}

    def init(self, D: Array, lam: float, x: Array) -> Params:
        xp, steps, bound = namespace(D), self.n_layers + 1, Gram.of(D).bound
        theta = xp.full((steps, D.shape[1]), lam / bound, D.dtype)
        return {"Wt": xp.tile(D / D.dtype.type(bound), (steps, 1, 1)), "theta": theta}

    def feasible(self, params: Params) -> Params:
        return {"theta": reflected(params["theta"])}

    def threshold(self, params: Params, t: int) -> Array:
        return params["theta"][t]

    def threshold_grad(self, params: Params, t: int, of_theta: Array, grads: Params) -> None:
        grads["theta"][t] += of_theta.sum(axis=0)

    def step(self, params: Params, t: int, given: Array, z: Array | None) -> Array:
        if z is None:
            return given @ params["Wt"][t]
        a = (given - z @ params["D"].T) @ params["Wt"][t]
        a += z
        return a

    def step_grad(
        self, params: Params, t: int, given: Array, z: Array | None, da: Array, grads: Params
    ) -> tuple[Array | None, Array]:
        back = da @ params["Wt"][t].T
        if z is None:
            grads["Wt"][t] += given.T @ da
            return None, back
        grads["Wt"][t] += (given - z @ params["D"].T).T @ da
        grads["D"] -= back.T @ z
        return da - back @ params["D"], back


@register
class StepLISTAEncoder(UnrolledEncoder):
    """z_t = h_{λγ_t}(z_{t-1} + γ_t D'(x - D z_{t-1})): ISTA whose step sizes γ_t alone are learned.

    Parameters
    ----------
    n_layers : int, default 3
        T: steps after the first.
    """

    names = ("gamma",)
    uses_dictionary = True

    def __init__(self, n_layers: int = 3) -> None:
        self.n_layers = n_layers

    def shapes(self, n_features: int, m: int) -> dict[str, tuple[int, ...]]:
        return {"gamma": (self.n_layers + 1,)}

    def init(self, D: Array, lam: float, x: Array) -> Params:
        return {"gamma": namespace(D).full(self.n_layers + 1, 1.0 / Gram.of(D).bound, D.dtype)}

    def feasible(self, params: Params) -> Params:
        return {"gamma": reflected(params["gamma"])}

    def threshold(self, params: Params, t: int) -> Array:
        return params["lam"] * params["gamma"][t]

    def threshold_grad(self, params: Params, t: int, of_theta: Array, grads: Params) -> None:
        grads["gamma"][t] += params["lam"] * of_theta.sum()

    def step(self, params: Params, t: int, given: Array, z: Array | None) -> Array:
        a = self._slope(params, given, z)
        a *= params["gamma"][t]
        if z is not None:
            a += z
        return a

    @staticmethod
    def _slope(params: Params, x: Array, z: Array | None) -> Array:
        """D'(x - Dz)."""
        D = params["D"]
        return x @ D if z is None else (x - z @ D.T) @ D

    def step_grad(
        self, params: Params, t: int, given: Array, z: Array | None, da: Array, grads: Params
    ) -> tuple[Array | None, Array]:
        D, scaled = params["D"], da * params["gamma"][t]
        grads["gamma"][t] += (da * self._slope(params, given, z)).sum()
        back = scaled @ D.T
        if z is None:
            grads["D"] += given.T @ scaled
            return None, back
        grads["D"] += (given - z @ D.T).T @ scaled - back.T @ z
        return da - back @ D, back
