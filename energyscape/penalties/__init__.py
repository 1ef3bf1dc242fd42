"""What a code pays beside its reconstruction: sparsity, contraction, saturation, constraints.

A penalty adds a term to the energy that keeps it from being low everywhere: it limits the
information in the code (L1, groups, lateral inhibition, Student's t, KL, the k largest), makes the
code locally constant (‖∂h/∂x‖²: Rifai et al., 2011) or pulls it to where f is flat (Goroshin and
LeCun, 2013).
"""

from energyscape.penalties.contraction import (
    Contractive,
    HessianContractive,
    Hutchinson,
    Saturating,
)
from energyscape.penalties.inhibition import (
    learned_inhibition,
    ring_inhibition,
    torus_inhibition,
    tree_inhibition,
)
from energyscape.penalties.maps import MapPools
from energyscape.penalties.sparsity import KL, L1, KSparse, Lifetime, Student
from energyscape.penalties.structure import GroupL1, Lateral, PooledL1

__all__ = [
    "KL",
    "L1",
    "Contractive",
    "GroupL1",
    "HessianContractive",
    "Hutchinson",
    "KSparse",
    "Lateral",
    "Lifetime",
    "MapPools",
    "PooledL1",
    "Saturating",
    "Student",
    "learned_inhibition",
    "ring_inhibition",
    "torus_inhibition",
    "tree_inhibition",
]
