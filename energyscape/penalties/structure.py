"""Codes with structure: units that pay together, and units that keep each other off.

    GroupL1     λ Σ_g √w_g |h_g|                     pools that share no unit
    PooledL1    λ Σ_g (√(δ² + Σ_j w_gj h_j²) - δ)    any pools, such as those of a topography
    Lateral     l1 |h|₁ + ½ λ |h|'S|h|               S_ij > 0 where i and j keep each other off

Given to `energyscape.models.SparseCoding` as its ``penalty``. All is in the convention ½|x - Dh|²;
where papers write |x - Dh|² instead, their λ is twice this one.

References
----------
Yuan, M., Lin, Y. (2006). Model selection and estimation in regression with grouped variables.
Kavukcuoglu, K., Ranzato, M., Fergus, R., LeCun, Y. (2009). Learning invariant features through
topographic filter maps.
Szlam, A., Gregor, K., LeCun, Y. (2011). Structured sparse coding via lateral inhibition.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_host
from energyscape.kernels import soft_threshold
from energyscape.penalties.base import check_strength
from energyscape.pools import pooling
from energyscape.registry import register


class _Structure(BaseEstimator):
    """A penalty of whole codes: what follows from its structure is made once for each kind of code.

    A subclass names the parameter that holds its structure, and writes `arrays`.
    """

    structure: str
    strength: float
    _held: tuple[Any, dict[Any, Any]]

    def arrays(self, m: int) -> tuple[np.ndarray, ...]:
        """What codes of ``m`` units are multiplied with or looked up in; ValueError for a structure
        that cannot be."""
        raise NotImplementedError

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        check_strength(self, "strength")
        self.__dict__.pop("_held", None)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in super().__getstate__().items() if k != "_held"}

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, until there is another structure."""
        given, held = getattr(self, self.structure), self.__dict__.get("_held")
        if held is None or held[0] is not given:
            held = self._held = (given, {})
        if key not in held[1]:
            held[1][key] = make()
        return held[1][key]

    def _beside(self, h: Array) -> tuple[Array, ...]:
        """`arrays` on the device of ``h``, and those of real numbers in its dtype."""

        def move(a: np.ndarray) -> Array:
            return namespace(h).asarray(a, dtype=h.dtype if a.dtype.kind == "f" else a.dtype)

        key = h.shape[1], h.dtype.str, device_of(h)
        return self._once(key, lambda: tuple(move(a) for a in self.arrays(h.shape[1])))


# ---------------------------------------------------------------- pools


def _pool_weights(name: str, pools: Any, m: int | None) -> np.ndarray:
    """Weights of ``m`` units in each pool, shape (g, m); without ``m``, of as many as are named."""
    if isinstance(pools, list | tuple):
        lists = [_indices(name, pool) for pool in pools]
        if not lists:
            raise ValueError(f"{name} must hold at least one list of units, got {pools!r}")
        most = 1 + max(int(pool.max()) for pool in lists)
        m = most if m is None else m
        if most > m:
            raise ValueError(f"{name} name unit {most - 1}, but codes have {m} units")
        weights = np.zeros((len(lists), m))
        for row, pool in zip(weights, lists, strict=True):
            row[pool] = 1.0
        return pooling(weights, m)
    pools = to_host(pools) if is_gpu_array(pools) else pools
    if m is None:
        m = pools if np.ndim(pools) == 0 else np.shape(pools)[-1]
    return pooling(pools, m)


def _indices(name: str, pool: Any) -> np.ndarray:
    units = np.asarray(pool)
    if units.ndim != 1 or not len(units) or units.dtype.kind not in "iu" or units.min() < 0:
        raise ValueError(f"each of {name} must be a list of unit numbers >= 0, got {pool!r}")
    if len(np.unique(units)) < len(units):
        raise ValueError(f"{name} name a unit twice in {pool!r}")
    return units


@register
class GroupL1(_Structure):
    """strength · Σ_g √w_g |h_g| over groups that share no unit: whole groups are on, or off.

    A norm, so that codes come with a duality gap. Groups of one unit with weight 1 are `L1`. The
    proximal step takes λ√w_g from the length of each group, and the dual norm is the largest length
    max_g |q_g|/(λ√w_g).

    Learning a dictionary from random rows ends where groups hold parts of several subspaces. Begin
    from the atoms of an `L1` model, `energyscape.pools.arrangement` of which puts those that are on
    together in one group (``dictionary=`` of `SparseCoding`).

    Parameters
    ----------
    groups : int, list of lists of int, or array of shape (n_groups, m), default 2
        Size of consecutive groups; the units of each; or weights >= 0, w_g at the units of group g
        and 0 elsewhere. Every unit is in one group.
    strength : float, default 0.1
        λ, in the units of the data.

    References
    ----------
    Yuan, M., Lin, Y. (2006). Model selection and estimation in regression with grouped variables.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import SparseCoding
    >>> from energyscape.penalties import GroupL1
    >>> X = np.random.default_rng(0).standard_normal((200, 8))
    >>> H = SparseCoding(12, penalty=GroupL1(3, 1.5), random_state=0).fit_transform(X)
    >>> bool(np.isin((H.reshape(200, 4, 3) != 0).sum(axis=2), [0, 3]).all())
    True
    """

    structure = "groups"

    def __init__(self, groups: Any = 2, strength: float = 0.1) -> None:
        self.groups = groups
        self.strength = strength

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        super().check_numbers()
        self._of(_pool_weights("groups", self.groups, None))

    def arrays(self, m: int) -> tuple[np.ndarray, ...]:
        """Members, shape (m, g); √w, shape (g,); the group of each unit, shape (m,)."""
        return self._of(_pool_weights("groups", self.groups, m))

    def _of(self, weights: np.ndarray) -> tuple[np.ndarray, ...]:
        members = weights > 0
        shared = np.flatnonzero(members.sum(axis=0) > 1)
        if len(shared):
            raise ValueError(
                f"GroupL1 needs groups that share no unit, but unit {shared[0]} is in "
                f"{members[:, shared[0]].sum()} of them; PooledL1 takes any"
            )
        largest = weights.max(axis=1)
        if (members & (weights != largest[:, None])).any():
            raise ValueError(
                "GroupL1 needs equal weights within each group; PooledL1 takes any weights"
            )
        return members.T.astype(np.float64), np.sqrt(largest), members.argmax(axis=0)

    def code_value(self, h: Array) -> Array:
        """λ Σ_g √w_g |h_g| of each row, shape (n,), float64."""
        members, root, _ = self._beside(h)
        lengths = namespace(h).sqrt((h * h) @ members)
        lengths *= root
        return float(self.strength) * lengths.sum(axis=1, dtype=np.float64)

    def prox(self, v: Array, step: Any, at: Array) -> Array:
        """argmin ½|u - v|² + step λ Σ_g √w_g |u_g|, in place: u_g = v_g max(0, 1 - θ_g/|v_g|)."""
        members, root, own = self._beside(v)
        xp = namespace(v)
        lengths = xp.sqrt((v * v) @ members)
        theta = root * (step * float(self.strength))
        # θ/θ where a group is off, so that its codes become 0 and not what rounding leaves.
        xp.maximum(lengths, xp.maximum(theta, np.finfo(v.dtype).tiny), out=lengths)
        xp.divide(theta, lengths, out=lengths)
        v -= v * xp.take(lengths, own, axis=1)
        return v

    def dual_norm(self, q: Array) -> Array:
        """max_g |q_g|/(λ√w_g) of each row, shape (n,), float64."""
        members, root, _ = self._beside(q)
        lengths = namespace(q).sqrt((q * q) @ members)
        lengths /= root
        return lengths.max(axis=1).astype(np.float64) / float(self.strength)


@register
class PooledL1(_Structure):
    """strength · Σ_g (√(δ² + Σ_j w_gj h_j²) - δ) over any pools: `GroupL1` of groups that overlap.

    Units that share pools go on together, which on a torus puts alike atoms side by side
    (`energyscape.pools.torus_pools` with ``sigma``). √s is concave, so that

        √s <= ½ (s/r + r),    with equality at r = √s,

    bounds p by a quadratic that touches it at the last codes, where r_g is taken. A step divides
    h_j by 1 + step λ Σ_g w_gj/r_g and never raises the energy. δ rounds the tip, where r would be 0
    and a code that is off could not come back; hence codes that are off come near 0 (|h| ≲ δ), not
    onto it. The energy is convex in the codes.

    Parameters
    ----------
    pools : int, list of lists of int, or array of shape (n_pools, m), default 2
        Size of consecutive pools; the units of each; or any weights w >= 0. Every unit is in a
        pool.
    strength : float, default 0.1
        λ, in the units of the data.
    epsilon : float > 0, default 0.01
        δ/λ.

    References
    ----------
    Kavukcuoglu, K., Ranzato, M., Fergus, R., LeCun, Y. (2009). Learning invariant features through
    topographic filter maps.
    """

    structure = "pools"

    def __init__(self, pools: Any = 2, strength: float = 0.1, epsilon: float = 0.01) -> None:
        self.pools = pools
        self.strength = strength
        self.epsilon = epsilon

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        super().check_numbers()
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"PooledL1.epsilon must be > 0, got {self.epsilon!r}")
        _pool_weights("pools", self.pools, None)

    def arrays(self, m: int) -> tuple[np.ndarray, ...]:
        """w, shape (g, m), and w', shape (m, g), both contiguous."""
        weights = _pool_weights("pools", self.pools, m)
        return weights, np.ascontiguousarray(weights.T)

    @property
    def _delta(self) -> float:
        return float(self.epsilon) * float(self.strength)

    def code_value(self, h: Array) -> Array:
        """λ Σ_g (r_g - δ) of each row, shape (n,), float64."""
        squares = (h * h) @ self._beside(h)[1]
        # r - δ = s/(r + δ), which does not cancel.
        squares /= namespace(h).sqrt(squares + self._delta**2) + self._delta
        return float(self.strength) * squares.sum(axis=1, dtype=np.float64)

    def code_grad(self, h: Array) -> Array:
        """λ h_j Σ_g w_gj/r_g."""
        weights, back = self._beside(h)
        radii = namespace(h).sqrt((h * h) @ back + self._delta**2)
        return h * ((float(self.strength) / radii) @ weights)

    def prox(self, v: Array, step: Any, at: Array) -> Array:
        """argmin ½|u - v|² + ½ step λ Σ_j u_j² Σ_g w_gj/r_g with r at ``at``, in place."""
        xp = namespace(v)
        weights, back = self._beside(v)
        radii = (at * at) @ back
        radii += self._delta**2
        xp.sqrt(radii, out=radii)
        shrink = xp.divide(1.0, radii, out=radii) @ weights
        shrink *= step * float(self.strength)
        shrink += 1.0
        v /= shrink
        return v


# ---------------------------------------------------------------- lateral inhibition


@register
class Lateral(_Structure):
    """l1 |h|₁ + ½ strength · |h|'S|h|: units keep those off that S joins them to.

    Given the other codes, unit i pays l1 + λ(S|h|)_i for each |h_i|. For steps of all units at
    once, let a = |at| and u = |h|, both >= 0. With σ the largest eigenvalue of S,

        ½ u'Su = ½ a'Sa + (Sa)'(u - a) + ½ (u - a)'S(u - a)
              <= ½ a'Sa + (Sa)'(u - a) + ½ σ |h - at|²,

    because | |h_i| - |at_i| | <= |h_i - at_i|. So a soft threshold of l1 + λ Sa, with λσ added to
    the curvature L of ½|x - Dh|² (``curvature``), never raises the energy.

    That is not convex, and where a row ends depends on where it begins. At h = 0 nobody inhibits
    yet: without ``l1`` the first step turns everything on.

    Parameters
    ----------
    S : array, shape (m, m)
        Who inhibits whom: symmetric, >= 0, 0 on the diagonal. See `ring_inhibition`,
        `torus_inhibition`, `tree_inhibition`, `learned_inhibition`.
    strength : float, default 0.1
        λ, a number without units for S without units: it multiplies two codes.
    l1 : float, default 0.1
        What every unit pays, in the units of the data. With S = 0, the λ of `L1`.

    References
    ----------
    Szlam, A., Gregor, K., LeCun, Y. (2011). Structured sparse coding via lateral inhibition.
    Their |x - Dh|² + |h|'S|h| has the codes of strength=1 and l1=0 here.
    """

    structure = "S"

    def __init__(self, S: Any, strength: float = 0.1, l1: float = 0.1) -> None:
        self.S = S
        self.strength = strength
        self.l1 = l1

    def check_numbers(self) -> None:
        """Raise ValueError for settings that cannot be."""
        super().check_numbers()
        check_strength(self, "l1")
        self._checked()

    def arrays(self, m: int) -> tuple[np.ndarray, ...]:
        """S, shape (m, m)."""
        S = self._checked()
        if len(S) != m:
            raise ValueError(f"Lateral.S is for codes of {len(S)} units, got {m}")
        return (S,)

    def _checked(self) -> np.ndarray:
        S = np.asarray(to_host(self.S) if is_gpu_array(self.S) else self.S, np.float64)
        if S.ndim != 2 or S.shape[0] != S.shape[1] or not len(S):
            raise ValueError(f"Lateral.S must be a square matrix, got shape {S.shape}")
        if not (np.isfinite(S).all() and (S >= 0).all()):
            raise ValueError("Lateral.S must be finite and >= 0")
        if (S != S.T).any():
            raise ValueError("Lateral.S must be symmetric; (S + S.T) / 2 pays the same")
        if S.diagonal().any():
            raise ValueError("Lateral.S must have a diagonal of zeros: no unit inhibits itself")
        return S

    @property
    def curvature(self) -> float:
        """λσ, what the quadratic bound adds to that of the reconstruction."""
        largest = self._once("largest", lambda: float(np.linalg.eigvalsh(self._checked())[-1]))
        # Rounding of S to float32 changes σ by less.
        return float(self.strength) * max(0.0, largest) * (1.0 + 1e-6)

    def code_value(self, h: Array) -> Array:
        """l1 |h|₁ + ½ λ |h|'S|h| of each row, shape (n,), float64."""
        size = namespace(h).abs(h)
        (S,) = self._beside(h)
        paid = size @ S
        paid *= 0.5 * float(self.strength)
        paid += float(self.l1)
        paid *= size
        return paid.sum(axis=1, dtype=np.float64)

    def prox(self, v: Array, step: Any, at: Array) -> Array:
        """argmin ½|u - v|² + step Σ_j (l1 + λ(S|at|)_j)|u_j|, in place."""
        xp = namespace(v)
        (S,) = self._beside(v)
        theta = xp.abs(at) @ S
        theta *= step * float(self.strength)
        theta += step * float(self.l1)
        return soft_threshold(v, theta, out=v)
