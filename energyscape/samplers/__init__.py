"""Samplers: kernels that leave a target's distribution as it is, and estimates built on them."""

from energyscape.samplers.adaptation import (
    ChEES,
    DualAveraging,
    Multiplicative,
    PooledMass,
    RobbinsMonro,
)
from energyscape.samplers.ais import AIS, PartitionEstimate
from energyscape.samplers.bases import Gaussian, StudentT
from energyscape.samplers.denoising import DenoisingChain
from energyscape.samplers.diagnostics import (
    autocorrelation,
    ess_bulk,
    ess_mean,
    ess_tail,
    mcse_mean,
    mcse_sd,
    rhat,
    rhat_nested,
)
from energyscape.samplers.gibbs import Gibbs
from energyscape.samplers.hmc import HMC, Langevin
from energyscape.samplers.metropolis import Metropolis
from energyscape.samplers.reducers import Moments, Trace
from energyscape.samplers.target import Target, from_functions
from energyscape.samplers.tempering import ParallelTempering
from energyscape.samplers.wrappers import Bridge, Clamped, Posterior

__all__ = [
    "AIS",
    "HMC",
    "Bridge",
    "ChEES",
    "Clamped",
    "DenoisingChain",
    "DualAveraging",
    "Gaussian",
    "Gibbs",
    "Langevin",
    "Metropolis",
    "Moments",
    "Multiplicative",
    "ParallelTempering",
    "PartitionEstimate",
    "PooledMass",
    "Posterior",
    "RobbinsMonro",
    "StudentT",
    "Target",
    "Trace",
    "autocorrelation",
    "ess_bulk",
    "ess_mean",
    "ess_tail",
    "from_functions",
    "mcse_mean",
    "mcse_sd",
    "rhat",
    "rhat_nested",
]
