"""Models whose shape bounds the volume of low energy: push down on the data, and that is all.

The mean energy itself is the loss (LeCun et al., 2006, strategy 1), or F is normalised and the mean
energy is the negative log-likelihood. Both are solved by sums over rows: `ClosedForm` in one pass
(or a fixed number of them), `EM` in as many as it takes (Dempster, Laird, Rubin, 1977; Lloyd, 1982,
for k-means), or from batches with running sums (Cappé and Moulines, 2009).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from energyscape.backend import Array, namespace
from energyscape.optim import Moment
from energyscape.registry import register
from energyscape.trainers.base import Batch, Trainer
from energyscape.verbs import Params, check_count


class _FromSums(Trainer):
    """What both share: sums over rows in, parameters out, and no optimiser."""

    learning_rate = None
    optimizer = None
    averaging = None
    batch_transform = None

    def validate_steps(self, model: Any) -> None:
        """No optimiser, nothing to check."""

    def rate(self, at: Moment) -> float | None:
        return None

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        sums = model.statistics(params, x[:1])
        return {f"sums/{k}": namespace(v).zeros_like(v) for k, v in sums.items()}

    def collect(self, model: Any, params: Params, carry: Params, batch: Batch, rng: Any) -> Params:
        return model.statistics(params, batch.x)

    def _write(self, params: Params, new: Params) -> None:
        for key, value in new.items():
            params[key][...] = value


@register
class ClosedForm(_FromSums):
    """The exact minimum of the mean energy from sums over all rows.

    ``partial_fit`` adds the sums of further rows to those of the rows before, so that the result
    is that of one ``fit`` on all of them.

    Parameters
    ----------
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each pass; True stops.
    """

    requires = ("init_params", "param_specs", "forward", "statistics", "solve")

    def __init__(
        self, validation_fraction: float = 0.0, callbacks: Sequence[Callable[..., Any]] = ()
    ) -> None:
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    n_epochs = 1
    start_rows = 2000  # the result does not depend on them
    batch_size = None  # type: ignore[assignment]

    @property
    def every(self) -> str:
        return "epoch"

    def start(self, model: Any, params: Params, x: Array, rng: Any) -> Params:
        self.n_epochs = model.passes(params)
        return super().start(model, params, x, rng)

    def apply(self, model: Any, params: Params, carry: Params, sums: Params, at: Moment) -> None:
        if at.progress is None:  # rows that come in parts: all that came so far
            for key, value in sums.items():
                carry[f"sums/{key}"] += value
            sums = {key: carry[f"sums/{key}"] for key in sums}
        else:
            for key, value in sums.items():
                carry[f"sums/{key}"][...] = value
        self._write(params, model.solve(params, sums))


@register
class EM(_FromSums):
    """Expectation and maximisation: sums under the present parameters, then their best answer.

    Each iteration is one pass over all rows, and the mean energy never rises (history ``bound`` is
    its negative before each update). ``partial_fit`` makes one iteration on the rows that it is
    given, and those before are forgotten. With ``batch_size`` the sums are running means over
    batches, as in mini-batch k-means: many cheap updates a pass, without that guarantee.

    Parameters
    ----------
    n_epochs : int, default 100
        Most passes over the rows.
    tol : float, default 1e-4
        Stop when the last fall of the mean energy is at most ``tol`` times its fall since the
        first pass; 0 stops only when it no longer falls. Neither the scale nor the zero of the
        energy matters. Not used with ``batch_size``.
    batch_size : int, optional
        Default: all rows.
    learning_decay : float in (0.5, 1], default 0.7
        κ of the weight (t + 1)^-κ that the batch of update t gets in the running means; 1 weighs
        all batches alike.
    n_init : int, default 1
        Starts from different random numbers, of which the one with the lowest mean energy stays.
        ``resume`` finishes the start that was interrupted, and makes no others.
    validation_fraction : float in [0, 1), default 0
        Rows set apart (by index) for ``energy_valid`` in the history.
    callbacks : sequence of callables, default ()
        ``callback(model, state, info)`` after each epoch; True stops the training.

    References
    ----------
    Dempster, A., Laird, N., Rubin, D. (1977). Maximum likelihood from incomplete data.
    Cappé, O., Moulines, E. (2009). On-line expectation-maximization for latent data models.
    """

    requires = ("init_params", "param_specs", "forward", "statistics", "maximize")

    def __init__(
        self,
        n_epochs: int = 100,
        tol: float = 1e-4,
        batch_size: int | None = None,
        learning_decay: float = 0.7,
        n_init: int = 1,
        validation_fraction: float = 0.0,
        callbacks: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.n_epochs = n_epochs
        self.tol = tol
        self.batch_size = batch_size  # type: ignore[assignment]
        self.learning_decay = learning_decay
        self.n_init = n_init
        self.validation_fraction = validation_fraction
        self.callbacks = callbacks

    @property
    def every(self) -> str:
        return "epoch" if self.batch_size is None else "batch"

    def validate(self, model: Any) -> None:
        super().validate(model)
        check_count("EM.n_epochs", self.n_epochs)
        check_count("EM.n_init", self.n_init)
        if not self.tol >= 0:
            raise ValueError(f"EM.tol must be >= 0, got {self.tol!r}")
        if not 0.5 < self.learning_decay <= 1:
            raise ValueError(f"EM.learning_decay must be in (0.5, 1], got {self.learning_decay!r}")

    def apply(self, model: Any, params: Params, carry: Params, sums: Params, at: Moment) -> None:
        weight = 1.0 if self.batch_size is None else (at.step + 1.0) ** -self.learning_decay
        for key, value in sums.items():
            kept = carry[f"sums/{key}"]
            kept *= 1.0 - weight
            kept += weight * value / sums["rows"]
        means = {key: carry[f"sums/{key}"] for key in sums}
        self._write(params, model.maximize(params, means))

    def report(self, model: Any, params: Params, carry: Params, rng: Any) -> dict[str, Any]:
        return {"bound": -carry["sums/energy"]}

    def converged(self, history: dict[str, list[float]]) -> bool:
        bound = history.get("bound", [])
        if self.batch_size is not None or len(bound) < 2:
            return False
        return bound[-1] - bound[-2] <= self.tol * abs(bound[-1] - bound[0])

    def complaint(self, history: dict[str, list[float]]) -> str | None:
        bound = history["bound"]
        whole = self.batch_size is None and 2 <= self.n_epochs <= len(bound)
        if not whole or self.converged(history):
            return None
        return (
            f"EM still gained {bound[-1] - bound[-2]:.3g} in its last pass of {self.n_epochs}; "
            "raise n_epochs, or tol"
        )
