"""Auto-encoder with one hidden layer.

AutoEncoder (Bourlard and Kamp, 1988; Vincent et al., 2010)
    h = f(x W + c),   r = g(h V + b),   V = W' if tied
    F(x) = |x - r|²  (or the cross-entropy),  or, tied and with a linear output, the potential
    F(x) = |x - b|²/2 - Σ_j ∫ f(a_j)          whose -∂F/∂x is r(x) - x

The potential of a sigmoid encoder is the free energy of a Gaussian RBM with unit variances
(Kamyshanska and Memisevic, 2015).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if

from energyscape.backend import Array, namespace
from energyscape.models.encoder_decoder import EncoderDecoder, EncoderDecoderPass
from energyscape.models.filter_energy import Slopes, curved, matched
from energyscape.registry import register
from energyscape.verbs import Params, check_count

_ENERGIES = ("reconstruction", "potential")


class _PotentialPass(EncoderDecoderPass):
    """The pass of the potential: one product up gives the energy, one down its gradient."""

    def energy(self) -> Array:
        up = self.up[-1]
        away = up.x - self.params["b"]
        own = 0.5 * (away * away).sum(axis=1, dtype=np.float64)
        return own - up.activation.primitive(up.a)

    def grad(self, weights: Array) -> Params:
        up = self.up[-1]
        h = up.h * -weights[:, None]
        away = (up.x - self.params["b"]) * -weights[:, None]
        return {"W": up.x.T @ h, "b": away.sum(axis=0), "c": h.sum(axis=0)}

    def input_grad(self) -> Array:
        return (self.up[-1].x - self.down[-1].h) / self.params["scale"]


def _bends(model: Any) -> bool:
    return model.energy_kind == "potential" and model.smooth


@register
class AutoEncoder(EncoderDecoder):
    """Auto-encoder with one hidden layer; how it is kept from copying is the trainer's choice.

    Parameters
    ----------
    n_components : int, default 256
        Hidden units.
    activation : str or activation, default "sigmoid"
        "sigmoid", "tanh", "relu", "saturated_linear", "identity", or an object such as
        ``TopK(25)`` or ``Shrink(0.5)``.
    loss : {"squared", "cross_entropy"}, default "squared"
        "cross_entropy" takes rows in [0, 1] for probabilities.
    output : str or activation, optional
        Of the reconstruction. Default: sigmoid for the cross-entropy, else linear.
    tied : bool, default True
        Whether the decoder's weights are the encoder's, transposed. Penalties on the code mean
        little without it: the code shrinks, and the decoder grows.
    energy_kind : {"reconstruction", "potential"}, default "reconstruction"
        What `energy` is and what contrastive trainers shape: the loss, or (tied, squared, linear
        output) the potential of r(x) - x, in units of the data's scale.
    trainer, random_state, device, verbose
        As for `RBM`; the default trainer is ``Reconstruction()``.

    Attributes
    ----------
    components_ : array, shape (n_components, n_features)
        Encoder weights W'.
    params_ : dict
        ``W``, ``c``, ``b``, ``V`` if not tied; the buffers ``mean`` and, with a squared loss and a
        linear output, ``scale`` and ``residual``: rows are standardised, (x - mean)/scale.
    history_, n_iter_, n_features_in_, seed_, trainer_
        As for `RBM`.

    References
    ----------
    Vincent, P., Larochelle, H., Lajoie, I., Bengio, Y., Manzagol, P. (2010). Stacked denoising
    autoencoders.
    Kamyshanska, H., Memisevic, R. (2015). The potential energy of an autoencoder.

    Examples
    --------
    >>> from energyscape.data import load_digits
    >>> from energyscape.models import AutoEncoder
    >>> from energyscape.trainers import Denoising
    >>> X, _ = load_digits()
    >>> model = AutoEncoder(32, loss="cross_entropy", trainer=Denoising(n_epochs=2))
    >>> model.fit_transform(X).shape
    (1797, 32)
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        activation: Any = "sigmoid",
        loss: str = "squared",
        output: Any = None,
        tied: bool = True,
        energy_kind: str = "reconstruction",
        trainer: Any = None,
        random_state: Any = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.activation = activation
        self.loss = loss
        self.output = output
        self.tied = tied
        self.energy_kind = energy_kind
        self.trainer = trainer
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def check_settings(self) -> None:
        check_count("n_components", self.n_components)
        super().check_settings()
        if self.energy_kind not in _ENERGIES:
            raise ValueError(
                f"AutoEncoder.energy_kind must be one of {', '.join(_ENERGIES)}, got "
                f"{self.energy_kind!r}"
            )
        if self.energy_kind == "potential":
            f = self.activations()[0]
            if not (self.tied and self.standardizes and hasattr(f, "primitive")):
                raise ValueError(
                    "AutoEncoder: r(x) - x has a potential with tied weights, loss='squared', a "
                    "linear output and an activation with a primitive; got "
                    f"tied={self.tied}, loss={self.loss!r}, output={self.output!r}, {f!r}"
                )

    @property
    def nonnegative(self) -> bool:  # type: ignore[override]
        """What a row loses in its reconstruction is; the potential may have any sign."""
        return self.energy_kind == "reconstruction"

    def sizes(self) -> tuple[int, ...]:
        return (self.n_components,)

    def names(self) -> tuple[str, ...]:
        return ("",)

    def forward(
        self, params: Params, x: Array, beta: Any = 1.0, base: Any = None
    ) -> EncoderDecoderPass:
        passed = super().forward(params, x, beta, base)
        if self.energy_kind == "reconstruction":
            return passed
        return _PotentialPass(self, params, x, passed.up)

    @available_if(_bends)
    def laplacian(self, params: Params, x: Array) -> Array:
        """ΔF of the potential, shape (n,), float64."""
        passed, W, square = self.forward(params, x), params["W"], params["scale"] ** 2
        bent = _slopes(passed).second.astype(np.float64) @ (W * W).sum(axis=0).astype(np.float64)
        return (len(W) + bent) / square

    @available_if(_bends)
    def score_matching(self, params: Params, passed: Any, weights: Array) -> tuple[Array, Params]:
        """½|∂F/∂x|² - ΔF of each row, and the gradient of their weighted sum."""
        y, scale = passed.up[-1].x, params["scale"]
        g, w = passed.input_grad() * scale, weights / scale**2
        found = matched(y, g, params["W"], _slopes(passed), w)
        grads = {"W": found.of_filters, "c": found.of_fields.sum(axis=0), "b": -(w @ g)}
        return (found.values - y.shape[1]) / scale.astype(np.float64) ** 2, grads

    @available_if(_bends)
    def squared_curvature(
        self, params: Params, passed: Any, weights: Array
    ) -> tuple[Array, Params]:
        """Σ_i (∂²F/∂x_i²)² of each row, and the gradient of their weighted sum."""
        fourth, b = params["scale"] ** 4, params["b"]
        xp = namespace(b)
        slopes, w = _slopes(passed), weights / fourth
        found = curved(passed.up[-1].x, xp.ones_like(b), params["W"], slopes, w)
        grads = {"W": found.of_filters, "c": found.of_fields.sum(axis=0), "b": xp.zeros_like(b)}
        return found.values / fourth.astype(np.float64), grads

    @property
    def components_(self) -> Any:
        self._need_fit("components_")
        return self._fitted(self._params["W"].T)


def _slopes(passed: Any) -> Slopes:
    """Of minus the activation's primitive."""
    up = passed.up[-1]
    f = up.activation
    return Slopes(-up.h, -f.slope(up.a, up.h), -f.curvature(up.a, up.h))
