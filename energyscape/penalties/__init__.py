"""What a code pays beside its reconstruction: sparsity, contraction, saturation, constraints.

A penalty adds a term to the energy that keeps it from being low everywhere: it limits the
information in the code (L1, Student's t, KL, the k largest), makes the code locally constant
(‖∂h/∂x‖²: Rifai et al., 2011) or pulls it to where f is flat (Goroshin and LeCun, 2013).
"""

from energyscape.penalties.contraction import (
    Contractive,
    HessianContractive,
    Hutchinson,
    Saturating,
)
from energyscape.penalties.sparsity import KL, L1, KSparse, Lifetime, Student

__all__ = [
    "KL",
    "L1",
    "Contractive",
    "HessianContractive",
    "Hutchinson",
    "KSparse",
    "Lifetime",
    "Saturating",
    "Student",
]
