"""Predictive sparse decomposition: a dictionary, and an encoder that learns to guess its codes.

    E(x, h) = ½|x - Dh|² + p(h) + (α/2)|h - f(x)|²,    F(x) = min_h E(x, h),    |d_j| = 1

Codes are pulled to what the encoder can say, and the encoder to the codes: after learning f(x) is a
code by itself, for one product instead of a hundred. (Kavukcuoglu et al., 2008, have neither ½: the
same codes minimise both where their λ is twice ours.)

References
----------
Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2008). Fast inference in sparse coding algorithms with
applications to object recognition. CBLL-TR-2008-12-01, arXiv:1010.3467.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from energyscape.backend import Array
from energyscape.models.encoded import EncodedModel
from energyscape.registry import register
from energyscape.samplers import HMC
from energyscape.verbs import Params, as_column


@register
class PSD(EncodedModel):
    """Sparse coding with an encoder that is learned along with the dictionary.

    Parameters
    ----------
    n_components : int, optional
        Atoms m. Default: as many as features.
    encoder : encoder, optional
        `TanhEncoder`, `ShrinkEncoder`, `SmoothShrinkEncoder`, `DoubleTanhEncoder`, `LinearEncoder`,
        `LISTAEncoder`, `CoupledLISTAEncoder`, `StepLISTAEncoder`, `LCoDEncoder`. Default:
        ``ShrinkEncoder()``.
    alpha : float, default 1
        α >= 0: how far codes are pulled to predictions. At 0 this is sparse coding with an encoder
        that nobody teaches.
    joint : bool, default True
        Whether codes are those of the whole energy. If not, they are those of the lasso alone, as
        in the authors' program, and (α/2)|h - f|² teaches the encoder at fixed h.
    exact : bool, default False
        Whether ``transform`` gives inferred codes; by default it gives the encoder's.
    train_dictionary : bool, default True
        Whether the dictionary is learned, too, or stays as it was given.
    sparsity, penalty, positive, dictionary, algorithm, tol, max_iter, replace
        As for `SparseCoding`.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=20)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Atoms, of norm 1.
    strength_, n_replaced_
        As for `SparseCoding`.
    params_ : dict
        Those of `SparseCoding`, the encoder's arrays, and the buffer ``power``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Kavukcuoglu, K., Ranzato, M., LeCun, Y. (2008). Fast inference in sparse coding algorithms with
    applications to object recognition. Equations 3 and 4.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import PSD
    >>> X = np.random.default_rng(0).laplace(size=(300, 10))
    >>> model = PSD(16, random_state=0).fit(X)
    >>> model.transform(X).shape
    (300, 16)
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        encoder: Any = None,
        alpha: float = 1.0,
        joint: bool = True,
        exact: bool = False,
        train_dictionary: bool = True,
        sparsity: float | None = None,
        penalty: Any = None,
        positive: bool = False,
        dictionary: Any = None,
        algorithm: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.encoder = encoder
        self.alpha = alpha
        self.joint = joint
        self.exact = exact
        self.train_dictionary = train_dictionary
        self.sparsity = sparsity
        self.penalty = penalty
        self.positive = positive
        self.dictionary = dictionary
        self.algorithm = algorithm
        self.tol = tol
        self.max_iter = max_iter
        self.replace = replace
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def default_sampler(self) -> Any:
        """HMC, whose steps are the shorter the more the encoder adds to the curvature."""
        return HMC(10, step_size=0.7 / math.sqrt(1.0 + self.alpha))

    def check_settings(self) -> None:
        super().check_settings()
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"{type(self).__name__}.alpha must be >= 0, got {self.alpha!r}")

    # ------------------------------------------------------------ verbs

    def pull(self) -> float:
        """α of inference."""
        return float(self.alpha) if self.joint else 0.0

    def weight(self, params: Params) -> float:
        """α, in which the energy is quadratic in f(x); 1 where it says less."""
        return max(1.0, float(self.alpha))

    def joint_energy(self, params: Params, x: Array, h: Array) -> Array:
        """E(x, h), shape (n,), float64."""
        away = h - self.guess(params, x)
        far = (away * away).reshape(len(away), -1).sum(axis=1, dtype=np.float64)
        return super().joint_energy(params, x, h) + 0.5 * self.alpha * far

    def joint_grad(self, params: Params, x: Array, h: Array, weights: Array) -> Params:
        """Σ_i w_i ∂E(x_i, h_i)/∂θ at fixed codes."""
        encoder = self.chosen_encoder()
        guess, cache = encoder.forward(params, x, self.positive)
        away = guess - h
        away *= as_column(weights, x) * x.dtype.type(self.alpha)
        grads, _ = encoder.backward(params, cache, away)
        return self.both(super().joint_grad(params, x, h, weights), grads)

    def joint_input_grad(self, params: Params, x: Array, h: Array) -> Array:
        """∂E/∂x at fixed codes, the shape of x."""
        encoder = self.chosen_encoder()
        guess, cache = encoder.forward(params, x, self.positive)
        away = (guess - h) * x.dtype.type(self.alpha)
        own = super().joint_input_grad(params, x, h)
        return own + encoder.backward(params, cache, away, need_dx=True)[1]
