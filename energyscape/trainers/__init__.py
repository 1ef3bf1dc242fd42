"""Trainers: one file per strategy of shaping an energy."""

from energyscape.trainers.backpropagation import Backpropagation
from energyscape.trainers.constant_volume import EM, ClosedForm
from energyscape.trainers.contraction import Contraction, Saturation
from energyscape.trainers.contrastive_divergence import CD, FPCD, PCD
from energyscape.trainers.denoising import Denoising
from energyscape.trainers.energy_loss import EnergyLoss
from energyscape.trainers.max_likelihood import MaximumLikelihood
from energyscape.trainers.prediction import Prediction
from energyscape.trainers.reconstruction import Reconstruction
from energyscape.trainers.sparsity import Sparsity

__all__ = [
    "CD",
    "EM",
    "FPCD",
    "PCD",
    "Backpropagation",
    "ClosedForm",
    "Contraction",
    "Denoising",
    "EnergyLoss",
    "MaximumLikelihood",
    "Prediction",
    "Reconstruction",
    "Saturation",
    "Sparsity",
]
