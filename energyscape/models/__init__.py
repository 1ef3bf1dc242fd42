"""Models: one file per family, each a scikit-learn estimator outside and verbs inside."""

from energyscape.models.rbm import RBM, GaussianRBM

__all__ = ["RBM", "GaussianRBM"]
