"""What transformers of rows share: blocks within the working memory, containers, pickles, files."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from energyscape import io
from energyscape.backend import Array, device_of, is_gpu_array, namespace, to_device, to_host
from energyscape.errors import FileFormatError
from energyscape.models.inputs import as_rows
from energyscape.registry import from_tree, to_tree
from energyscape.sources import Rows, rows_per_block

# Rows that are worked on at once by the CPU: they and what is made of them stay in its caches.
_CACHED_BYTES = 8 << 20


class Transformer(TransformerMixin, BaseEstimator):
    """A transformer whose fitted attributes are arrays, numbers and tuples, as its files are."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {k: to_host(v) if is_gpu_array(v) else v for k, v in state.items()}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted transformer to an HDF5 file; see `energyscape.save`."""
        io.save(self, path)

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments: numbers, and named arrays."""
        check_is_fitted(self)
        values, arrays = {}, {}
        for name, value in vars(self).items():
            if not _is_fitted_name(name):
                continue
            if name == "feature_names_in_":
                values[name] = [str(v) for v in value]
            elif is_gpu_array(value) or isinstance(value, np.ndarray):
                arrays[name] = to_host(value)
            else:
                values[name] = to_tree(value)
        return {"fitted": values}, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        values = {name: from_tree(tree) for name, tree in meta["fitted"].items()}
        if "feature_names_in_" in values:
            values["feature_names_in_"] = np.asarray(values["feature_names_in_"], dtype=object)
        for name, value in (values | arrays).items():
            if not _is_fitted_name(name):
                raise FileFormatError(f"{name!r} is no fitted attribute")
            setattr(self, name, value)

    def _at(self, x: Array, *names: str) -> list[Array]:
        """Fitted arrays on the device and in the dtype of ``x``."""
        device = device_of(x)
        return [to_device(getattr(self, n), device).astype(x.dtype, copy=False) for n in names]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class ImageTransformer(Transformer):
    """A transformer of images (n, h, w) or (n, h, w, channels)."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = False, True
        return tags


class RowTransformer(Transformer):
    """A transformer of rows (n, n_features): NumPy or CuPy arrays, data frames, CSR, stored ones.

    float32 and float64 are kept; bool, 8-bit integers and float16 are computed in float32, other
    integers in float64. Subclasses write ``_apply(x)``, which must not write to ``x``.
    """

    def transform(self, X: Any) -> Any:
        """Each row transformed.

        Parameters
        ----------
        X : array, shape (n, n_features)

        Returns
        -------
        array, shape (n, n_features_out), container and dtype of X
        """
        check_is_fitted(self)
        rows = as_rows(self, X, reset=False)
        return in_blocks(rows, self._apply)

    def _apply(self, x: Array) -> Array:
        raise NotImplementedError

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


def check_regularization(whitening: Any) -> None:
    """Raise ValueError unless the ``regularization`` of a transformer is finite and >= 0."""
    value = whitening.regularization
    if not isinstance(value, numbers.Real) or not 0 <= float(value) < np.inf:
        name = type(whitening).__name__
        raise ValueError(f"{name}.regularization must be >= 0 and finite, got {value!r}")


def block_rows(x: Any, row_bytes: int) -> int:
    """Rows of a block: within the ``working_memory``, and on the CPU also within its caches."""
    rows = rows_per_block(row_bytes)
    return rows if is_gpu_array(x) else max(1, min(rows, _CACHED_BYTES // max(1, row_bytes)))


def row_blocks(rows: Rows) -> Any:
    """One pass over ``rows`` in blocks of a size that suits float64 copies of them."""
    return rows.blocks(block_rows(rows.X, 8 * int(np.prod(rows.event_shape))))


def apart(part: Array, given: Array) -> Array:
    """``part`` in memory of its own, so that who writes to it leaves what was given alone."""
    return part.copy() if namespace(part).may_share_memory(part, given) else part


def in_blocks(rows: Rows, function: Callable[[Array], Array], row_bytes: int = 0) -> Array:
    """``function`` of all rows, put together from blocks of rows."""
    size = block_rows(rows.X, row_bytes or 16 * int(np.prod(rows.event_shape)))
    out, lo = None, 0
    for block in rows.blocks(size):
        part = function(block)
        if len(part) == len(rows):
            return apart(part, block)
        if out is None:
            out = namespace(part).empty((len(rows), *part.shape[1:]), part.dtype)
        out[lo : lo + len(part)] = part
        lo += len(part)
    return out


def _is_fitted_name(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_")
