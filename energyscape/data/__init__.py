"""Data sets, and what is done to rows and images before a model sees them."""

from energyscape.corruptions import Binarize
from energyscape.data.binary import binarize, threshold
from energyscape.data.clips import ClipExtractor
from energyscape.data.contrast import ContrastNormalize, LocalContrastNormalize
from energyscape.data.digits import data_home, load_digits, load_mnist
from energyscape.data.encoders import Hard, SoftThreshold, Triangle
from energyscape.data.filter_bank import FilterBank
from energyscape.data.images import (
    load_cifar10,
    load_images,
    load_olivetti,
    load_photographs,
    load_silhouettes,
)
from energyscape.data.jitter import Jitter
from energyscape.data.patch_features import PatchFeatures
from energyscape.data.patches import PatchExtractor
from energyscape.data.pooling import Pool
from energyscape.data.random_filters import RandomFilters
from energyscape.data.spectral import FrequencyWhitening
from energyscape.data.stages import Flatten, Rectify, Standardize
from energyscape.data.whitening import ZCA, PCAWhitening
from energyscape.sources import Blocks

__all__ = [
    "ZCA",
    "Binarize",
    "Blocks",
    "ClipExtractor",
    "ContrastNormalize",
    "FilterBank",
    "Flatten",
    "FrequencyWhitening",
    "Hard",
    "Jitter",
    "LocalContrastNormalize",
    "PCAWhitening",
    "PatchExtractor",
    "PatchFeatures",
    "Pool",
    "RandomFilters",
    "Rectify",
    "SoftThreshold",
    "Standardize",
    "Triangle",
    "binarize",
    "data_home",
    "load_cifar10",
    "load_digits",
    "load_images",
    "load_mnist",
    "load_olivetti",
    "load_photographs",
    "load_silhouettes",
    "threshold",
]
