"""Features of rows from a dictionary, whatever trained it.

How a dictionary is read matters more than how it was learned (Coates and Ng, 2011), so that the
encoder is an object of its own: rows of a fitted model (``cluster_centers_`` or ``components_``)
and patches make features by one product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_device
from energyscape.registry import register

__all__ = ["Hard", "SoftThreshold", "Triangle"]


def dictionary_of(model: Any) -> Any:
    """Rows that an encoder compares with, shape (K, d): centres, else components.

    Raises
    ------
    ValueError
        If the fitted model has neither.
    """
    for name in ("cluster_centers_", "components_"):
        if hasattr(model, name):
            return getattr(model, name)
    raise ValueError(
        "an encoder needs a model with cluster_centers_ or components_, "
        f"{type(model).__name__} has neither; use encoder=None, which takes the model's own "
        "transform"
    )


class _Encoder(BaseEstimator):
    """Called with rows and a dictionary, both 2-D."""

    def __call__(self, z: Array, dictionary: Any) -> Array:
        """Features of each row.

        Parameters
        ----------
        z : array, shape (n, d)
        dictionary : array, shape (K, d)

        Returns
        -------
        array, shape (n, K) or (n, 2 K), container and dtype of z
        """
        if not is_gpu_array(dictionary):
            dictionary = np.asarray(dictionary)
        D = to_device(dictionary, device_of(z)).astype(z.dtype, copy=False)
        if z.shape[1] != D.shape[1]:
            raise ValueError(f"the dictionary has rows of {D.shape[1]} values, z of {z.shape[1]}")
        return self._encode(z, D)

    def _encode(self, z: Array, D: Array) -> Array:
        raise NotImplementedError


@register
class Hard(_Encoder):
    """1 for the nearest row of the dictionary, 0 for all others; the first of equally near ones."""

    def _encode(self, z: Array, D: Array) -> Array:
        xp, (z, D) = namespace(z), _centred(z, D)
        # ½|z|² is the same for all: the nearest has the largest z·D - ½|D|².
        score = z @ D.T
        score -= _squares(D) / 2
        return (xp.argmax(score, axis=1)[:, None] == xp.arange(len(D))).astype(z.dtype)


@register
class Triangle(_Encoder):
    """How much nearer than the mean a row of the dictionary is: max(0, mean_j(z_j) - z_k).

    z_k are Euclidean distances (not squared). About half of the features are 0 (Coates, Lee and Ng,
    2011, equation 4).
    """

    def _encode(self, z: Array, D: Array) -> Array:
        xp, (z, D) = namespace(z), _centred(z, D)
        f = z @ (-2 * D).T
        f += _squares(D)
        f += _squares(z)[:, None]
        # Rounding makes squares of small distances negative. The smaller of two arrays costs NumPy
        # half of what that of an array and a number does, hence no 0 here and below.
        xp.maximum(f, xp.zeros(len(D), f.dtype), out=f)
        xp.sqrt(f, out=f)
        mean = f.mean(axis=1)[:, None]
        xp.minimum(f, mean, out=f)
        return xp.subtract(mean, f, out=f)


@register
class SoftThreshold(_Encoder):
    """Responses above a threshold: max(0, D z - alpha) (Coates and Ng, 2011).

    Parameters
    ----------
    alpha : float, default 0.25
        In units of D z. The paper has rows of D of norm 1, and of rows of another norm the
        threshold is as much nearer or farther; nothing is scaled here.
    split : bool, default False
        Also max(0, -D z - alpha), as the paper does: (n, 2 K) features, the positive ones first.
    """

    def __init__(self, alpha: float = 0.25, split: bool = False) -> None:
        self.alpha = alpha
        self.split = split

    def _encode(self, z: Array, D: Array) -> Array:
        xp, K = namespace(z), len(D)
        if not self.split:
            f = z @ D.T
        else:
            f = xp.empty((len(z), 2 * K), z.dtype)
            xp.matmul(z, D.T, out=f[:, :K])
            xp.negative(f[:, :K], out=f[:, K:])
        f -= z.dtype.type(self.alpha)
        return xp.maximum(f, 0, out=f)


def _centred(z: Array, D: Array) -> tuple[Array, Array]:
    """About the dictionary's mean, where squares do not cancel."""
    centre = D.mean(axis=0)
    return z - centre, D - centre


def _squares(x: Array) -> Array:
    """Squared norm of each row, summed in float64, in the dtype of ``x``."""
    return (x * x).sum(axis=1, dtype=np.float64).astype(x.dtype)
