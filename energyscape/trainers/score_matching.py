"""Score matching: the energy is flat and convex at the data.

    score matching (Hyvärinen, 2005)              ⟨½|∂F/∂x|² - ΔF⟩_data
    sliced (Song, Garg, Shi, Ermon, 2019)         ⟨½|∂F/∂x|² - v'Hv⟩,    E[vv'] = 1
    denoising (Vincent, 2011), x̃ = x + σz         ⟨½|∂F/∂x(x̃) - (x̃ - x)/σ²|²⟩

H is the matrix of second derivatives and ΔF its trace. Z does not occur, and nothing is sampled.
The last two need no second derivative of any model: they are differences of F's gradient in the
parameters, at points beside the rows, with signed weights (Pang et al., 2020):

    sliced       2/ε² at x, -1/ε² at x ± εv, ±|g|/2e at x ± e g/|g|,    g = ∂F/∂x
    denoising    ±|r|/2e at x̃ ± e r/|r|,    r = ∂F/∂x(x̃) - (x̃ - x)/σ²

All losses are multiplied by the square of a length (denoising: by σ²), so that they, and good
learning rates, do not depend on the scale of the data. It is that over which the energy changes at
the start: d/ℓ² is the mean of |∂F/∂x|² over the rows, of which the curvature of a density is the
mean; at most the root mean square deviation of a feature.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from energyscape.backend import Array, namespace
from energyscape.errors import CapabilityError
from energyscape.optim import Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Objective, PointLoss, mean_stats
from energyscape.verbs import Params, Pass, check_count, speaks

_TINY = 1e-30
_ROWS_OF_LENGTH = 1000
# Steps over ℓ: along a slice, and along a unit vector (times √d). Where
# truncation and rounding are about equal, for a GaussianRBM of 784 features and 500 units.
_SLICE = {8: 1e-4, 4: 3e-2}
_STEP = {8: 1e-5, 4: 1e-2}
# Rounding of a second difference that is refused, and that a default may have, over d.
_REFUSED, _GOOD = 0.1, 1e-4


class _Scores(Objective):
    """What the three share: a scale, and their constructor's last arguments."""

    domains = ("real",)
    needs_proper = True
    needs_visible = True
    default_rate = 0.01

    n_epochs: int | None
    batch_size: int
    learning_rate: float | None
    optimizer: Optimizer | None
    averaging: float | None
    batch_transform: Any
    validation_fraction: float
    callbacks: Sequence[Callable[..., Any]]

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        carry = super().start(model, params, x, rng)
        return carry | {"score/length": _length(model, params, x)}


@register
class ScoreMatching(_Scores):
    """Score matching in closed form.

    Consistent, and quick: one forward and backward pass. It looks at the density near the data
    alone, and so hardly knows how much each of two modes weighs that are far apart; it is not
    invariant to how features are mixed (whiten them); and of 8-bit pixels it sees the steps, if no
    noise is added to them (`curvature` helps, too).

    Parameters
    ----------
    curvature : float >= 0, default 0
        λ of regularised score matching: adds λ ℓ² Σ_i (∂²F/∂x_i²)² (Kingma and LeCun, 2010).
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.01.
    optimizer : Optimizer, optional
    averaging : float in (0, 1], optional
        As for `CD`.
    batch_transform : transform, optional
        Applied to each batch with fresh random numbers.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    References
    ----------
    Hyvärinen, A. (2005). Estimation of non-normalized statistical models by score matching.
    Kingma, D., LeCun, Y. (2010). Regularized estimation of image statistics by score matching.
    """

    requires = (*Objective.requires, "score_matching", "input_grad")

    def __init__(
        self,
        curvature: float = 0.0,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.curvature = curvature
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
        if not 0 <= self.curvature < math.inf:
            raise ValueError(f"ScoreMatching.curvature must be >= 0, got {self.curvature!r}")
        if self.curvature and speaks(model, ("squared_curvature",)):
            raise CapabilityError(
                f"ScoreMatching(curvature={self.curvature:g}) needs squared_curvature(params, "
                f"passed, weights), which {type(model).__name__} does not offer; take curvature=0"
            )

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        x, xp = batch.x, namespace(batch.x)
        square = carry["score/length"] ** 2
        weights = xp.zeros(len(x), x.dtype) + (square / batch.n).astype(x.dtype)
        passed = model.forward(params, x)
        values, sums = model.score_matching(params, passed, weights)
        loss = square * values
        if self.curvature:
            extra = square * self.curvature
            weights *= extra.astype(x.dtype)
            values, more = model.squared_curvature(params, passed, weights)
            sums = {key: value + more[key] for key, value in sums.items()}
            loss = loss + square * extra * values
        sums |= mean_stats(passed, batch.n)
        return sums | {"loss/mean": loss.sum() / batch.n}


@register
class SlicedScoreMatching(_Scores, PointLoss):
    """Score matching of random slices, for any smooth energy, without second derivatives.

    Consistent up to the truncation of its differences, which is below the noise of a batch.

    Parameters
    ----------
    n_slices : int, default 1
        Directions v for each row, of entries ±1.
    variance_reduced : bool, default True
        Take ½|∂F/∂x|² whole, and slice the curvature alone; else ½(v'∂F/∂x)², too.
    epsilon : float > 0, optional
        Step along a slice, over ℓ. Default: 1e-4 in float64, 3e-2 in
        float32, or as much as rounding asks for.
    n_epochs, batch_size, learning_rate, optimizer, averaging, batch_transform, \
validation_fraction, callbacks
        As for `ScoreMatching`.

    References
    ----------
    Song, Y., Garg, S., Shi, J., Ermon, S. (2019). Sliced score matching.
    Pang, T., Xu, K., Li, C., Song, Y., Ermon, S., Zhu, J. (2020). Efficient learning of generative
    models via finite-difference score matching.
    """

    requires = (*PointLoss.requires, "input_grad")
    needs_smooth = True

    def __init__(
        self,
        n_slices: int = 1,
        variance_reduced: bool = True,
        epsilon: float | None = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_slices = n_slices
        self.variance_reduced = variance_reduced
        self.epsilon = epsilon
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
        check_count("SlicedScoreMatching.n_slices", self.n_slices)
        if self.epsilon is not None and not 0 < self.epsilon < math.inf:
            raise ValueError(
                f"SlicedScoreMatching.epsilon must be None or > 0, got {self.epsilon!r}"
            )

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        carry = super().start(model, params, x, rng)
        xp, epsilon = namespace(x), _SLICE[x.dtype.itemsize]
        # A second difference over ε² is rounded by about |F| u/ε², and d is what it has to show.
        rounding = float(abs(model.free_energy(params, x)).mean()) * float(np.finfo(x.dtype).eps)
        rounding /= x[0].size
        if self.epsilon is None:
            epsilon = max(epsilon, math.sqrt(rounding / _GOOD))
        elif rounding > _REFUSED * self.epsilon**2:
            raise ValueError(
                f"SlicedScoreMatching.epsilon={self.epsilon:g} is lost in the rounding of "
                f"{x.dtype} energies; it takes {max(epsilon, math.sqrt(rounding / _GOOD)):.2g}"
            )
        else:
            epsilon = self.epsilon
        return carry | {"score/epsilon": carry["score/length"] * epsilon + xp.zeros(1)}

    def evaluate(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array, Array]:
        xp, rows, x = namespace(batch.x), len(batch.x), batch.x
        square, epsilon = carry["score/length"] ** 2, carry["score/epsilon"]
        k = self.n_slices
        many = xp.concatenate([x] * k)
        v = xp.where(rng.uniform(many.shape) < 0.5, x.dtype.type(-1), x.dtype.type(1))
        step = v * epsilon.astype(x.dtype)
        points = [many + step, many - step]
        at_x = xp.zeros(rows, np.float64) + 2 / epsilon**2
        at_step = xp.zeros(rows * k, np.float64) - 1 / (k * epsilon**2)
        weights, at_rows = [at_x, at_step, at_step], model.forward(params, x)
        if self.variance_reduced:
            g, length = _with_length(at_rows.input_grad())
            e = _unit_step(carry, x)
            points += [x + g * e.astype(x.dtype), x - g * e.astype(x.dtype)]
            weights += [0.5 * length / e, -0.5 * length / e]
        passed = at_rows.join(model.forward(params, xp.concatenate(points)))
        energy = passed.energy()
        up, down = energy[rows : rows * (1 + k)], energy[rows * (1 + k) : rows * (1 + 2 * k)]
        bent = (up + down).reshape(k, rows).mean(axis=0) - 2 * energy[:rows]
        loss = -bent / epsilon**2
        if self.variance_reduced:
            loss += 0.5 * length**2
        else:
            along = (up - down) / (2 * epsilon)
            weights[1] = at_step + along / (2 * k * epsilon)
            weights[2] = at_step - along / (2 * k * epsilon)
            loss += 0.5 * (along**2).reshape(k, rows).mean(axis=0)
        return passed, xp.concatenate(weights) * (square / batch.n), loss * square


@register
class DenoisingScoreMatching(_Scores, PointLoss):
    """Denoising score matching, for any energy on reals: its slope leads from noise to the data.

    Consistent for the data with noise of deviation σ on them, which is what the model comes to be
    a model of: its densities are wider than the data's. No second derivatives, and no trouble with
    pixels of few levels or with kinks.

    Parameters
    ----------
    sigma : float > 0, optional
        Deviation σ of the noise, in the units of the data. Default: 0.3 ℓ.
    n_noise : int, default 1
        Draws of noise for each row.
    epsilon : float > 0, optional
        Step of the differences, over ℓ. Default: √d times 1e-5 in float64,
        1e-2 in float32.
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``; default 0.1.
    n_epochs, batch_size, optimizer, averaging, batch_transform, validation_fraction, callbacks
        As for `ScoreMatching`.

    References
    ----------
    Vincent, P. (2011). A connection between score matching and denoising autoencoders.
    """

    requires = (*PointLoss.requires, "input_grad")
    default_rate = 0.1  # in units of σ² the loss is some ten times flatter than those in ℓ²

    def __init__(
        self,
        sigma: float | None = None,
        n_noise: int = 1,
        epsilon: float | None = None,
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.sigma = sigma
        self.n_noise = n_noise
        self.epsilon = epsilon
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
        check_count("DenoisingScoreMatching.n_noise", self.n_noise)
        for key in ("sigma", "epsilon"):
            value = getattr(self, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"DenoisingScoreMatching.{key} must be None or > 0, got {value!r}")

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        carry = super().start(model, params, x, rng)
        if self.epsilon is not None:
            # A first difference loses u times the sizes of x and x over ε.
            least = 100 * float(np.finfo(x.dtype).eps)
            size = float((abs(x).max() / carry["score/length"])[0])
            if self.epsilon < least * max(1.0, size):
                fits = _STEP[x.dtype.itemsize] * math.sqrt(x[0].size) * max(1.0, size)
                raise ValueError(
                    f"DenoisingScoreMatching.epsilon={self.epsilon:g} is lost in the rounding of "
                    f"{x.dtype} rows; it takes {fits:.2g}"
                )
        sigma = 0.3 * carry["score/length"] if self.sigma is None else self.sigma
        return carry | {"score/sigma": namespace(x).zeros(1) + sigma}

    def evaluate(
        self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any
    ) -> tuple[Pass, Array, Array]:
        xp, x, k = namespace(batch.x), batch.x, self.n_noise
        sigma = carry["score/sigma"].astype(x.dtype)
        z = rng.normal((k * len(x), *x.shape[1:]), x.dtype)
        noisy = xp.concatenate([x] * k) + sigma * z
        residual = model.forward(params, noisy).input_grad() - z / sigma
        residual, length = _with_length(residual)
        e = _unit_step(carry, x, self.epsilon)
        residual *= e.astype(x.dtype)
        passed = model.forward(params, xp.concatenate([noisy + residual, noisy - residual]))
        square = carry["score/sigma"] ** 2
        push = length / e * (0.5 * square / (k * batch.n))
        loss = 0.5 * square * (length**2).reshape(k, len(x)).mean(axis=0)
        return passed, xp.concatenate([push, -push]), loss


def _length(model: Any, params: Params, x: Array) -> Array:
    """ℓ, (1,), float64."""
    xp = namespace(x)
    square = x.var(axis=0, dtype=np.float64).mean()
    square = xp.where(square > 0, square, 1.0)
    g = model.input_grad(params, x[:_ROWS_OF_LENGTH]).astype(np.float64)
    return xp.sqrt(xp.minimum(square, 1 / ((g * g).mean() + _TINY))).reshape(1)


def _with_length(g: Array) -> tuple[Array, Array]:
    """Unit vectors along rows, and how long these were, (n,), float64."""
    squares = (g * g).reshape(len(g), -1).sum(axis=1, dtype=np.float64)
    length = namespace(g).sqrt(squares)
    unit = g / (length + _TINY).astype(g.dtype).reshape(-1, *([1] * (g.ndim - 1)))
    return unit, length


def _unit_step(carry: Params, x: Array, epsilon: float | None = None) -> Array:
    """Step along a unit vector, (1,), float64."""
    share = _STEP[x.dtype.itemsize] * math.sqrt(x[0].size) if epsilon is None else epsilon
    return carry["score/length"] * share
