"""Trainers: one file per strategy of shaping an energy."""

from energyscape.trainers.backpropagation import Backpropagation
from energyscape.trainers.bit_flips import (
    MinimumProbabilityFlow,
    PseudoLikelihood,
    RatioMatching,
)
from energyscape.trainers.constant_volume import EM, ClosedForm
from energyscape.trainers.contraction import Contraction, Saturation
from energyscape.trainers.contrastive_divergence import CD, FPCD, PCD
from energyscape.trainers.denoising import Denoising
from energyscape.trainers.embedding_loss import EmbeddingLoss
from energyscape.trainers.energy_loss import EnergyLoss
from energyscape.trainers.margin import MarginLoss
from energyscape.trainers.max_likelihood import MaximumLikelihood
from energyscape.trainers.negatives import BitFlips, Chains, GaussianJitter, MostOffending
from energyscape.trainers.noise_contrastive import NCE, ConditionalNCE
from energyscape.trainers.prediction import Prediction
from energyscape.trainers.reconstruction import Reconstruction
from energyscape.trainers.score_matching import (
    DenoisingScoreMatching,
    ScoreMatching,
    SlicedScoreMatching,
)
from energyscape.trainers.sparsity import Sparsity

__all__ = [
    "CD",
    "EM",
    "FPCD",
    "NCE",
    "PCD",
    "Backpropagation",
    "BitFlips",
    "Chains",
    "ClosedForm",
    "ConditionalNCE",
    "Contraction",
    "Denoising",
    "DenoisingScoreMatching",
    "EmbeddingLoss",
    "EnergyLoss",
    "GaussianJitter",
    "MarginLoss",
    "MaximumLikelihood",
    "MinimumProbabilityFlow",
    "MostOffending",
    "Prediction",
    "PseudoLikelihood",
    "RatioMatching",
    "Reconstruction",
    "Saturation",
    "ScoreMatching",
    "SlicedScoreMatching",
    "Sparsity",
]
