"""Densities that can be drawn from and have a known Z, fitted to data: where annealing begins."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import gammaln

from energyscape.backend import Array, namespace, to_host
from energyscape.samplers.target import FunctionTarget
from energyscape.verbs import check_count

# Share of the mean variance that is added to every variance: as many rows as features suffice.
_RIDGE = 1e-6


class _Elliptic(FunctionTarget):
    """A function of the Mahalanobis distance |L⁻¹(x - m)|² for points of shape (d,)."""

    def __init__(self, mean: Array, scale: Array) -> None:
        super().__init__(self._own_energy, self._own_grad, tuple(mean.shape))
        if mean.ndim != 1 or scale.shape != (len(mean), len(mean)):
            raise ValueError(
                f"wanted a mean (d,) and a matrix (d, d), got {mean.shape} and {scale.shape}"
            )
        real = _real(mean)
        self.mean = mean.astype(real, copy=False)
        self.scale = scale.astype(_real(scale), copy=False)
        xp = namespace(mean)
        wide = to_host(scale).astype(np.float64)
        try:
            root = np.linalg.cholesky(wide)
        except np.linalg.LinAlgError:
            raise ValueError("the covariance is not positive definite") from None
        self.half_log_det = float(np.log(np.diag(root)).sum())
        self.root = xp.asarray(root.astype(real))
        self.precision = xp.asarray(np.linalg.inv(wide).astype(real))
        self.name = type(self).__name__

    @property
    def like(self) -> Array:
        return self.mean

    def _offset(self, x: Array) -> tuple[Array, Array, Array]:
        """x - m, its product with the precision, and the squared distance in float64."""
        d = x - self.mean
        pulled = d @ self.precision
        return d, pulled, (d * pulled).sum(axis=1, dtype=np.float64)

    def _own_energy(self, x: Array) -> Array:
        raise NotImplementedError

    def _own_grad(self, x: Array) -> Array:
        raise NotImplementedError


def _moments(X: Array) -> tuple[Array, Array]:
    xp = namespace(X)
    if X.ndim != 2 or len(X) < 2:
        raise ValueError(f"at least two rows of shape (d,) are wanted, got shape {X.shape}")
    wide = X.astype(np.float64)
    mean = wide.mean(axis=0)
    wide = wide - mean
    covariance = wide.T @ wide / (len(X) - 1)
    average = covariance.trace() / len(mean)
    covariance = covariance + _RIDGE * average * xp.eye(len(mean))
    return mean.astype(_real(X)), covariance.astype(_real(X))


def _real(x: Array) -> Any:
    """The dtype of real numbers; float64 for integers and bits, whose mean is none."""
    return x.dtype if x.dtype.kind == "f" else np.dtype(np.float64)


class Gaussian(_Elliptic):
    """N(mean, covariance), with energy |L⁻¹(x - m)|²/2.

    Parameters
    ----------
    mean : array, shape (d,)
    covariance : array, shape (d, d)
    """

    def __init__(self, mean: Array, covariance: Array) -> None:
        super().__init__(mean, covariance)

    @classmethod
    def fit(cls, X: Array) -> Gaussian:
        """Mean and covariance of the rows of ``X``, shape (n, d)."""
        return cls(*_moments(X))

    def _own_energy(self, x: Array) -> Array:
        return 0.5 * self._offset(x)[2]

    def _own_grad(self, x: Array) -> Array:
        return self._offset(x)[1]

    def sample(self, n: int, rng: Any) -> Array:
        """``n`` exact draws, shape (n, d)."""
        z = rng.normal((n, len(self.mean)), self.mean.dtype)
        return z @ self.root.T + self.mean

    def log_partition(self) -> float:
        """log ∫ exp(-energy)."""
        return 0.5 * len(self.mean) * math.log(2 * math.pi) + self.half_log_det


class StudentT(_Elliptic):
    """Student's t in d dimensions, energy (ν + d)/2 · log(1 + |L⁻¹(x - m)|²/ν): heavy tails.

    A Gaussian base under a target of heavier tails gives weights of infinite variance wherever the
    path takes a large step; this one does not.

    Parameters
    ----------
    mean : array, shape (d,)
    scale : array, shape (d, d)
        LL', the covariance times (ν - 2)/ν.
    df : int, default 5
        ν, at least 1: a whole number, so that draws need normals alone.
    """

    def __init__(self, mean: Array, scale: Array, df: int = 5) -> None:
        check_count("StudentT.df", df)
        super().__init__(mean, scale)
        self.df = df

    @classmethod
    def fit(cls, X: Array, df: int = 5) -> StudentT:
        """Mean and covariance of the rows of ``X``, shape (n, d); needs ν >= 3."""
        check_count("StudentT.df", df, 3)
        mean, covariance = _moments(X)
        return cls(mean, covariance * covariance.dtype.type((df - 2) / df), df)

    def _own_energy(self, x: Array) -> Array:
        return 0.5 * (self.df + len(self.mean)) * namespace(x).log1p(self._offset(x)[2] / self.df)

    def _own_grad(self, x: Array) -> Array:
        _, pulled, distance = self._offset(x)
        weight = (self.df + len(self.mean)) / (self.df + distance)
        return pulled * weight.astype(x.dtype)[:, None]

    def sample(self, n: int, rng: Any) -> Array:
        """``n`` exact draws, shape (n, d)."""
        z = rng.normal((n, len(self.mean)), self.mean.dtype)
        g = rng.normal((n, self.df), np.float64)
        xp = namespace(z)
        stretch = xp.sqrt(self.df / (g * g).sum(axis=1)).astype(z.dtype)
        return (z @ self.root.T) * stretch[:, None] + self.mean

    def log_partition(self) -> float:
        """log ∫ exp(-energy)."""
        d, df = len(self.mean), self.df
        shape = float(gammaln(df / 2) - gammaln((df + d) / 2))
        return shape + 0.5 * d * math.log(df * math.pi) + self.half_log_det
