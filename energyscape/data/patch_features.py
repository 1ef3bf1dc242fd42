"""Images to features: a model of small patches applied at every place, and pooled.

What a model learns from random patches serves whole images: dense patches are encoded, and the
features are summed over a few regions of the image, which keeps roughly where they are and forgets
exactly where. With whitening, k-means and `Triangle` this is the pipeline of Coates, Lee and Ng
(2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from sklearn.base import ClassNamePrefixFeaturesOutMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from energyscape import io
from energyscape.backend import Array, draw_seed, is_gpu_array
from energyscape.convolution import pair, pool, windows
from energyscape.data.encoders import dictionary_of
from energyscape.data.patches import PatchExtractor, with_channels
from energyscape.data.transformer import ImageTransformer, in_blocks
from energyscape.models.inputs import as_images
from energyscape.registry import register
from energyscape.verbs import check_count

__all__ = ["PatchFeatures"]


@register
class PatchFeatures(ClassNamePrefixFeaturesOutMixin, ImageTransformer):
    """Pooled features of whole images from a model of their patches.

    Parameters
    ----------
    model : transformer or Pipeline
        Fitted to random patches as rows; a clone, so that it stays as it is. A transformer of this
        library or of scikit-learn, or a pipeline that ends in one.
    patch : int or (int, int), default 6
        Height and width.
    stride : int or (int, int), default 1
        Steps between the patches that ``transform`` encodes.
    pool : int or (int, int), default 2
        Regions down and across: 2 pools over quadrants. Unequal where they must be; 27 places are
        split 14 and 13, as Coates, Lee and Ng do.
    pooling : {"sum", "mean", "max"}, default "sum"
        Of a region. Sums (the paper's choice) count more in larger regions.
    encoder : callable, optional
        ``encoder(rows, dictionary)`` makes features of what the steps before the last give and of
        the ``cluster_centers_`` or ``components_`` of the last: `Triangle`, `Hard`,
        `SoftThreshold`. None takes the model's own ``transform``.
    n_patches : int, default 100_000
        Random patches to fit the model to.
    random_state : int, None, RandomState or Generator
        Of the patches; the model has its own.

    Attributes
    ----------
    model_ : estimator
        The fitted clone.
    image_shape_ : tuple of int
    n_features_per_region_ : int
        K; the feature k of the region (i, j) is column (i * pool + j) * K + k.
    seed_ : int

    References
    ----------
    Coates, A., Lee, H., Ng, A. (2011). An analysis of single-layer networks in unsupervised feature
    learning. AISTATS.

    Examples
    --------
    >>> from sklearn.cluster import KMeans
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.pipeline import make_pipeline
    >>> from energyscape.data import ZCA, ContrastNormalize, PatchFeatures, Triangle
    >>> model = make_pipeline(ContrastNormalize(), ZCA(), KMeans(20, n_init=1, random_state=0))
    >>> features = PatchFeatures(model, patch=4, encoder=Triangle(), n_patches=2000, random_state=0)
    >>> features.fit_transform(load_digits().images).shape
    (1797, 80)
    """

    model_: Any
    image_shape_: tuple[int, ...]
    n_features_per_region_: int
    seed_: int

    def __init__(
        self,
        model: Any,
        patch: int | tuple[int, int] = 6,
        stride: int | tuple[int, int] = 1,
        pool: int | tuple[int, int] = 2,
        pooling: str = "sum",
        encoder: Any = None,
        n_patches: int = 100_000,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.patch = patch
        self.stride = stride
        self.pool = pool
        self.pooling = pooling
        self.encoder = encoder
        self.n_patches = n_patches
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Any:
        """Fit a clone of ``model`` to random patches.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            NumPy or CuPy array, memory map or open HDF5 dataset. float32 and float64 are kept;
            8-bit integers are computed in float32, other integers in float64.
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X holds no images, or the patches or regions are too large for them.
        """
        rows = as_images(self, X)
        self._check_settings(rows.event_shape)
        seed = draw_seed(self.random_state)
        extractor = PatchExtractor(self.patch, self.n_patches, random_state=seed)
        patches = extractor.set_output(transform="default").fit_transform(rows.X)
        model = clone(self.model).fit(patches)
        self.image_shape_, self.seed_, self.model_ = tuple(rows.event_shape), seed, model
        self.n_features_per_region_ = self._encode(patches[:1]).shape[1]
        return self

    def transform(self, X: Any) -> Any:
        """Pooled features of each image, worked through in blocks of images.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of the shape seen in ``fit``.

        Returns
        -------
        array, shape (n, pool * pool * K), container of X, dtype of the features

        Raises
        ------
        ValueError
            If the images have another shape than those of ``fit``.
        """
        check_is_fitted(self)
        rows = as_images(self, X, self.image_shape_)
        down, across = self._places(self.image_shape_)
        ph, pw = pair("patch", self.patch)
        # Patches, what a step before the encoder makes of them, and the map of features twice.
        channels = int(np.prod(self.image_shape_[2:]))
        width = 2 * (ph * pw * channels + self.n_features_per_region_)
        itemsize = np.dtype(rows.dtype).itemsize
        return in_blocks(rows, self._pooled, down * across * width * itemsize)

    def _pooled(self, x: Array) -> Array:
        patch, stride = pair("patch", self.patch), pair("stride", self.stride)
        found = windows(with_channels(x), patch, stride)
        n, down, across = found.shape[:3]
        features = self._encode(found.reshape(n * down * across, -1))
        maps = features.reshape(n, down, across, -1)
        return pool(maps, self.pooling, grid=self.pool).reshape(n, -1)

    def _encode(self, patches: Array) -> Array:
        """Features of patches, shape (m, K)."""
        if self.encoder is None:
            return _plain(self.model_.transform(patches))
        if not isinstance(self.model_, Pipeline):
            return self.encoder(patches, dictionary_of(self.model_))
        last = self.model_.steps[-1][1]
        before = self.model_[:-1].transform(patches) if len(self.model_) > 1 else patches
        return self.encoder(_plain(before), dictionary_of(last))

    def _places(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Places of a patch, down and across."""
        (ph, pw), (down, across) = pair("patch", self.patch), pair("stride", self.stride)
        return (shape[0] - ph) // down + 1, (shape[1] - pw) // across + 1

    def _check_settings(self, shape: tuple[int, ...]) -> None:
        check_count("PatchFeatures.n_patches", self.n_patches)
        if self.pooling not in ("sum", "mean", "max"):
            raise ValueError(
                f"PatchFeatures.pooling must be 'sum', 'mean' or 'max', got {self.pooling!r}"
            )
        if self.encoder is not None and (
            isinstance(self.encoder, type) or not callable(self.encoder)
        ):
            raise ValueError(
                "PatchFeatures.encoder must be None or an instance such as Triangle(), got "
                f"{self.encoder!r}"
            )
        ph, pw = pair("PatchFeatures.patch", self.patch)
        if ph > shape[0] or pw > shape[1]:
            raise ValueError(
                f"PatchFeatures.patch of {ph}×{pw} does not fit into images of "
                f"{shape[0]}×{shape[1]}"
            )
        pair("PatchFeatures.stride", self.stride)
        grid, places = pair("PatchFeatures.pool", self.pool), self._places(shape)
        if grid[0] > places[0] or grid[1] > places[1]:
            raise ValueError(
                f"PatchFeatures.pool asks for {grid[0]}×{grid[1]} regions, there are "
                f"{places[0]}×{places[1]} places of a patch: take fewer, or a smaller stride"
            )

    def file_state(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """What a file holds besides the constructor's arguments, the fitted model included."""
        check_is_fitted(self)
        model, arrays = io.describe(self.model_)
        arrays = {f"model/{key}": value for key, value in arrays.items()}
        fitted = {
            "image_shape": list(self.image_shape_),
            "seed": self.seed_,
            "n_features_per_region": self.n_features_per_region_,
            "model": model,
        }
        return fitted, arrays

    def set_file_state(self, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Take up what `file_state` gave."""
        self.model_ = io.restore(meta["model"], io.under(arrays, "model/"))
        self.image_shape_ = tuple(int(v) for v in meta["image_shape"])
        self.seed_ = int(meta["seed"])
        self.n_features_per_region_ = int(meta["n_features_per_region"])

    @property
    def _n_features_out(self) -> int:
        grid = pair("pool", self.pool)
        return grid[0] * grid[1] * self.n_features_per_region_


def _plain(features: Any) -> Array:
    """An array also where a step gives sparse rows or, by ``set_output``, data frames."""
    if scipy.sparse.issparse(features):
        return features.toarray()
    return features if is_gpu_array(features) else np.asarray(features)
