"""Convolutional predictive sparse decomposition: filters, and an encoder that guesses their maps.

    E(x, z) = ½ Σ m ⊙ (x - Σ_k z_k * f_k)² + λ|z|₁ + (α/2)|z - f(x)|²,    F(x) = min_z E(x, z)

with |f_k| = 1 and a convolutional encoder f (Kavukcuoglu et al., 2010, equation 3). After learning,
f(x) are maps of an image of any size for one convolution.

References
----------
Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
convolutional feature hierarchies for visual recognition. NIPS.
"""

from __future__ import annotations

import math
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.models.conv_base import ConvSparseModel
from energyscape.models.conv_encoders import ConvShrinkEncoder
from energyscape.models.conv_filters import correlations
from energyscape.models.psd import PSD
from energyscape.registry import register
from energyscape.solvers.laid_filters import Batch
from energyscape.tiles import untiled
from energyscape.trainers import EnergyLoss
from energyscape.verbs import Params


@register
class ConvPSD(PSD, ConvSparseModel):
    """Convolutional sparse coding with an encoder that is learned along with the filters.

    Parameters
    ----------
    n_components : int, default 16
        Filters k.
    filter_size, boundary, mask
        As for `ConvSparseCoding`.
    encoder : encoder, optional
        `ConvShrinkEncoder`, `ConvSmoothShrinkEncoder`, `ConvTanhEncoder`, `ConvLISTAEncoder`.
        Default: ``ConvShrinkEncoder()``.
    alpha, joint, exact, train_dictionary
        As for `PSD`.
    sparsity, penalty, positive, dictionary, algorithm, tol, max_iter, replace
        As for `ConvSparseCoding`. Codes that are pulled to predictions (``joint``) are found by
        FISTA.
    trainer : Trainer, optional
        Default: ``EnergyLoss(n_epochs=20, batch_size=8, learning_rate=0.3)``.
    random_state, device, verbose
        As for `RBM`.

    Attributes
    ----------
    filters_, components_, strength_, n_replaced_, image_shape_
        As for `ConvSparseCoding`.
    params_ : dict
        Those of `ConvSparseCoding`, the encoder's arrays, and the buffer ``power``.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Kavukcuoglu, K., Sermanet, P., Boureau, Y., Gregor, K., Mathieu, M., LeCun, Y. (2010). Learning
    convolutional feature hierarchies for visual recognition. Equations 3 and 5.

    Examples
    --------
    >>> import numpy as np
    >>> from energyscape.models import ConvPSD
    >>> X = np.random.default_rng(0).laplace(size=(10, 16, 16))
    >>> model = ConvPSD(4, filter_size=5, random_state=0).fit(X)
    >>> model.transform(X).shape
    (10, 12, 12, 4)
    """

    def __init__(
        self,
        n_components: int = 16,
        *,
        filter_size: int | tuple[int, int] = 8,
        boundary: str = "full",
        mask: bool = True,
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
        tol: float = 1e-3,
        max_iter: int = 1000,
        replace: bool = True,
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.filter_size = filter_size
        self.boundary = boundary
        self.mask = mask
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

    def default_trainer(self) -> Any:
        """Gradient descent on the energy of the data."""
        return EnergyLoss(n_epochs=20, batch_size=8, learning_rate=0.3)

    def chosen_encoder(self) -> Any:
        """The encoder, or the one that None stands for, for maps of this boundary."""
        encoder = ConvShrinkEncoder() if self.encoder is None else self.encoder
        return encoder.at(self.boundary, self.period)

    def check_settings(self) -> None:
        wrong = not hasattr(self.encoder, "at") or isinstance(self.encoder, type)
        if self.encoder is not None and wrong:
            raise ValueError(
                f"{type(self).__name__}.encoder must be a convolutional encoder such as "
                f"ConvShrinkEncoder() or ConvLISTAEncoder(1), got {self.encoder!r}"
            )
        super().check_settings()

    def steepest(self, x: Array) -> float:
        """A bound of the largest eigenvalue of the second moments of windows."""
        R = correlations(x, self._size, self.boundary == "circular")
        rows = namespace(R).abs(R).sum(axis=(1, 2, 3))
        return float(rows.max()) / (len(x) * math.prod(x.shape[1:3]))

    def code_numbers(self, params: Params, x: Array) -> int:
        """Numbers of the maps of one of the images ``x``."""
        return math.prod(self._maps(x.shape[1:3])) * len(params["D"])

    def param_shapes(self, n_features: int) -> dict[str, tuple[int, ...]]:
        own = ConvSparseModel.param_shapes(self, n_features) | {"power": ()}
        k, *size = self._shape(self._n_channels)
        return own | self.chosen_encoder().shapes(tuple(size), k)

    # ------------------------------------------------------------ the face

    def _codes_and_gaps(self, params: Params, x: Array) -> Array:
        if self.exact:
            return ConvSparseModel._codes_and_gaps(self, params, x)
        guess, dictionary = self.guess(params, x), self.dictionary_at(params, x.shape[1:3])
        pull = self.pull(), guess, self.pools(params)
        batch = Batch(dictionary, x, float(params["lam"]), self.tol, self.positive, *pull)
        gap = batch.gap(guess, x - dictionary.synthesize(guess))
        flat = guess.reshape(len(x), -1)
        return namespace(x).concatenate([flat, gap[:, None].astype(x.dtype)], axis=1)

    def transform(self, X: Any) -> Any:
        """f(x) of each image as maps, or the best codes if ``exact``.

        Parameters
        ----------
        X : array, shape (n, h, w) or (n, h, w, channels)
            Of any size.

        Returns
        -------
        array, shape (n, h', w', n_components), container of X, dtype of the fit

        Warns
        -----
        ConvergenceWarning
            If best codes did not reach ``tol``; `dual_gap` says which.
        """
        if self.exact:
            return ConvSparseModel.transform(self, X)
        return self._map(X, lambda params, x: untiled(self.guess(params, x), self.period))
