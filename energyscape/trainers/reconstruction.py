"""Auto-encoders: push the reconstruction error down on the data, and keep it from being low
everywhere by the architecture, a corruption, or a penalty on the code.

    ∇⟨L(x, g(f(x̃)))⟩ + ∇⟨Ω(f, x̃)⟩        x̃ ~ corruption of x (or x itself)

One trainer serves all: `Denoising`, `Sparsity`, `Contraction` and `Saturation` are its names with
one or the other, and any of them may be combined.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, ClassVar

from energyscape.backend import Array
from energyscape.layers import LayerGrad, LayerPass
from energyscape.optim import SGD, Adam, Optimizer
from energyscape.registry import register
from energyscape.trainers.base import Batch, Trainer
from energyscape.verbs import Params


@register
class Reconstruction(Trainer):
    """Gradient descent on the reconstruction error, with whatever keeps it from copying.

    Parameters
    ----------
    corruption : corruption, optional
        Applied to what is encoded; the clean rows are the target.
    penalties : sequence of penalties, default ()
        See `energyscape.penalties`; a constraint on the code (`KSparse`, `Lifetime`) may be one.
        Strengths are relative to a loss in units of the data's scale.
    n_epochs : int, optional
        Default: as many as make 10,000 updates, at least 10 and at most 1000.
    batch_size : int, default 100
    learning_rate : float, optional
        Shorthand for ``optimizer=SGD(learning_rate)``.
    optimizer : Optimizer, optional
        Default: ``Adam(0.001)``.
    averaging, batch_transform, validation_fraction, callbacks
        As for `CD`.
    """

    requires: ClassVar[tuple[str, ...]] = (
        "init_params",
        "param_specs",
        "encoder",
        "decoder",
        "backward",
        "loss_slope",
    )

    def __init__(
        self,
        corruption: Any = None,
        penalties: Sequence[Any] = (),
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.corruption = corruption
        self.penalties = penalties
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.averaging = averaging
        self.batch_transform = batch_transform
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    def noise(self) -> Any:
        """The corruption that applies; None for clean rows."""
        return self.corruption

    def all_penalties(self) -> tuple[Any, ...]:
        """Terms and constraints that apply."""
        return tuple(self.penalties)

    def resolved_optimizer(self) -> Optimizer:
        if self.optimizer is not None:
            return self.optimizer
        return Adam() if self.learning_rate is None else SGD(self.learning_rate)

    def validate(self, model: Any) -> None:
        super().validate(model)
        name = type(self).__name__
        if not isinstance(self.penalties, Sequence):
            raise ValueError(f"{name}.penalties must be a list or tuple, got {self.penalties!r}")
        if self.corruption is not None and not _instance(self.corruption, "corrupt"):
            raise ValueError(
                f"{name}.corruption must be a corruption such as Masking(0.25), got "
                f"{self.corruption!r}"
            )
        for penalty in self.all_penalties():
            if not _instance(penalty, "check"):
                raise ValueError(f"{name}: {penalty!r} is not a penalty of energyscape.penalties")
            penalty.check(model.activations())
            if not model.tied and hasattr(penalty, "strength"):
                raise ValueError(
                    f"{name} with {type(penalty).__name__} needs tied=True: without it the code "
                    "shrinks, the decoder grows, and the penalty is paid by nobody"
                )

    # ------------------------------------------------------------ the gradient

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        seen, touched, noise = batch.x, None, self.noise()
        if noise is not None:
            seen, touched = noise.corrupt(batch.x, rng)
        return self.push(model, params, batch, seen, self.weights(batch.x, touched), rng)[0]

    def weights(self, x: Array, touched: Array) -> Array:
        """Weight of each entry in the loss; None for 1."""
        return None

    def push(
        self, model: Any, params: Params, batch: Batch, seen: Array, weights: Array, rng: Any
    ) -> tuple[Params, LayerPass]:
        """Gradient of the loss of reconstructing the batch from ``seen``, and of the penalties; the
        decoder's last pass."""
        up = model.encoder(params, seen)
        terms = []
        for penalty in self.all_penalties():
            if hasattr(penalty, "mask"):
                up[-1].keep(penalty.mask(up[-1], batch.progress))
            else:
                terms.append(penalty)
        down = model.decoder(params, up[-1].h)
        target = up[0].x if seen is batch.x else model.standardized(params, batch.x)
        da = model.loss_slope(down[-1], target)
        sums = self._residuals(params, da, batch.n)
        da *= da.dtype.type(1.0 / batch.n)
        if weights is not None:
            da *= weights
        extras = self._extras(up, terms, len(seen) / batch.n, rng)
        return model.backward(up, down, da, extras)[0] | sums, down[-1]

    def sharing_note(self) -> str | None:
        found = [type(p).__name__ for p in self.all_penalties() if hasattr(p, "compares_rows")]
        if not found:
            return None
        return f"{', '.join(found)} compares the rows of a batch: each worker's, with each other"

    def _residuals(self, params: Params, slope: Array, n: int) -> Params:
        if "residual" not in params:
            return {}
        squares = (slope * slope).sum(axis=0)  # of 2(r - x), as shares of the scale
        squares *= squares.dtype.type(0.25 / n)
        return {"mean/residual": squares}

    def _extras(self, up: Sequence[Any], terms: list[Any], share: float, rng: Any) -> Any:
        """Direct derivatives of all penalties, layer by layer, for this part of the batch."""
        total: list[Any] = [None] * len(up)
        for term in terms:
            for i, grad in enumerate(term(up, rng)[1]):
                if grad is None:
                    continue
                if share != 1.0:
                    grad = _times(grad, share)
                if total[i] is None:
                    total[i] = grad
                else:
                    total[i].add(grad)
        return total


class Penalised(Reconstruction):
    """A strategy that is a penalty on the code; subclasses say which by default.

    Parameters
    ----------
    penalty : penalty or constraint, optional
        Default: ``default_penalty()``.
    corruption, penalties, n_epochs, batch_size, learning_rate, optimizer, averaging, \
batch_transform, validation_fraction, callbacks
        As for `Reconstruction`; ``penalties`` are further ones.
    """

    def __init__(
        self,
        penalty: Any = None,
        corruption: Any = None,
        penalties: Sequence[Any] = (),
        n_epochs: int | None = None,
        batch_size: int = 100,
        learning_rate: float | None = None,
        optimizer: Optimizer | None = None,
        averaging: float | None = None,
        batch_transform: Any = None,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        super().__init__(
            corruption=corruption,
            penalties=penalties,
            n_epochs=n_epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            averaging=averaging,
            batch_transform=batch_transform,
            validation_fraction=validation_fraction,
            callbacks=callbacks,
        )
        self.penalty = penalty

    def default_penalty(self) -> Any:
        """What None stands for."""
        raise NotImplementedError

    def all_penalties(self) -> tuple[Any, ...]:
        own = self.default_penalty() if self.penalty is None else self.penalty
        return (own, *self.penalties)


def _instance(value: Any, method: str) -> bool:
    return hasattr(value, method) and not isinstance(value, type)


def _times(grad: LayerGrad, factor: float) -> LayerGrad:
    parts = (getattr(grad, field.name) for field in fields(grad))
    return LayerGrad(*(None if p is None else p * p.dtype.type(factor) for p in parts))
