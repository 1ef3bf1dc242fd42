"""The energy of codes without what they pay: ½|x - Dh|² + (α/2)|h - f|², in Gram form.

    ½ h'Gh - c'h + ½ squares,    G = D'D + αI,  c = D'x + αf,  squares = |x|² + α|f|²

which is a lasso's least squares with √α I under D and √α f under x. All solvers see this alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.kernels import norm

_SQUARINGS = 5


@dataclass(frozen=True)
class Gram:
    """What all rows share.

    Attributes
    ----------
    D : array, shape (n_features, m)
        Dictionary, atoms in columns.
    alpha : float
        α >= 0.
    G : array, shape (m, m)
        D'D + αI.
    bound : float
        At least the largest eigenvalue of G.
    """

    D: Array
    alpha: float
    G: Array
    bound: float

    @classmethod
    def of(cls, D: Array, alpha: float = 0.0) -> Gram:
        """The Gram matrix of a dictionary, in its dtype."""
        G = D.T @ D
        # D D' has the same largest eigenvalue, and may be a far smaller matrix.
        bound = largest_eigenvalue(D @ D.T if D.shape[0] < D.shape[1] else G) + alpha
        if alpha:
            G.ravel()[:: len(G) + 1] += G.dtype.type(alpha)
        return cls(D, alpha, G, bound)

    def double(self) -> Gram:
        """The same in float64; what `largest_eigenvalue` adds for rounding covers that of D'D."""
        D = self.D.astype(np.float64)
        G = D.T @ D
        if self.alpha:
            G.ravel()[:: len(G) + 1] += self.alpha
        return Gram(D, self.alpha, G, self.bound)


@dataclass(frozen=True)
class DirectRows:
    """Rows whose residuals are made by D and not by G: without its rounding, and for a few
    residuals at less cost than G.

    Attributes
    ----------
    D : array, shape (n_features, m)
    alpha : float
    x : array, shape (n, n_features)
    f : array, shape (n, m), or None for 0
    squares : array, shape (n,)
        |x|² + α|f|².
    """

    D: Array
    alpha: float
    x: Array
    f: Array
    squares: Array

    @classmethod
    def of(cls, D: Array, alpha: float, x: Array, f: Array = None) -> DirectRows:
        """The rows ``x``, with predictions ``f``, which do not matter at an ``alpha`` of 0."""
        squares = _squares(x)
        if alpha and f is not None:
            squares += alpha * _squares(f)
        return cls(D, alpha, x, f if alpha else None, squares)

    def __getitem__(self, rows: Array) -> DirectRows:
        f = None if self.f is None else self.f[rows]
        return replace(self, x=self.x[rows], f=f, squares=self.squares[rows])

    @property
    def c(self) -> Array:
        """D'x + αf."""
        c = self.x @ self.D
        if self.f is not None:
            c += c.dtype.type(self.alpha) * self.f
        return c

    def residual(self, gram: Gram, h: Array) -> tuple[Array, Array]:
        """As `Rows.residual`; ``gram`` is not looked at."""
        rest = h @ self.D.T
        namespace(h).subtract(self.x, rest, out=rest)
        q, squares = rest @ self.D, _squares(rest)
        if self.alpha:
            away = -h if self.f is None else self.f - h
            squares += self.alpha * _squares(away)
            if self.alpha != 1:
                away *= away.dtype.type(self.alpha)
            q += away
        return q, squares


@dataclass(frozen=True)
class Rows:
    """What differs from row to row.

    Attributes
    ----------
    c : array, shape (n, m)
        D'x + αf.
    squares : array, shape (n,)
        |x|² + α|f|².
    direct : DirectRows, optional
        What makes residuals, in place of G.
    """

    c: Array
    squares: Array
    direct: DirectRows | None = None

    @classmethod
    def of(cls, gram: Gram, x: Array, f: Array = None, direct: bool = False) -> Rows:
        """The rows ``x`` of shape (n, n_features), with predictions ``f`` of shape (n, m)."""
        rows = DirectRows.of(gram.D, gram.alpha, x, f)
        return cls(rows.c, rows.squares, rows if direct else None)

    def __getitem__(self, rows: Array) -> Rows:
        direct = None if self.direct is None else self.direct[rows]
        return Rows(self.c[rows], self.squares[rows], direct)

    def __len__(self) -> int:
        return len(self.c)

    def residual(self, gram: Gram, h: Array) -> tuple[Array, Array]:
        """q = c - Gh, shape (n, m), and |residual|², shape (n,), float64."""
        if self.direct is not None:
            return self.direct.residual(gram, h)
        q = h @ gram.G
        namespace(q).subtract(self.c, q, out=q)
        return q, self.rest(h, q)

    def rest(self, h: Array, q: Array) -> Array:
        """|x - Dh|² + α|h - f|² given q: squares - h'(c + q), shape (n,), float64."""
        xp = namespace(h)
        inner = xp.einsum("ij,ij->i", h, self.c) + xp.einsum("ij,ij->i", h, q)
        return xp.maximum(self.squares - inner, 0.0)


def largest_eigenvalue(G: Array) -> float:
    """An upper bound of the largest eigenvalue of a symmetric positive semi-definite matrix.

    (Σ λ^p)^(1/p) at p = 64, by squaring: at most r^(1/64) times the largest where r eigenvalues are
    as large, 5 % of 20. A power iteration's estimate is a *lower* bound, with which proximal steps
    need not go down.

    Parameters
    ----------
    G : array, shape (m, m)

    Returns
    -------
    float
    """
    xp = namespace(G)
    top = abs(G).max()  # squares of what is far from 1 would leave the range of float32
    top = xp.where(top > 0, top, 1)
    P, log = G / top, xp.log(top.astype(np.float64))
    for i in range(_SQUARINGS + 1):
        size = norm(P).astype(np.float64)  # of the last P, Σ λ^64 is its square
        scale = xp.where(size > 0, size, 1.0)
        log = log + xp.log(scale) / 2**i
        if i < _SQUARINGS:
            P = P / scale.astype(P.dtype)
            P = P @ P.T  # symmetric: half of it is computed
    # One wait for the device; rounding of the products is far below what is added here.
    return float(xp.exp(log) * (size > 0)) * (1.0 + 1e3 * float(np.finfo(G.dtype).eps))


def _squares(x: Array) -> Array:
    return namespace(x).einsum("ij,ij->i", x, x).astype(np.float64)
