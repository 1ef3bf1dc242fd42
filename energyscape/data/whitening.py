"""Whitening: rows turned and scaled so that their covariance is the identity, or nearly.

With the covariance C = V diag(λ) V' of the training rows, z = S (x - mean), S = diag(s) V' for PCA
whitening and S = V diag(s) V' for ZCA, s = 1/√(λ + ε). The covariance of z is then λ/(λ + ε) in
every direction: ε keeps directions of little variance, mostly noise, from being blown up. ZCA is
the one whitening that moves rows the least, so that images remain images (Bell and Sejnowski,
1997).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin
from sklearn.utils.validation import check_array, check_is_fitted

from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_device, to_host
from energyscape.data.transformer import RowTransformer, check_regularization, in_blocks, row_blocks
from energyscape.models.inputs import as_rows
from energyscape.registry import register
from energyscape.sources import Rows

__all__ = ["ZCA", "PCAWhitening"]


class _Whitening(RowTransformer):
    """Mean and covariance of rows that come in blocks, and the linear map made from them."""

    regularization: float

    mean_: Array
    covariance_: Array
    components_: Array
    mixing_: Array

    def fit(self, X: Any, y: Any = None) -> Any:
        """Mean and covariance of the rows, added up in float64 by blocks.

        Parameters
        ----------
        X : array, shape (n, n_features)
            NumPy or CuPy array, data frame, CSR matrix, memory map or open HDF5 dataset.
        y : ignored

        Returns
        -------
        self
        """
        check_regularization(self)
        rows = as_rows(self, X, reset=True)
        self.n_samples_seen_ = 0
        return self._take_in(rows)

    def partial_fit(self, X: Any, y: Any = None) -> Any:
        """Add rows to those seen so far; in the end as one ``fit`` on all of them.

        Parameters
        ----------
        X : array, shape (n, n_features)
        y : ignored

        Returns
        -------
        self
        """
        check_regularization(self)
        first = not hasattr(self, "n_samples_seen_")
        rows = as_rows(self, X, reset=first)
        if first:
            self.n_samples_seen_ = 0
        return self._take_in(rows)

    def inverse_transform(self, X: Any) -> Any:
        """Rows from whitened ones: the exact inverse where no direction was left out.

        Parameters
        ----------
        X : array, shape (n, n_features_out)

        Returns
        -------
        array, shape (n, n_features), container and dtype of X
        """
        check_is_fitted(self)
        if not is_gpu_array(X):
            X = check_array(X, dtype=[np.float64, np.float32])
        if len(X.shape) != 2 or X.shape[1] != len(self.components_):
            raise ValueError(
                f"X has shape {X.shape}; {type(self).__name__} inverts rows of shape "
                f"(n, {len(self.components_)})"
            )
        return in_blocks(Rows(X), self._undo)

    def _apply(self, x: Array) -> Array:
        mean, components = self._at(x, "mean_", "components_")
        return (x - mean) @ components.T

    def _undo(self, z: Array) -> Array:
        mean, mixing = self._at(z, "mean_", "mixing_")
        x = z @ mixing.T
        x += mean
        return x

    def _take_in(self, rows: Rows) -> Any:
        n = self.n_samples_seen_
        mean: Any = None
        scatter: Any = None
        if n:
            device = device_of(rows.X)
            mean = to_device(self.mean_, device)
            scatter = to_device(self.covariance_, device) * max(n - 1, 1)
        for block in row_blocks(rows):
            x = block.astype(np.float64)
            m, own = len(x), x.mean(axis=0)
            x -= own
            if mean is None:
                n, mean, scatter = m, own, x.T @ x
                continue
            # Two sets of rows joined (Chan, Golub and LeVeque, 1983): no large numbers cancel.
            gap = own - mean
            scatter += x.T @ x
            scatter += (n * m / (n + m)) * (gap[:, None] * gap)
            mean = mean + gap * (m / (n + m))
            n += m
        self.n_samples_seen_, self.mean_, self.covariance_ = n, mean, scatter / max(n - 1, 1)
        self._solve()
        return self

    def _solve(self) -> None:
        """The maps there and back, from the covariance; on the host, where d×d is small."""
        value, vector = np.linalg.eigh(to_host(self.covariance_))
        value, vector = np.maximum(value[::-1], 0), vector[:, ::-1].T
        # Signs that do not depend on LAPACK: the largest entry of each direction is positive.
        largest = np.abs(vector).argmax(axis=1)
        vector = vector * np.where(vector[np.arange(len(vector)), largest] < 0, -1, 1)[:, None]
        self.epsilon_ = float(self.regularization * value.mean())
        deviation = np.sqrt(value + self.epsilon_)
        # Directions that only rounding gave a variance are constant: they become 0.
        eps = np.finfo(np.float64).eps
        of_mean = 16 * eps * np.linalg.norm(to_host(self.mean_))
        varies = value + self.epsilon_ > max(len(value) * eps * value[0], of_mean**2)
        scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
        there, back = self._maps(vector, scale, np.where(varies, deviation, 0))
        device = self.mean_
        self.explained_variance_ = _like(value[: self._kept(len(value))], device)
        self.components_, self.mixing_ = _like(there, device), _like(back, device)

    def _kept(self, d: int) -> int:
        return d

    def _maps(
        self, vector: np.ndarray, scale: np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError


def _like(value: np.ndarray, other: Array) -> Array:
    return namespace(other).asarray(np.ascontiguousarray(value))


@register
class ZCA(OneToOneFeatureMixin, _Whitening):
    """Whitening that stays as near to the rows as it can: z = V (λ + ε)^(-1/2) V' (x - mean).

    Parameters
    ----------
    regularization : float, default 0.1
        ε as a multiple of the mean variance of the features (the mean of λ), so that the scale of
        the rows does not matter. On contrast-normalised patches, whose mean variance is about 1,
        0.1 is the ε of Coates, Lee and Ng (2011).

    Attributes
    ----------
    mean_ : array, shape (n_features,)
    covariance_ : array, shape (n_features, n_features)
        With n - 1 in the denominator.
    explained_variance_ : array, shape (n_features,)
        λ, the largest first.
    epsilon_ : float
        ε, in squared units of the rows.
    components_ : array, shape (n_features, n_features)
        The symmetric map: transform(x) = (x - mean_) @ components_.T.
    mixing_ : array, shape (n_features, n_features)
        Its inverse.
    n_samples_seen_, n_features_in_ : int

    References
    ----------
    Bell, A. and Sejnowski, T. (1997). The "independent components" of natural scenes are edge
    filters. Vision Research 37(23).
    Coates, A., Lee, H., Ng, A. (2011). An analysis of single-layer networks in unsupervised feature
    learning. AISTATS.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.data import ZCA
    >>> X = np.random.default_rng(0).standard_normal((100, 3)) * [1, 5, 20]
    >>> Z = ZCA(regularization=0.0).fit_transform(X)
    >>> np.allclose(np.cov(Z.T), np.eye(3))
    True
    """

    def __init__(self, regularization: float = 0.1) -> None:
        self.regularization = regularization

    def _maps(
        self, vector: np.ndarray, scale: np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return (vector.T * scale) @ vector, (vector.T * deviation) @ vector


@register
class PCAWhitening(ClassNamePrefixFeaturesOutMixin, _Whitening):
    """Principal components at unit variance: z = (λ + ε)^(-1/2) V' (x - mean).

    Parameters
    ----------
    n_components : int, optional
        Directions to keep, those of the largest variance; None keeps all.
    regularization : float, default 0.0
        ε as a multiple of the mean variance of the features. Directions without variance become 0
        also where ε is 0.

    Attributes
    ----------
    mean_ : array, shape (n_features,)
    covariance_ : array, shape (n_features, n_features)
    explained_variance_ : array, shape (n_components,)
        λ, the largest first.
    epsilon_ : float
    components_ : array, shape (n_components, n_features)
        transform(x) = (x - mean_) @ components_.T; its rows are scaled (as FastICA's are).
    mixing_ : array, shape (n_features, n_components)
        The way back: x = z @ mixing_.T + mean_, within the directions kept.
    n_samples_seen_, n_features_in_ : int
    """

    def __init__(self, n_components: int | None = None, regularization: float = 0.0) -> None:
        self.n_components = n_components
        self.regularization = regularization

    def _kept(self, d: int) -> int:
        k = d if self.n_components is None else self.n_components
        if not isinstance(k, int | np.integer) or not 1 <= k <= d:
            raise ValueError(
                f"PCAWhitening.n_components must be None or an int from 1 to the {d} features, got "
                f"{k!r}"
            )
        return int(k)

    def _maps(
        self, vector: np.ndarray, scale: np.ndarray, deviation: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        k = self._kept(len(vector))
        return scale[:k, None] * vector[:k], vector[:k].T * deviation[:k]

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)
