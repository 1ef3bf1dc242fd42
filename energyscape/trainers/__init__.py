"""Trainers: one file per strategy of shaping an energy."""

from energyscape.trainers.contrastive_divergence import CD, FPCD, PCD

__all__ = ["CD", "FPCD", "PCD"]
