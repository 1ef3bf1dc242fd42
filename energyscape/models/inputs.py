"""The door: users' data become `Rows`, with scikit-learn's checks and messages.

Arrays, data frames and sparse matrices in memory go through scikit-learn's own validation (without
a copy); CuPy arrays, memory maps, HDF5 datasets and `Blocks`, which it cannot take, get the same
checks here, and their rows a check for NaN as they are read.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils.validation import validate_data

from energyscape.backend import is_gpu_array, namespace, to_host
from energyscape.errors import DataRangeWarning
from energyscape.sources import Rows, is_stored, joined, open_rows

# Of the rows that tell the scale of what is read by blocks.
_SHOWN_BYTES = 64 << 20
# Kept as they are, and cast batch by batch; any other dtype is converted to float64 at once.
_DTYPES = [np.float64, np.float32, np.float16, np.bool_, *(np.dtype(c) for c in "bBhHiIlLqQ")]


def as_rows(estimator: Any, X: Any, reset: bool) -> Rows:
    """Checked rows of ``X``; sets ``n_features_in_`` when ``reset``, compares with it otherwise.

    Raises
    ------
    ValueError, TypeError
        In scikit-learn's words: wrong number of features, NaN or infinity, empty, not 2-D.
    """
    X = joined(X)
    if is_gpu_array(X) or is_stored(X):
        _check_foreign(estimator, X, reset)
    else:
        X = validate_data(
            estimator, X, reset=reset, dtype=_DTYPES, accept_sparse="csr", order=None, copy=False
        )
    return open_rows(X)


def _check_foreign(estimator: Any, X: Any, reset: bool) -> None:
    if len(X.shape) != 2:
        raise ValueError(f"Expected 2D array, got {len(X.shape)}D array instead")
    if X.dtype.kind not in "fiub":
        raise ValueError(f"dtype {X.dtype} is not numeric")
    n, d = X.shape
    if n < 1 or d < 1:
        name = "sample" if n < 1 else "feature"
        raise ValueError(f"Found array with 0 {name}(s) (shape=({n}, {d})) while 1 is required.")
    if reset:
        estimator.n_features_in_ = d
        if hasattr(estimator, "feature_names_in_"):
            del estimator.feature_names_in_
    elif d != estimator.n_features_in_:
        raise ValueError(
            f"X has {d} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    if is_gpu_array(X) and X.dtype.kind == "f" and not bool((X - X == 0).all()):
        raise ValueError("Input X contains NaN or infinity.")


def as_images(estimator: Any, X: Any, shape: tuple[int, ...] | None = None) -> Rows:
    """Checked images (n, h, w) or (n, h, w, channels) as `Rows`.

    Parameters
    ----------
    estimator : object
        Who asks, for messages.
    X : NumPy or CuPy array, nested lists, memory map or open HDF5 dataset, several of these, Blocks
    shape : tuple of int, optional
        What a single image must have.

    Raises
    ------
    ValueError
        For other numbers of dimensions, no images, shapes other than ``shape``, values that are no
        numbers, NaN and infinity.
    """
    name = type(estimator).__name__
    X = joined(X, 3)
    shapes = {x.shape for x in X if hasattr(x, "shape")} if isinstance(X, list | tuple) else set()
    if len(shapes) > 1:
        few = ", ".join(map(str, sorted(shapes)[:3]))
        raise ValueError(f"{name} needs images of one shape, X has {few}: crop or resize them")
    X = X if is_gpu_array(X) or is_stored(X) else np.asarray(X)
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} needs images of numbers, X has dtype {X.dtype}")
    if len(X.shape) not in (3, 4):
        raise ValueError(
            f"{name} needs images (n, h, w) or (n, h, w, channels), X has shape {X.shape}; rows of "
            "pixels become images by X.reshape(len(X), h, w), one image by X[None]"
        )
    if 0 in X.shape:
        raise ValueError(f"{name} needs at least one image of at least one pixel, got {X.shape}")
    if shape is not None and tuple(X.shape[1:]) != tuple(shape):
        raise ValueError(
            f"{name} was fitted to images of shape {tuple(shape)}, X has images of shape "
            f"{tuple(X.shape[1:])}"
        )
    if not is_stored(X) and X.dtype.kind == "f" and not bool(namespace(X).isfinite(X).all()):
        raise ValueError(f"Input X of {name} contains NaN or infinity.")
    return open_rows(X)


def as_clips(estimator: Any, X: Any, reset: bool) -> Rows:
    """Checked clips (n, t, n_features) as `Rows`; sets ``n_features_in_`` when ``reset``, compares
    with it otherwise.

    Raises
    ------
    ValueError
        For other numbers of dimensions, no clips, clips without frames, values that are no numbers,
        NaN and infinity.
    """
    name = type(estimator).__name__
    X = joined(X, 3)
    X = X if is_gpu_array(X) or is_stored(X) else np.asarray(X)
    if X.dtype.kind not in "fiub":
        raise ValueError(f"{name} needs clips of numbers, X has dtype {X.dtype}")
    if len(X.shape) != 3:
        raise ValueError(
            f"{name} needs clips (n, t, n_features), X has shape {tuple(X.shape)}; single frames "
            "become clips by X[:, None]"
        )
    if 0 in X.shape:
        raise ValueError(
            f"{name} needs at least one clip of at least one frame, X has shape {tuple(X.shape)}"
        )
    if reset:
        estimator.n_features_in_ = X.shape[2]
    elif X.shape[2] != estimator.n_features_in_:
        raise ValueError(
            f"X has frames of {X.shape[2]} features, but {name} is expecting "
            f"{estimator.n_features_in_} features as input."
        )
    if not is_stored(X) and X.dtype.kind == "f" and not bool(namespace(X).isfinite(X).all()):
        raise ValueError(f"Input X of {name} contains NaN or infinity.")
    return open_rows(X)


def value_range(X: Any) -> tuple[float, float]:
    """Smallest and largest value of an array, CSR matrix, or (first rows of) what is read."""
    if scipy.sparse.issparse(X):
        return float(min(X.min(), 0)), float(X.max())
    if is_stored(X):
        X = _first(X)
    return float(to_host(X.min())), float(to_host(X.max()))


def _first(X: Any, most: int | None = None) -> Any:
    """First rows of ``X`` within `_SHOWN_BYTES`, and ``most`` at most, but one at least."""
    rows = open_rows(X)
    n = max(1, _SHOWN_BYTES // max(1, rows.row_bytes))
    return rows.take(slice(0, n if most is None else min(n, most)))


def deviation(X: Any) -> float:
    """Root of the mean variance of the features, over the first rows."""
    x = _first(X, 10_000)
    return float(np.sqrt(to_host(x.var(axis=0, dtype=np.float64)).mean()))


def range_complaint(model: Any, X: Any) -> str | None:
    """What is wrong with the scale of ``X`` for the model's units, with the remedy; or None."""
    if hasattr(model, "scale_complaint"):
        return model.scale_complaint(X)
    if model.domain not in ("binary", "unit"):
        return None
    lo, hi = value_range(X)
    if not (lo < 0.0 or hi > 1.0):
        return None
    remedy = "X / 255" if lo >= 0 and 1 < hi <= 255 else "sklearn.preprocessing.MinMaxScaler"
    return (
        f"{type(model).__name__} has {model.domain} units and expects values in [0, 1]; X has "
        f"values in [{lo:.6g}, {hi:.6g}]. Scale it first ({remedy}), or use a model of real values"
    )


def warn_range(model: Any, X: Any) -> None:
    """Warn where `range_complaint` has something to say."""
    complaint = range_complaint(model, X)
    if complaint is not None:
        warnings.warn(complaint, DataRangeWarning, stacklevel=3)
