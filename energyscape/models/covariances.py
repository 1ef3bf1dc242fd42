"""The three shapes of a mixture's covariances, each with its arithmetic.

A component's precision is L L': an upper triangular L, (n_components, d, d), a root per feature,
(n_components, d), or one number, (n_components,). All three answer the same calls: `ready` makes of
the parameters what every block of rows needs, `rows` makes of a block what both steps of EM need.
Numbers per row and component are (n_components, n), so that sums over components are quick.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.verbs import Params

# Columns of a triangle at once, at most: wider pieces make quicker products, narrower ones less.
_COLUMNS = 256


class _Full:
    """A precision matrix for each component, y = (x - μ) L."""

    least_rows = 1024  # in a block: d² sums are added up for each

    @staticmethod
    def shape(k: int, d: int) -> tuple[int, ...]:
        return (k, d, d)

    @staticmethod
    def unit(xp: Any, k: int, d: int, dtype: Any) -> Array:
        """Unit precisions."""
        return xp.tile(xp.eye(d, dtype=dtype), (k, 1, 1))

    @staticmethod
    def feasible(L: Array) -> Array:
        return namespace(L).triu(L)

    @staticmethod
    def precondition(L: Array, grads: Params) -> None:
        xp, up = namespace(L), L.transpose(0, 2, 1)
        inverse = xp.linalg.inv(L)
        pulled = (grads["M"][:, None, :] @ inverse.transpose(0, 2, 1)) @ inverse
        grads["M"][...] = pulled[:, 0]
        grads["L"][...] = L @ xp.triu(up @ grads["L"])

    @staticmethod
    def log_det(L: Array, d: int) -> Array:
        """log |det L_k|, float64."""
        xp = namespace(L)
        diagonal = xp.diagonal(L, axis1=1, axis2=2).astype(np.float64)
        return xp.log(abs(diagonal)).sum(axis=1)

    @staticmethod
    def ready(params: Params) -> Params:
        return params

    @staticmethod
    def rows(ready: Params, x: Array) -> Array:
        return x

    @staticmethod
    def distances(ready: Params, x: Array) -> Array:
        """|y_k|² of every component and row."""
        xp, M = namespace(x), ready["M"]
        out, away = xp.zeros((len(M), len(x)), np.float64), xp.empty_like(x)
        for k in range(len(M)):
            L = ready["L"][k]
            step = max(32, min(_COLUMNS, len(L) // 2))
            xp.subtract(x, M[k], out=away)
            for lo in range(0, len(L), step):  # of a triangle: below are zeros
                hi = lo + step
                y = away[:, :hi] @ L[:hi, lo:hi]
                out[k] += xp.einsum("ij,ij->i", y, y)
        return out

    @staticmethod
    def gradients(params: Params, x: Array, share: Array) -> Params:
        """Σ_i s_ik ∂E(x_i, k)/∂(M_k, L_k)."""
        xp, M, L = namespace(x), params["M"], params["L"]
        dM, dL = xp.empty_like(M), xp.empty_like(L)
        for k in range(len(M)):
            away = x - M[k]
            y = away @ L[k]
            y *= share[:, k : k + 1]
            dL[k] = away.T @ y
            dL[k] -= xp.diag(share[:, k].sum() / xp.diagonal(L[k]))
            dM[k] = -(L[k] @ y.sum(axis=0))
        return {"M": dM, "L": dL}

    @staticmethod
    def pulls(params: Params, x: Array, share: Array) -> Array:
        """Σ_k s_ik L_k L_k' (x_i - μ_k)."""
        total = namespace(x).zeros_like(x)
        for k in range(len(params["M"])):
            y = (x - params["M"][k]) @ params["L"][k]
            y *= share[:, k : k + 1]
            total += y @ params["L"][k].T
        return total

    @staticmethod
    def curvatures(params: Params, x: Array) -> tuple[Array, Array]:
        """tr Σ_k⁻¹, and |Σ_k⁻¹ (x - μ_k)|² of every row."""
        xp, M, L = namespace(x), params["M"], params["L"]
        squares = xp.empty((len(x), len(M)), x.dtype)
        for k in range(len(M)):
            a = ((x - M[k]) @ L[k]) @ L[k].T
            squares[:, k] = (a * a).sum(axis=1)
        return (L * L).sum(axis=(1, 2)), squares

    @staticmethod
    def along(params: Params, x: Array, g: Array) -> Array:
        """g'Σ_k⁻¹ (x - μ_k) of every row and component, (n, k)."""
        M, L = params["M"], params["L"]
        columns = [
            (((x - m) @ root) * (g @ root)).sum(axis=1) for m, root in zip(M, L, strict=True)
        ]
        return namespace(x).stack(columns, axis=1)

    @staticmethod
    def pull_gradients(params: Params, x: Array, g: Array, share: Array) -> Params:
        """Σ_i s_ik (2 a_k - g)'∂a_k/∂(M_k, L_k) - s_ik ∂(tr Σ_k⁻¹)/∂L_k, with a_k = Σ_k⁻¹ (x - μ_k)
        and the a_k and g before ∂ held."""
        xp, M, L = namespace(x), params["M"], params["L"]
        dM, dL = xp.empty_like(M), xp.empty_like(L)
        for k in range(len(M)):
            away = x - M[k]
            y = away @ L[k]
            v = 2 * (y @ L[k].T) - g
            v *= share[:, k : k + 1]
            root = v @ L[k]
            dL[k] = v.T @ y + away.T @ root - 2 * share[:, k].sum() * L[k]
            dM[k] = -(L[k] @ root.sum(axis=0))
        return {"M": dM, "L": dL}

    @staticmethod
    def coloured(L: Array, noise: Array, k: Array) -> Array:
        """Noise with the covariance of component ``k`` of each row."""
        xp, inverse = namespace(L), namespace(L).linalg.inv(L)
        out = xp.zeros_like(noise)
        for j in range(len(L)):  # as many products as components, and no gathered matrices
            out += xp.where((k == j)[:, None], noise @ inverse[j], 0)
        return out

    @staticmethod
    def sums(ready: Params, x: Array, share: Array) -> Params:
        """Σ r, Σ r δ and Σ r δδ' with δ = x - μ_k, exact in float32 however far μ_k is from 0."""
        xp, M, d = namespace(x), ready["M"], x.shape[1]
        share = share.astype(x.dtype)
        first, second = xp.empty_like(M), xp.empty((len(M), d, d), x.dtype)
        root, away = xp.sqrt(share), xp.empty_like(x)
        for k in range(len(M)):
            xp.subtract(x, M[k], out=away)
            away *= root[k][:, None]
            first[k] = root[k] @ away
            second[k] = away.T @ away  # NumPy makes it at half the cost of another product
        return {"count": share.sum(axis=1), "x": first, "xx": second}

    @staticmethod
    def about_offset(params: Params, sums: Params) -> Params:
        """The same sums with x - offset in place of δ."""
        M = params["M"].astype(np.float64) - params["offset"]
        count, first, xx = sums["count"], sums["x"], sums["xx"]
        half = first + 0.5 * count[:, None] * M
        for k in range(len(M)):
            xx[k] += M[k][:, None] * half[k]
            xx[k] += half[k][:, None] * M[k]
        return {"count": count, "x": first + count[:, None] * M, "xx": xx}

    @staticmethod
    def roots(xx: Array, count: Array, means: Array, floor: Array) -> Array:
        """L of the most likely covariances of at least diag(floor): S = xx/n - μμ' with its
        eigenvalues in units of ``floor`` raised to 1."""
        xp, unit = namespace(xx), namespace(xx).sqrt(floor)
        S = xx / count[:, None, None]
        S -= means[:, :, None] * means[:, None, :]
        S /= unit[:, None] * unit
        root = _roots_above_one(S)
        if root is None:
            each = ((s, _roots_above_one(s)) for s in S)
            root = xp.stack([_raised_to_one(s) if r is None else r for s, r in each])
        root /= unit[:, None]
        return root

    @staticmethod
    def covariances(L: Array) -> Array:
        inverse = namespace(L).linalg.inv(L)
        return inverse.transpose(0, 2, 1) @ inverse

    @staticmethod
    def least_variances(L: Array, floor: Array) -> Array:
        """The least variance of each component along any direction, in units of ``floor``."""
        scaled = L.astype(np.float64) * namespace(L).sqrt(floor)[:, None]
        return namespace(L).linalg.svd(scaled, compute_uv=False)[:, 0] ** -2


def _roots_above_one(S: Array) -> Array | None:
    """L with (L L')⁻¹ = S for matrices of which Σ 1/λ < 1, so that all eigenvalues λ are above 1;
    None if one is not of them."""
    try:
        root = _root(S)
    except np.linalg.LinAlgError:  # not positive; CuPy may leave a pivot that is not, or NaN
        return None
    positive = namespace(S).diagonal(root, axis1=-2, axis2=-1) > 0
    far = (root * root).sum(axis=(-2, -1)) < 1
    return root if bool(far.all() & positive.all()) else None


def _raised_to_one(S: Array) -> Array:
    """The same with the eigenvalues raised to 1."""
    values, vectors = namespace(S).linalg.eigh(S)
    return _root((vectors * namespace(S).maximum(values, 1)) @ vectors.T)


def _root(S: Array) -> Array:
    xp = namespace(S)
    return xp.triu(xp.moveaxis(_triangular_inverse(xp.linalg.cholesky(S)), -1, -2))


def _triangular_inverse(L: Array) -> Array:
    """The inverse of lower triangles, by halves: a third of the work that a full one would be."""
    d = L.shape[-1]
    if d <= _COLUMNS:
        return namespace(L).linalg.inv(L)
    out, (low, high) = namespace(L).zeros_like(L), (slice(d // 2), slice(d // 2, d))
    out[..., low, low] = first = _triangular_inverse(L[..., low, low])
    out[..., high, high] = last = _triangular_inverse(L[..., high, high])
    out[..., high, low] = -(last @ (L[..., high, low] @ first))
    return out


class _Diagonal:
    """A root of the precision for each component and feature, y = (x - μ) l.

    With z = x - offset, |y|² = z² l² - 2 z μl² + μ²l² is a product of rows (z, z²) with
    coefficients: in float64, where nothing cancels that matters and which costs less than
    differences from each mean would in float32.
    """

    least_rows = 128

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def unit(self, xp: Any, k: int, d: int, dtype: Any) -> Array:
        """Unit precisions."""
        return xp.ones(self.shape(k, d), dtype)

    def feasible(self, L: Array) -> Array:
        return L

    def _columns(self, L: Array) -> Array:
        """L as it multiplies rows of features."""
        return L

    def _reduced(self, total: Array) -> Array:
        """A sum per component and feature as one per entry of L."""
        return total

    def precondition(self, L: Array, grads: Params) -> None:
        grads["M"] /= self._columns(L) ** 2
        grads["L"] *= L * L

    def log_det(self, L: Array, d: int) -> Array:
        """log |det L_k|, float64."""
        return namespace(L).log(abs(L.astype(np.float64))).sum(axis=1)

    def ready(self, params: Params) -> Params:
        """The centred means, precisions, and what multiplies (z, z², 1) in |y|²; float64."""
        offset, L = params["offset"].astype(np.float64), params["L"].astype(np.float64)
        M = params["M"].astype(np.float64) - offset
        xp, precision = namespace(M), namespace(M).broadcast_to(self._columns(L) ** 2, M.shape)
        linear = xp.concatenate([-2 * precision * M, precision], axis=1)
        constant = (precision * M * M).sum(axis=1)[:, None]
        near = params["offset"]
        return {"near": near, "M": M, "P": precision, "linear": linear, "constant": constant}

    def rows(self, ready: Params, x: Array) -> Array:
        """(z, z²), shape (n, 2 d)."""
        xp, (n, d) = namespace(x), x.shape
        both = xp.empty((n, 2 * d), np.float64)
        z, squares = both[:, :d], both[:, d:]
        z[...] = x - ready["near"]  # a cast as it is copied is quicker than within the difference
        xp.multiply(z, z, out=squares)
        return both

    def distances(self, ready: Params, both: Array) -> Array:
        """|y_k|² of every component and row."""
        return ready["linear"] @ both.T + ready["constant"]

    def gradients(self, params: Params, x: Array, share: Array) -> Params:
        """Σ_i s_ik ∂E(x_i, k)/∂(M_k, L_k)."""
        xp, M, L = namespace(x), params["M"], params["L"]
        first, second = xp.empty_like(M), xp.empty_like(M)
        for k in range(len(M)):
            away = x - M[k]
            first[k] = share[:, k] @ away
            away *= away
            second[k] = share[:, k] @ away
        columns, count = self._columns(L), share.sum(axis=0)[:, None]
        return {
            "M": -first * columns * columns,
            "L": self._reduced(second * columns - count / columns),
        }

    def pulls(self, params: Params, x: Array, share: Array) -> Array:
        """Σ_k s_ik L_k² (x_i - μ_k)."""
        ready = self.ready(params)
        P, PM = ready["P"], ready["P"] * ready["M"]
        away = x - params["offset"]
        return away * (share @ P.astype(x.dtype)) - share @ PM.astype(x.dtype)

    def curvatures(self, params: Params, x: Array) -> tuple[Array, Array]:
        """tr Σ_k⁻¹, and |Σ_k⁻¹ (x - μ_k)|² of every row."""
        xp, M = namespace(x), params["M"]
        precision = self.ready(params)["P"].astype(x.dtype)
        squares = xp.empty((len(x), len(M)), x.dtype)
        for k in range(len(M)):
            a = (x - M[k]) * precision[k]
            squares[:, k] = (a * a).sum(axis=1)
        return precision.sum(axis=1), squares

    def along(self, params: Params, x: Array, g: Array) -> Array:
        """g'Σ_k⁻¹ (x - μ_k) of every row and component, (n, k)."""
        M, P = params["M"], self._columns(params["L"]) ** 2 + 0 * params["M"]
        columns = [((x - m) * p * g).sum(axis=1) for m, p in zip(M, P, strict=True)]
        return namespace(x).stack(columns, axis=1)

    def pull_gradients(self, params: Params, x: Array, g: Array, share: Array) -> Params:
        """Σ_i s_ik (2 a_k - g)'∂a_k/∂(M_k, L_k) - s_ik ∂(tr Σ_k⁻¹)/∂L_k, with a_k = Σ_k⁻¹ (x - μ_k)
        and the a_k and g before ∂ held."""
        xp, M, L = namespace(x), params["M"], params["L"]
        roots = self._columns(L) + 0 * M
        dM, dL = xp.empty_like(M), xp.empty_like(M)
        for k in range(len(M)):
            away, root = x - M[k], roots[k]
            v = 2 * away * root**2 - g
            v *= share[:, k : k + 1]
            dM[k] = -(root**2) * v.sum(axis=0)
            dL[k] = 2 * root * ((v * away).sum(axis=0) - share[:, k].sum())
        return {"M": dM, "L": self._reduced(dL)}

    def coloured(self, L: Array, noise: Array, k: Array) -> Array:
        """Noise with the variances of component ``k`` of each row."""
        return noise / self._columns(L)[k]

    def sums(self, ready: Params, both: Array, share: Array) -> Params:
        """Σ r, Σ r z and Σ r z²."""
        # BLAS is twice as quick with the long side first.
        total, d = (both.T @ share.T).T, both.shape[1] // 2
        return {"count": share.sum(axis=1), "x": total[:, :d], "xx": self._reduced(total[:, d:])}

    def about_offset(self, params: Params, sums: Params) -> Params:
        return sums

    def roots(self, xx: Array, count: Array, means: Array, floor: Array) -> Array:
        """L of the most likely variances of at least ``floor``."""
        variance = xx / count[:, None] - means * means
        return 1 / namespace(xx).sqrt(namespace(xx).maximum(variance, floor))

    def covariances(self, L: Array) -> Array:
        return 1 / (L * L)

    def least_variances(self, L: Array, floor: Array) -> Array:
        """The least variance of each component, in units of ``floor``."""
        return 1 / (L.astype(np.float64) ** 2 * floor).max(axis=1)


class _Spherical(_Diagonal):
    """One root of the precision for each component."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k,)

    def _columns(self, L: Array) -> Array:
        return L[:, None]

    def ready(self, params: Params) -> Params:
        ready, d = super().ready(params), params["M"].shape[1]
        return ready | {"linear": ready["linear"][:, : d + 1]}

    def rows(self, ready: Params, x: Array) -> Array:
        """(z, |z|²), shape (n, d + 1)."""
        xp, (n, d) = namespace(x), x.shape
        both = xp.empty((n, d + 1), np.float64)
        both[:, :d] = x - ready["near"]
        both[:, d] = xp.einsum("ij,ij->i", both[:, :d], both[:, :d])
        return both

    def sums(self, ready: Params, both: Array, share: Array) -> Params:
        """Σ r, Σ r z and Σ r |z|²."""
        total = (both.T @ share.T).T
        return {"count": share.sum(axis=1), "x": total[:, :-1], "xx": total[:, -1]}

    def _reduced(self, total: Array) -> Array:
        return total.sum(axis=1)

    def log_det(self, L: Array, d: int) -> Array:
        return d * namespace(L).log(abs(L.astype(np.float64)))

    def roots(self, xx: Array, count: Array, means: Array, floor: Array) -> Array:
        variance = (xx / count - (means * means).sum(axis=1)) / means.shape[1]
        return 1 / namespace(xx).sqrt(namespace(xx).maximum(variance, floor.mean()))

    def least_variances(self, L: Array, floor: Array) -> Array:
        return 1 / (L.astype(np.float64) ** 2 * floor.mean())


KINDS: dict[str, Any] = {"full": _Full(), "diag": _Diagonal(), "spherical": _Spherical()}
