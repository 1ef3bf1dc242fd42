"""Bit flips: push down on the data, pull up at rows that differ from them in one bit.

    L = ⟨Σ_d φ(Δ_d)⟩_data,    Δ_d(x) = F(x) - F(x with bit d flipped)

    pseudo-likelihood          φ = log(1 + e^Δ)    -log p(x_d | the other bits)    (Besag, 1975)
    ratio matching             φ = σ(Δ)²                                           (Hyvärinen, 2007)
    minimum probability flow   φ = e^(Δ/2)    (Sohl-Dickstein, Battaglino, DeWeese, 2011)

Z cancels, so that nothing is sampled. All three are consistent, as φ'(Δ)/φ'(-Δ) = e^Δ: at the true
parameters the mean gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.kernels import sigmoid
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Objective, mean_stats
from energyscape.verbs import Params, check_count


class _BitFlips(Objective):
    """What the three share: all but φ."""

    requires = (*Objective.requires, "free_energy_grad")
    domains = ("binary",)
    needs_visible = True

    def __init__(
        self,
        n_bits: int | None = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_bits = n_bits
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def validate(self, model: Any) -> None:
        super().validate(model)
        if self.n_bits is not None:
            check_count(f"{type(self).__name__}.n_bits", self.n_bits)

    def loss(self, change: Array) -> Array:
        """φ(Δ), float64."""
        raise NotImplementedError

    def slope(self, change: Array) -> Array:
        """φ'(Δ), float64."""
        raise NotImplementedError

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        xp, x = namespace(batch.x), batch.x
        n_bits = x[0].size
        bits = xp.arange(n_bits)
        if self.n_bits is not None and self.n_bits < n_bits:
            bits = xp.argsort(rng.uniform(n_bits))[: self.n_bits]
        scale = n_bits / len(bits) / batch.n  # of a subset: the sum over all in expectation
        passed = model.forward(params, x)
        change, sums = passed.flips(bits, lambda change: scale * self.slope(change))
        sums |= mean_stats(passed, batch.n)
        return sums | {"loss/mean": scale * self.loss(change).sum()}


@register
class PseudoLikelihood(_BitFlips):
    """Maximum pseudo-likelihood: every bit is predicted from all the others.

    Consistent. Without chains or noise to choose; where bits are strongly tied the likelihood of
    the whole lags behind that of `PCD`.

    Parameters
    ----------
    n_bits : int, optional
        Bits that an update flips, drawn anew for each batch, for all of its rows; the gradient is
        right in expectation. Default: all. An update costs as many energies as rows times bits.
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.1.
    optimizer : Optimizer, optional
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers, e.g. `Binarize()`.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    References
    ----------
    Besag, J. (1975). Statistical analysis of non-lattice data.
    """

    def loss(self, change: Array) -> Array:
        return namespace(change).logaddexp(0.0, change)

    def slope(self, change: Array) -> Array:
        return sigmoid(change)


@register
class RatioMatching(_BitFlips):
    """Ratio matching: the model's ratios p(x)/p(x with a bit flipped) match those of the data.

    Consistent. Its φ is bounded, so that rows which the model finds hopeless pull little.

    Parameters
    ----------
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.3.
    n_bits, n_epochs, batch_size, optimizer, averaging, batch_transform, validation_fraction, \
callbacks
        As for `PseudoLikelihood`.

    References
    ----------
    Hyvärinen, A. (2007). Some extensions of score matching. Equation 17.
    """

    default_rate = 0.3  # φ' is at most 8/27, where that of the pseudo-likelihood goes up to 1

    def loss(self, change: Array) -> Array:
        return sigmoid(change) ** 2

    def slope(self, change: Array) -> Array:
        on = sigmoid(change)
        return 2 * on * on * (1 - on)


@register
class MinimumProbabilityFlow(_BitFlips):
    """Minimum probability flow: dynamics that begin at the data hardly flow away from them.

    Consistent, also where neighbours of a row are data themselves. Its φ has no bound: rows that
    the model finds hopeless pull exponentially.

    Parameters
    ----------
    n_bits, n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `PseudoLikelihood`.

    References
    ----------
    Sohl-Dickstein, J., Battaglino, P., DeWeese, M. R. (2011). Minimum probability flow learning.
    """

    def loss(self, change: Array) -> Array:
        return namespace(change).exp(0.5 * change)

    def slope(self, change: Array) -> Array:
        return 0.5 * namespace(change).exp(0.5 * change)
