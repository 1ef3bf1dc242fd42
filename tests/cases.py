"""One row per model: what it is made with, small data, and the trainers that fit it.

Laws, files, trainer pairs and the agreement of NumPy and CuPy run over these rows, so a new model
inherits them by adding one; scikit-learn's own checks have their list in test_sklearn.py.
``trainers`` are the declared pairs; every other registered trainer must refuse the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from energyscape.models import (
    ICA,
    LISTA,
    PCA,
    PSD,
    RBM,
    RICA,
    AutoEncoder,
    ConvPSD,
    ConvSparseCoding,
    CovarianceRBM,
    DeepAutoEncoder,
    DeepBoltzmannMachine,
    FactorAnalysis,
    FieldsOfExperts,
    GaussianMixture,
    GaussianRBM,
    KMeans,
    LocalPSD,
    McRBM,
    MPoT,
    OvercompleteICA,
    PoT,
    SiameseEncoder,
    SparseCoding,
    TiledMPoT,
    TiledRBM,
    WhatWhere,
)
from energyscape.models.conv_encoders import (
    ConvLISTAEncoder,
    ConvSmoothShrinkEncoder,
    ConvTanhEncoder,
)
from energyscape.models.encoders import TanhEncoder
from energyscape.models.learned_descent import LCoDEncoder
from energyscape.models.unrolled import CoupledLISTAEncoder, LISTAEncoder
from energyscape.penalties import L1, GroupL1, MapPools, PooledL1, Student
from energyscape.pools import torus_pools
from energyscape.samplers import HMC, Langevin, Metropolis, ParallelTempering
from energyscape.trainers import (
    CD,
    EM,
    FPCD,
    NCE,
    PCD,
    ClosedForm,
    ConditionalNCE,
    Contraction,
    Denoising,
    DenoisingScoreMatching,
    EmbeddingLoss,
    EnergyLoss,
    MarginLoss,
    MaximumLikelihood,
    MinimumProbabilityFlow,
    Prediction,
    PseudoLikelihood,
    RatioMatching,
    Reconstruction,
    Saturation,
    ScoreMatching,
    SlicedScoreMatching,
    Sparsity,
)


@dataclass(frozen=True)
class Case:
    """A model on its toy; ``unfit`` are trainers whose defaults its settings do not go with, and
    with ``exact`` its codes are solved as exactly as laws ask."""

    name: str
    make: Callable[..., Any]
    data: np.ndarray
    trainers: tuple[type, ...]
    unfit: tuple[type, ...] = ()
    exact: dict[str, Any] = field(default_factory=dict)


def short(trainer: type, **settings: Any) -> Any:
    """A trainer with those of the settings that it knows."""
    known = trainer().get_params(deep=False)
    return trainer(**{key: value for key, value in settings.items() if key in known})


def _bits(n: int, d: int) -> np.ndarray:
    """Correlated bits: noisy copies of a few patterns."""
    rng = np.random.default_rng(1)
    patterns = rng.integers(0, 2, (4, d))
    flips = rng.random((n, d)) < 0.1
    return (patterns[rng.integers(0, 4, n)] ^ flips).astype(np.float64)


def _reals(n: int, d: int) -> np.ndarray:
    """Correlated reals, off zero and of unequal scale."""
    rng = np.random.default_rng(2)
    mixing = rng.standard_normal((d, d))
    return 5 + rng.standard_normal((n, d)) @ mixing * np.linspace(0.5, 3, d)


def _images(n: int, h: int, w: int) -> np.ndarray:
    """Smooth images of one channel, off zero."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((n, h + 2, w + 2, 1))
    x = x[:, 1:] + x[:, :-1]
    return 5 + 2 * (x[:, 1:, 2:] + x[:, :-1, :-2])


def _maps(n: int, h: int, w: int, channels: int) -> np.ndarray:
    """Maps of bits of which neighbours often agree."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((n, h + 1, w + 1, channels))
    return (x[:, 1:, 1:] + x[:, :-1, 1:] + x[:, 1:, :-1] > 0.5).astype(np.float64)


_CHAINS = (CD, PCD, FPCD)
_EXACT = (*_CHAINS, MaximumLikelihood)
_NOISE = (NCE, ConditionalNCE, MarginLoss)
_FLIPS = (*_NOISE, PseudoLikelihood, RatioMatching, MinimumProbabilityFlow)
_REAL = (*_NOISE, DenoisingScoreMatching)
_SMOOTH = (*_REAL, SlicedScoreMatching)
_FILTERS = (*_SMOOTH, ScoreMatching)
_SPARSE = (*_CHAINS, EM, EnergyLoss, *_REAL)
_GUESSED = (*_CHAINS, EnergyLoss, Prediction, *_REAL)
_CONV = {"tol": 1e-13, "max_iter": 1000, "algorithm": "fista"}
_SLOPES = {"tol": 1e-9, "max_iter": 3000}  # no duality gap
_CODES = (Reconstruction, Denoising, Sparsity, Contraction, Saturation)

# Restricted Boltzmann machines: what is said of hidden units and Gibbs chains holds for these.
MACHINES = [
    Case("RBM", lambda **k: RBM(5, **k), _bits(60, 7), (*_EXACT, *_FLIPS)),
    Case("RBM plain", lambda **k: RBM(5, centered=False, **k), _bits(60, 7), (*_EXACT, *_FLIPS)),
    Case("GaussianRBM", lambda **k: GaussianRBM(9, **k), _reals(60, 6), (*_EXACT, *_FILTERS)),
    Case(
        "GaussianRBM unit",
        lambda **k: GaussianRBM(5, variance=1.0, **k),
        _reals(60, 6),
        (*_EXACT, *_FILTERS),
    ),
    Case(
        "GaussianRBM plain",
        lambda **k: GaussianRBM(5, centered=False, **k),
        _reals(60, 6),
        (*_EXACT, *_FILTERS),
    ),
]


def _mixture(kind: str) -> Case:
    def make(**k: Any) -> GaussianMixture:
        return GaussianMixture(3, covariance_type=kind, reg_covar=0.1, **k)

    return Case(f"GaussianMixture {kind}", make, _reals(60, 6), (EM, *(*_EXACT, *_FILTERS)))


OTHERS = [
    Case(
        "DeepBoltzmannMachine", lambda **k: DeepBoltzmannMachine((4, 3), **k), _bits(60, 7), _EXACT
    ),
    Case("PCA", lambda **k: PCA(2, **k), _reals(60, 6), (ClosedForm,)),
    Case(
        "PCA randomized",
        lambda **k: PCA(2, algorithm="randomized", **k),
        _reals(60, 6),
        (ClosedForm,),
    ),
    Case("PCA white", lambda **k: PCA(whiten=True, **k), _reals(60, 6), (ClosedForm,)),
    Case(
        "FactorAnalysis",
        lambda **k: FactorAnalysis(2, **k),
        _reals(60, 6),
        (ClosedForm, EM, *_EXACT, *_FILTERS),
    ),
    Case("KMeans", lambda **k: KMeans(4, **k), _reals(60, 6), (*_CHAINS, *_REAL, EM)),
    Case(
        "KMeans spherical",
        lambda **k: KMeans(4, spherical=True, features="triangle", **k),
        _reals(60, 6),
        (EM,),
    ),
    Case("ICA", lambda **k: ICA(**k), _reals(60, 6), (*_EXACT, *_FILTERS)),
    Case("ICA fewer", lambda **k: ICA(4, **k), _reals(60, 6), (*_EXACT, *_FILTERS)),
    Case("ICA subspaces", lambda **k: ICA(pools=2, **k), _reals(60, 6), (*_EXACT, *_SMOOTH)),
    Case(
        "OvercompleteICA", lambda **k: OvercompleteICA(9, **k), _reals(60, 6), (*_CHAINS, *_FILTERS)
    ),
    *map(_mixture, ("full", "diag", "spherical")),
    Case("PoT", lambda **k: PoT(7, **k), _reals(60, 6), (*_CHAINS, *_FILTERS)),
    Case(
        "PoT complete", lambda **k: PoT(6, sigma=math.inf, **k), _reals(60, 6), (*_EXACT, *_FILTERS)
    ),
    Case(
        "CovarianceRBM apart",
        lambda **k: CovarianceRBM(8, learn_pools=False, sigma="learned", **k),
        _reals(60, 6),
        (*_CHAINS, *_FILTERS),
    ),
    Case(
        "CovarianceRBM",
        lambda **k: CovarianceRBM(8, sigma="learned", **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH),
    ),
    Case(
        "CovarianceRBM pools",
        lambda **k: CovarianceRBM(8, pools=2, learn_pools=False, **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH),
    ),
    Case(
        "McRBM", lambda **k: McRBM(6, n_mean_components=4, **k), _reals(60, 6), (*_CHAINS, *_SMOOTH)
    ),
    Case(
        "McRBM normalized",
        lambda **k: McRBM(6, n_mean_components=4, normalize=True, **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH),
    ),
    Case(
        "MPoT",
        lambda **k: MPoT(6, n_mean_components=4, pools=2, sigma="learned", **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH),
    ),
    Case(
        "MPoT apart",
        lambda **k: MPoT(6, n_mean_components=4, learn_pools=False, sigma="learned", **k),
        _reals(60, 6),
        (*_CHAINS, *_FILTERS),
    ),
    Case(
        "TiledMPoT",
        lambda **k: TiledMPoT(3, n_mean_components=2, tile=2, stride=1, **k),
        _images(60, 5, 5),
        (*_CHAINS, *_FILTERS),
    ),
    Case(
        "FieldsOfExperts",
        lambda **k: FieldsOfExperts(3, size=2, **k),
        _images(60, 5, 5),
        (*_CHAINS, *_FILTERS),
    ),
    Case(
        "FieldsOfExperts given",
        lambda **k: FieldsOfExperts(2, size=2, filters=[[[-1, 1], [0, 0]], [[-1, 0], [1, 0]]], **k),
        _images(60, 5, 5),
        (*_CHAINS, *_FILTERS),
    ),
    Case("TiledRBM", lambda **k: TiledRBM(3, **k), _maps(60, 5, 5, 2), (*_CHAINS, *_FLIPS)),
    Case(
        "SparseCoding",
        lambda **k: SparseCoding(9, sparsity=0.1, algorithm="active_set", tol=1e-13, **k),
        _reals(60, 6),
        _SPARSE,
    ),
    Case(
        "SparseCoding positive",
        lambda **k: SparseCoding(5, penalty=L1(2.0), positive=True, tol=1e-13, **k),
        _reals(60, 6),
        _SPARSE,
    ),
    Case(
        "SparseCoding groups",
        lambda **k: SparseCoding(8, penalty=GroupL1(2, 2.0), tol=1e-13, **k),
        _reals(60, 6),
        _SPARSE,
    ),
    Case(
        "SparseCoding pools",
        lambda **k: SparseCoding(
            6, penalty=PooledL1(torus_pools(2, 3, 2), 1.0, 0.1), tol=1e-8, **k
        ),
        _reals(60, 6),
        _SPARSE,
    ),
    Case("PSD", lambda **k: PSD(9, tol=1e-13, **k), _reals(60, 6), _GUESSED),
    Case(
        "PSD tanh",
        lambda **k: PSD(5, encoder=TanhEncoder(), penalty=L1(2.0), alpha=0.3, tol=1e-13, **k),
        _reals(60, 6),
        _GUESSED,
    ),
    Case(
        "PSD unrolled",
        lambda **k: PSD(5, encoder=LISTAEncoder(2), positive=True, exact=True, tol=1e-13, **k),
        _reals(60, 6),
        _GUESSED,
    ),
    Case(
        "WhatWhere",
        lambda **k: WhatWhere(4, pools=2, sparsity=0.1, tol=1e-12, **k),
        _reals(60, 4).reshape(20, 3, 4),
        (EnergyLoss, Prediction),
    ),
    Case(
        "WhatWhere both",
        lambda **k: WhatWhere(
            4,
            pools=[[1, 0.5, 0, 0], [0, 0, 1, 2]],
            encoder=TanhEncoder(),
            features="both",
            exact=True,
            tol=1e-12,
            **k,
        ),
        _reals(40, 3).reshape(20, 2, 3),
        (EnergyLoss, Prediction),
    ),
    Case("LISTA", lambda **k: LISTA(7, tol=1e-12, **k), _reals(60, 6), _GUESSED),
    Case(
        "LISTA descent",
        lambda **k: LISTA(7, encoder=LCoDEncoder(5), tol=1e-12, **k),
        _reals(60, 6),
        _GUESSED,
    ),
    Case(
        "LISTA dictionary",
        lambda **k: LISTA(
            5,
            encoder=CoupledLISTAEncoder(2),
            train_dictionary=True,
            penalty=Student(2.0),
            dictionary=_reals(5, 6),
            **k,
        ),
        _reals(60, 6),
        _GUESSED,
    ),
    Case(
        "ConvSparseCoding",
        lambda **k: ConvSparseCoding(2, filter_size=(3, 2), sparsity=0.7, **k),
        _images(40, 4, 3) - 5,
        _SPARSE,
        exact=_CONV,
    ),
    Case(
        "ConvSparseCoding torus",
        lambda **k: ConvSparseCoding(
            2, filter_size=2, boundary="circular", positive=True, penalty=L1(2.0), **k
        ),
        _images(40, 3, 3) - 5,
        _SPARSE,
        exact=_CONV,
    ),
    Case(
        "ConvSparseCoding valid",
        lambda **k: ConvSparseCoding(2, filter_size=2, boundary="valid", sparsity=0.8, **k),
        _images(40, 3, 2) - 5,
        _SPARSE,
        exact=_CONV,
    ),
    Case(
        "ConvPSD",
        lambda **k: ConvPSD(2, filter_size=(3, 2), **k),
        _images(40, 4, 3) - 5,
        _GUESSED,
        exact=_CONV,
    ),
    Case(
        "ConvPSD tanh",
        lambda **k: ConvPSD(
            2, filter_size=2, boundary="valid", encoder=ConvTanhEncoder(), exact=True, **k
        ),
        _images(40, 3, 2) - 5,
        _GUESSED,
        exact=_CONV,
    ),
    Case(
        "ConvPSD unrolled",
        lambda **k: ConvPSD(
            2,
            filter_size=2,
            boundary="circular",
            encoder=ConvLISTAEncoder(1),
            alpha=0.5,
            positive=True,
            **k,
        ),
        _images(40, 3, 3) - 5,
        _GUESSED,
        exact=_CONV,
    ),
    Case(
        "LocalPSD",
        lambda **k: LocalPSD(period=2, filter_size=(2, 1), sparsity=0.5, **k),
        _images(40, 3, 4) - 5,
        _GUESSED,
        exact=_SLOPES,
    ),
    Case(
        "LocalPSD torus",
        lambda **k: LocalPSD(
            period=2,
            filter_size=(2, 1),
            boundary="circular",
            encoder=ConvSmoothShrinkEncoder(),
            penalty=MapPools(2, 1.0, 1.5, 0.3),
            exact=True,
            **k,
        ),
        _images(40, 4, 2) - 5,
        _GUESSED,
        exact=_SLOPES,
    ),
    Case(
        "LocalPSD lasso",
        lambda **k: LocalPSD(
            2,
            period=2,
            filter_size=(1, 2),
            boundary="valid",
            penalty=L1(1.0),
            positive=True,
            **k,
        ),
        _images(40, 2, 3) - 5,
        _GUESSED,
        exact={"tol": 1e-13},
    ),
    Case(
        "SparseCoding student",
        lambda **k: SparseCoding(5, penalty=Student(2.0), tol=1e-8, **k),
        _reals(60, 6),
        _SPARSE,
    ),
    Case("RICA", lambda **k: RICA(9, **k), _reals(60, 6), (*_CHAINS, EnergyLoss, *_SMOOTH)),
    Case(
        "RICA pools",
        lambda **k: RICA(6, pools=torus_pools(2, 3, 2), sparsity=0.1, epsilon=0.1, **k),
        _reals(60, 6),
        (*_CHAINS, EnergyLoss, *_SMOOTH),
    ),
    Case(
        "RICA student",
        lambda **k: RICA(4, penalty=Student(2.0), **k),
        _reals(60, 6),
        (*_CHAINS, EnergyLoss, *_SMOOTH),
    ),
    Case(
        "AutoEncoder",
        lambda **k: AutoEncoder(4, **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH, *_CODES[:-1]),
        (Saturation,),
    ),
    Case(
        "AutoEncoder bits",
        lambda **k: AutoEncoder(4, loss="cross_entropy", activation="saturated_linear", **k),
        _bits(60, 7),
        _CODES,
    ),
    Case(
        "AutoEncoder untied",
        lambda **k: AutoEncoder(4, activation="relu", tied=False, **k),
        _reals(60, 6),
        _CODES[:2],
        _CODES[2:],
    ),
    Case(
        "AutoEncoder potential",
        lambda **k: AutoEncoder(4, energy_kind="potential", **k),
        _reals(60, 6),
        (*_CHAINS, *_FILTERS, *_CODES[:-1]),
        (Saturation,),
    ),
    Case(
        "DeepAutoEncoder",
        lambda **k: DeepAutoEncoder((5, 3), activation="tanh", **k),
        _reals(60, 6),
        (*_CHAINS, *_SMOOTH, Reconstruction, Denoising, Contraction),
        (Sparsity, Saturation),
    ),
    Case(
        "SiameseEncoder",
        lambda **k: SiameseEncoder(3, hidden_layer_sizes=(5,), activation="tanh", **k),
        _reals(60, 4).reshape(30, 2, 4),
        (EmbeddingLoss,),
    ),
    Case(
        "SiameseEncoder euclidean",
        lambda **k: SiameseEncoder(hidden_layer_sizes=(5, 4), metric="euclidean", **k),
        _reals(60, 4).reshape(30, 2, 4),
        (EmbeddingLoss,),
    ),
    Case(
        "SiameseEncoder manhattan",
        lambda **k: SiameseEncoder(hidden_layer_sizes=(), metric="manhattan", **k),
        _reals(60, 4).reshape(30, 2, 4),
        (EmbeddingLoss,),
    ),
]
CASES = MACHINES + OTHERS

# Trainers whose chains other samplers than the model's own move, by kind of visible units.
_EITHER = [PCD(2), CD(2), FPCD(2), PCD(sampler=ParallelTempering(n_temperatures=3))]
MOVERS = {
    "binary": [*_EITHER, CD(sampler=Metropolis()), FPCD(sampler=ParallelTempering(Metropolis()))],
    "real": [
        *_EITHER,
        CD(sampler=HMC(3)),
        PCD(2, sampler=HMC(3, persistence=0.5)),
        FPCD(sampler=Langevin()),
        PCD(sampler=ParallelTempering(HMC(2, step_size=0.1), n_temperatures=3)),
    ],
}
MOVED = [(case, trainer) for case in MACHINES for trainer in MOVERS[case.make().domain]]


def not_promised(estimator: Any) -> dict[str, str]:
    """Checks of scikit-learn's that an estimator does not promise to pass, with the reason."""
    if hasattr(estimator, "predict_proba"):
        why = "what has predict_proba is taken for a classifier of four classes"
        return {f"check_estimator_sparse_{kind}": why for kind in ("array", "matrix")}
    if isinstance(estimator, OvercompleteICA):
        set_one = "dont_overwrite_parameters", "fit2d_predict1d", *_INVARIANCE
        why = "one component of three features has no density"
        return {f"check_{name}": why for name in set_one}
    return {}


_INVARIANCE = "methods_sample_order_invariance", "methods_subset_invariance"


def moved_id(value: Any) -> str:
    """How a pair of ``MOVED`` is called in the name of a test."""
    return value.name if isinstance(value, Case) else " ".join(repr(value).split())
