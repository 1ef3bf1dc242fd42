"""Models: one file per family, each a scikit-learn estimator outside and verbs inside."""

from energyscape.models.gaussian_rbm import GaussianRBM
from energyscape.models.rbm import RBM

__all__ = ["RBM", "GaussianRBM"]
