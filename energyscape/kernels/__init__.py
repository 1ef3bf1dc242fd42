"""The few fused operations of a training step: in place with NumPy, one launch with CuPy."""

from energyscape.kernels.chains import accept, arrive, leapfrog, set_off, squares
from energyscape.kernels.gates import gate, half_square, log_sum, pull, respond, slope, square_sum
from energyscape.kernels.products import matmul, norm
from energyscape.kernels.steps import adapt, descend, follow, momentum_step, rank_two
from energyscape.kernels.units import (
    log1p,
    log1p_sum,
    rectify,
    sigmoid,
    soft_threshold,
    softplus_sum,
)
from energyscape.kernels.windows import col2im, im2col

__all__ = [
    "accept",
    "adapt",
    "arrive",
    "col2im",
    "descend",
    "follow",
    "gate",
    "half_square",
    "im2col",
    "leapfrog",
    "log1p",
    "log1p_sum",
    "log_sum",
    "matmul",
    "momentum_step",
    "norm",
    "pull",
    "rank_two",
    "rectify",
    "respond",
    "set_off",
    "sigmoid",
    "slope",
    "soft_threshold",
    "softplus_sum",
    "square_sum",
    "squares",
]
