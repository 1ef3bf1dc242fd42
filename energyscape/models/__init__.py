"""Models: one file per family, each a scikit-learn estimator outside and verbs inside."""

from energyscape.models import learned_descent as learned_descent  # encoders that files name
from energyscape.models.autoencoder import AutoEncoder
from energyscape.models.classifier import FineTunedClassifier
from energyscape.models.conv_psd import ConvPSD
from energyscape.models.conv_sparse import ConvSparseCoding
from energyscape.models.deep import DeepAutoEncoder
from energyscape.models.deep_boltzmann import DeepBoltzmannMachine
from energyscape.models.deep_gated import DeepGatedMRF
from energyscape.models.drsae import DrSAE
from energyscape.models.factor_analysis import FactorAnalysis
from energyscape.models.fine_tuned_pipeline import FineTunedPipeline
from energyscape.models.gated_mrf import CovarianceRBM, McRBM, MPoT, PoT
from energyscape.models.gaussian_rbm import GaussianRBM
from energyscape.models.ica import ICA
from energyscape.models.kmeans import KMeans
from energyscape.models.lista import LISTA
from energyscape.models.local_psd import LocalPSD
from energyscape.models.mixture import GaussianMixture
from energyscape.models.overcomplete_ica import OvercompleteICA
from energyscape.models.pca import PCA
from energyscape.models.psd import PSD
from energyscape.models.rbm import RBM
from energyscape.models.rica import RICA
from energyscape.models.siamese import SiameseEncoder
from energyscape.models.sparse_coding import SparseCoding
from energyscape.models.stacks import DeepBeliefNet, StackedAutoEncoder
from energyscape.models.tiled import FieldsOfExperts, TiledMPoT
from energyscape.models.tiled_rbm import TiledRBM
from energyscape.models.what_where import WhatWhere

__all__ = [
    "ICA",
    "LISTA",
    "PCA",
    "PSD",
    "RBM",
    "RICA",
    "AutoEncoder",
    "ConvPSD",
    "ConvSparseCoding",
    "CovarianceRBM",
    "DeepAutoEncoder",
    "DeepBeliefNet",
    "DeepBoltzmannMachine",
    "DeepGatedMRF",
    "DrSAE",
    "FactorAnalysis",
    "FieldsOfExperts",
    "FineTunedClassifier",
    "FineTunedPipeline",
    "GaussianMixture",
    "GaussianRBM",
    "KMeans",
    "LocalPSD",
    "MPoT",
    "McRBM",
    "OvercompleteICA",
    "PoT",
    "SiameseEncoder",
    "SparseCoding",
    "StackedAutoEncoder",
    "TiledMPoT",
    "TiledRBM",
    "WhatWhere",
]
