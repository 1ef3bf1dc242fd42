"""Samplers: kernels that leave a target's distribution as it is, and estimates built on them."""

from energyscape.samplers.ais import AIS, PartitionEstimate
from energyscape.samplers.gibbs import Gibbs
from energyscape.samplers.target import Clamped, Target

__all__ = ["AIS", "Clamped", "Gibbs", "PartitionEstimate", "Target"]
